"""The inputs of a job: examples, targets, starts, and the runs that follow from them.

They are read and checked before the job writes anything, so that nothing bad is found later.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from wayward_jax import assets, checkpoints, targets, tasks
from wayward_jax.constraints import (
    BY_CONSTRUCTION,
    CONSTRAINTS,
    Constraint,
    ReadingPenalty,
    has_empty_cell,
)
from wayward_jax.errors import InputError
from wayward_jax.initialization import STARTS
from wayward_jax.jobs.experiment import Experiment
from wayward_jax.jobs.loader import Loader
from wayward_jax.jobs.parts import select_part
from wayward_jax.jobs.processes import on_primary
from wayward_jax.jobs.progress_bar import ProgressReporter
from wayward_jax.jobs.settings import Settings
from wayward_jax.models import LanguageModel
from wayward_jax.prompt_files import SavedPrompt, fit_prompt, read_prompt
from wayward_jax.readings import Method, find_reading
from wayward_jax.runs import Run
from wayward_jax.tasks import TaskData
from wayward_jax.training.examples import EncodedTask, encode_tasks
from wayward_jax.training.memory import busy_tokens, pack_tokens, row_grain
from wayward_jax.training.meshes import write_mesh
from wayward_jax.training.planning import most_at_once

Datasets = Mapping[str, Mapping[int, TaskData]]
"""The examples of tasks by the task's name and the data seed."""


class Start(NamedTuple):
    """A prompt that runs start from.

    Attributes:
        source: what `--init` says.
        prompt: `[L, D]` float32.
    """

    source: str
    prompt: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class ModelInputs:
    """The inputs for one model: examples, runs and tokens a pack by task, and starting prompts.

    Examples are those of the whole job, whatever part of its runs is carried out. Prompts `[L, D]`
    are by what `Run.init` says of them, constraints by what `Run.constraint` says, and readings
    that have such a constraint by the same names.
    """

    tasks: dict[str, EncodedTask]
    runs: dict[str, list[Run]]
    pack_tokens: dict[str, int]
    starts: dict[str, np.ndarray]
    readings: dict[str, Method]
    constraints: dict[str, Constraint]


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of a job.

    Attributes:
        models: inputs by the model's name.
        runs: the runs that are carried out, by id.
        content: twelve hexadecimal digits that depend on all runs of the job and on its examples,
            and not on where files lie.
    """

    models: dict[str, ModelInputs]
    runs: dict[str, Run]
    content: str


@on_primary
def read_starts(settings: Settings) -> list[SavedPrompt]:
    """Reads the prompts that `--init` names beside kinds of starts.

    Raises:
        InputError: there is no such prompt.
    """
    sources = [source for source in settings.init if source not in STARTS]
    return [read_prompt(source, "init", list(STARTS)) for source in sources]


def read_inputs(
    settings: Settings,
    experiment: Experiment,
    loader: Loader,
    saved: Sequence[SavedPrompt],
    watch: ProgressReporter,
) -> Inputs:
    """Reads everything else that the job needs, and lists its runs.

    Runs are listed before any weights are on the devices: their number decides what the devices do.

    Raises:
        InputError: something cannot be read, or things do not fit together.
    """
    watch.doing("fetching and reading")
    datasets = _read_tasks(settings)
    samples = [data for each in datasets.values() for data in each.values()]
    for note in dict.fromkeys(note for data in samples for note in data.notes):
        watch.note(note)
    listed = {
        name: _list_runs(loader, name, settings, experiment, datasets, saved, watch)
        for name in loader.names
    }
    runs = [run for each in listed.values() for own in each.runs.values() for run in own]
    chosen = {run.id: run for run in select_part(settings, runs)}
    inputs = {}
    for name, each in listed.items():
        own = [run for run in chosen.values() if run.model == name]
        at_once = most_at_once(own, settings.population)
        mesh = loader.choose_mesh(name, at_once)
        if settings.mesh is None and mesh.size > 1:
            watch.note(f"{name}: --mesh={write_mesh(mesh.shape)} for {at_once} prompts at once")
        inputs[name] = _read_for(loader, name, each, datasets, watch)
    narrowed = {
        name: dataclasses.replace(
            each,
            runs={
                task: [run for run in own if run.id in chosen] for task, own in each.runs.items()
            },
        )
        for name, each in inputs.items()
    }
    content = _content(runs, inputs, datasets)
    return Inputs(narrowed, chosen, content)


def _read_tasks(settings: Settings) -> Datasets:
    fetch = functools.partial(
        assets.fetch, cache_dir=settings.cache_dir, assets_dir=settings.assets_dir
    )
    found: dict[str, dict[int, TaskData]] = {}
    sources: dict[str, str] = {}
    for source in settings.task:
        samples = {
            data_seed: tasks.load(
                source,
                data_dir=settings.data_dir,
                k_shot=settings.k_shot,
                data_seed=data_seed,
                fetch=fetch,
                text_column=settings.text_column,
                label_column=settings.label_column,
            )
            for data_seed in settings.data_seed
        }
        name = samples[settings.data_seed[0]].task.name
        train = {(data.train.texts, data.train.texts_b) for data in samples.values()}
        if len(train) < len(samples):
            raise InputError(
                "data_seed",
                ",".join(map(str, settings.data_seed)),
                f"gives --task={source} the same training examples more than once: give a single "
                "one, or --k_shot",
            )
        if name in found:
            raise InputError(
                "task",
                source,
                f"is called {name} in the results, as --task={sources[name]} is: rename one of the "
                "two, or give them to two jobs",
            )
        found[name], sources[name] = samples, source
    return found


class _Listed(NamedTuple):
    """The runs of a model and the templates by task, the model's starts, and its own settings."""

    runs: dict[str, list[Run]]
    templates: dict[str, int]
    starts: dict[str, Start]
    settings: Settings


def _list_runs(
    loader: Loader,
    name: str,
    settings: Settings,
    experiment: Experiment,
    datasets: Datasets,
    saved: Sequence[SavedPrompt],
    watch: ProgressReporter,
) -> _Listed:
    model = loader.open(name)
    starts = _fit_starts(saved, model, watch)
    names = {start.source: name for name, start in starts.items()}
    inits = tuple(names.get(init, init) for init in settings.init)
    own_settings = dataclasses.replace(settings.of_model(loader.names[name]), init=inits)
    templates = {
        name: each.task.default_template if settings.template is None else settings.template
        for name, each in ((name, next(iter(own.values()))) for name, own in datasets.items())
    }
    of_starts = tuple(len(start.prompt) for start in starts.values())
    lengths: tuple[int | None, ...] = settings.prompt_length or of_starts or (None,)
    planned = {}
    for task, template in templates.items():
        texts = targets.load_texts(settings.targets, task=task, data_dir=settings.data_dir)
        found = []
        for length in dict.fromkeys(lengths):
            repeat = experiment.repeat_targets
            cut = targets.tokenize(texts, model.tokenizer, length, repeat=repeat)
            if left_out := len(texts) - len(cut):
                given = f"{left_out} of {len(texts)} targets"
                at_length = f" at {length} tokens" if length else ""
                watch.note(
                    f"{name}, {task}: {given} left out{at_length}: shorter, or the same as another"
                )
            found += cut
        targets.require_readable(found, model.tokenizer, model.valid_tokens())
        of_task = dataclasses.replace(own_settings, template=template)
        planned[task] = [
            dataclasses.replace(run, bos_ids=model.bos_ids)
            for run in experiment.runs(of_task, model, task, found)
        ]
        _check_starts(starts, planned[task])
    return _Listed(planned, templates, starts, own_settings)


def _read_for(
    loader: Loader,
    name: str,
    listed: _Listed,
    datasets: Datasets,
    watch: ProgressReporter,
) -> ModelInputs:
    model, settings, planned = loader.model(name), listed.settings, listed.runs
    check_cells(model, [run for runs in planned.values() for run in runs])
    # Experiments put prompts before the examples of other tasks, too.
    longest = max(run.prompt_length for runs in planned.values() for run in runs)
    encoded = encode_tasks(
        model,
        datasets,
        templates=listed.templates,
        prompt_length=longest,
        method=settings.method,
        n_dev=settings.n_dev,
        n_eval=settings.n_eval,
        tokens=busy_tokens(model.mesh),
        truncate=settings.truncate,
        row_grain=row_grain(model.mesh),
    )
    free = loader.free_bytes - model.device_nbytes
    fitting = {}
    for task, samples in datasets.items():
        test = samples[settings.data_seed[-1]].test
        cut = tasks.count_truncated(
            samples[settings.data_seed[-1]].task,
            test.texts,
            model.tokenizer,
            texts_b=test.texts_b,
            template=listed.templates[task],
            method=settings.method,
            max_tokens=model.module.config.max_positions - len(model.bos_ids) - longest,
        )
        if cut:
            watch.note(
                f"{task}: {cut} of {len(test)} test examples ({cut / len(test):.0%}) are too long "
                f"for {model.name}; the {settings.truncate} of their text is cut"
            )
        fitting[task] = pack_tokens(model, encoded[task].train, planned[task], free)
    prompts = {name: start.prompt for name, start in listed.starts.items()}
    readings = {str(each): each for each in find_readings(settings, model)}
    held = {each: ReadingPenalty.of(reading, model) for each, reading in readings.items()}
    return ModelInputs(encoded, planned, fitting, prompts, readings, CONSTRAINTS | held)


def find_readings(settings: Settings, model: LanguageModel) -> list[Method]:
    """The readings that a job's `--constraint` names.

    Raises:
        InputError: the model has no layer that a reading needs.
    """
    names = [name for name in settings.constraint if name not in CONSTRAINTS]
    return [find_reading(name, model, settings.verbal_templates) for name in names]


def _content(runs: Sequence[Run], inputs: Mapping[str, ModelInputs], datasets: Datasets) -> str:
    """See `Inputs.content`."""
    digest = hashlib.sha256(json.dumps([run.id for run in runs]).encode())
    for each in inputs.values():
        digest.update(json.dumps([task.digests for task in each.tasks.values()]).encode())
    for samples in datasets.values():
        for data_seed, data in samples.items():
            digest.update(json.dumps([data_seed, dataclasses.asdict(data.task)]).encode())
            for examples in (data.train, data.dev, data.test):
                content = [examples.texts, np.asarray(examples.labels).tolist()]
                content += [examples.texts_b] if examples.texts_b else []
                digest.update(json.dumps(content).encode())
    return digest.hexdigest()[:12]


def check_cells(model: LanguageModel, runs: Sequence[Run]) -> None:
    """Checks that vectors can read as each token whose cell a constraint keeps them to.

    Raises:
        InputError: no vector reads as a token of a target.
    """
    table = model.embedding_table()
    if isinstance(table, jax.ShapeDtypeStruct):  # a model without weights has no cells
        return
    readable = table[: model.tokenizer.vocab_size]
    with_cells = [run for run in runs if run.constraint in BY_CONSTRUCTION]
    constrained = {run.target_name: run.target_ids for run in with_cells}
    for name, ids in constrained.items():
        lacking = has_empty_cell(readable, np.asarray(ids))
        if lacking.any():
            token = ids[int(lacking.argmax())]
            raise InputError(
                "targets",
                name,
                f"nothing reads as {model.tokenizer.decode([token])!r} (token {token}), since "
                f"another token of {model.name} has the same embedding: leave this target out, or "
                "use --constraint=penalty and a number for --gamma",
            )


def _fit_starts(
    saved: Sequence[SavedPrompt], model: LanguageModel, watch: ProgressReporter
) -> dict[str, Start]:
    """The prompts that a model's runs start from, by what `Run.init` says of them."""
    found: dict[str, Start] = {}
    for each in saved:
        prompt = fit_prompt(each, model)
        name = f"checkpoint:{checkpoints.prompt_digest(prompt)}"
        if name in found:
            raise InputError(
                "init",
                each.source,
                f"holds the same prompt as --init={found[name].source}: give one",
            )
        found[name] = Start(each.source, prompt)
        if doubt := each.doubt(model):
            watch.note(doubt)
    return found


def _check_starts(starts: Mapping[str, Start], runs: Sequence[Run]) -> None:
    for run in runs:
        if run.init not in starts:
            continue
        source, prompt = starts[run.init]
        if len(prompt) != run.prompt_length:
            raise InputError(
                "init",
                source,
                f"has {len(prompt)} vectors, target {run.target_name} for {run.model} has "
                f"{run.prompt_length} tokens: choose targets of its length or --prompt_length",
            )
