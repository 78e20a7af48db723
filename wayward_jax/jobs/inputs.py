"""What a job reads before it starts: models, examples, targets and starts; bad ones are refused."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments import command_line
from experiments.flags import Settings
from wayward_jax import assets, checkpoints, models, targets, tasks
from wayward_jax.constraints import has_empty_cell
from wayward_jax.errors import InputError
from wayward_jax.initialization import STARTS
from wayward_jax.jobs.experiment import Experiment
from wayward_jax.jobs.finished import read_flags
from wayward_jax.jobs.parts import part
from wayward_jax.jobs.progress_bar import ProgressReporter
from wayward_jax.jobs.records import FinishedRun
from wayward_jax.models import LanguageModel
from wayward_jax.models.tokenizer import Tokenizer
from wayward_jax.runs import Run
from wayward_jax.sharding import make_mesh
from wayward_jax.tasks import TaskData
from wayward_jax.training.examples import EncodedTask, encode_task
from wayward_jax.training.memory import busy_tokens, pack_tokens, row_grain


def keep_compiled(cache_dir: Path) -> None:
    """Turns JAX's compilation cache on; before anything is compiled, or it stays off."""
    jax.config.update("jax_compilation_cache_dir", str(cache_dir / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _dtype(settings: Settings) -> jnp.dtype:
    """Of frozen weights."""
    if settings.dtype != "auto":
        return jnp.dtype(settings.dtype)
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


class Loader:
    """Loads the models of a job onto its devices, and keeps the last one alone."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.dtype = _dtype(settings)
        self._held: LanguageModel | None = None
        self.mesh = _mesh(settings)

    def model(self, name: str) -> LanguageModel:
        """The model of this name; the one before must not be in use any more."""
        if self._held is None or self._held.name != name:
            self._held = None
            self._held = models.load(
                name,
                cache_dir=self._settings.cache_dir,
                assets_dir=self._settings.assets_dir,
                dtype=self.dtype,
                mesh=self.mesh,
            )
        return self._held


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """What a job reads for one model before it starts: examples, runs and tokens a pack by task.

    Examples are those of the whole job, whatever part of its runs is carried out.
    """

    tokenizer: Tokenizer
    tasks: dict[str, EncodedTask]
    runs: dict[str, list[Run]]
    pack_tokens: dict[str, int]

    @property
    def all_runs(self) -> list[Run]:
        """Those of all tasks."""
        return [run for runs in self.runs.values() for run in runs]

    def narrowed(self, ids: set[str]) -> Self:
        """With the runs of these ids alone."""
        runs = {task: [run for run in own if run.id in ids] for task, own in self.runs.items()}
        return dataclasses.replace(self, runs=runs)


def read(
    settings: Settings,
    experiment: Experiment,
    loader: Loader,
    starts: Mapping[str, np.ndarray],
    watch: ProgressReporter,
) -> dict[str, Inputs]:
    """What the job needs by model; each is loaded once, so that nothing bad is found later."""
    watch.doing("fetching and reading")
    fetch = _fetcher(settings)
    datasets = {
        name: {
            data_seed: tasks.load(
                name,
                data_dir=settings.data_dir,
                k_shot=settings.k_shot,
                data_seed=data_seed,
                fetch=fetch,
            )
            for data_seed in settings.data_seeds
        }
        for name in settings.tasks
    }
    inputs = {
        name: _read_for(loader.model(name), settings, experiment, datasets, starts, loader.mesh)
        for name in settings.models
    }
    own = part(settings, [run for each in inputs.values() for run in each.all_runs])
    return {name: each.narrowed({run.id for run in own}) for name, each in inputs.items()}


def _read_for(
    model: LanguageModel,
    settings: Settings,
    experiment: Experiment,
    datasets: Mapping[str, Mapping[int, TaskData]],
    starts: Mapping[str, np.ndarray],
    mesh: Mesh,
) -> Inputs:
    planned = {}
    for name in datasets:
        texts = targets.load_texts(settings.targets, task=name, data_dir=settings.data_dir)
        found = [
            target
            for length in settings.prompt_lengths or (None,)
            for target in targets.tokenize(texts, model.tokenizer, length)
        ]
        planned[name] = experiment.runs(settings, model.name, name, found)
        _check_starts(starts, planned[name], model.embedding_table().shape[1])
        _check_cells(model, planned[name])
    # Prompts are put before the examples of other tasks, too.
    longest = max(run.prompt_length for runs in planned.values() for run in runs)
    encoded, fitting = {}, {}
    for name, samples in datasets.items():
        encoded[name] = encode_task(
            model,
            samples,
            prompt_length=longest,
            method=settings.method,
            template=settings.template,
            n_eval=settings.n_eval,
            tokens=busy_tokens(mesh),
            devices=mesh.shape["data"],
            row_grain=row_grain(mesh),
        )
        fitting[name] = pack_tokens(model, encoded[name].train, planned[name], mesh)
    return Inputs(model.tokenizer, encoded, planned, fitting)


def reused(
    finished: Sequence[FinishedRun], settings: Settings, inputs: Mapping[str, Inputs]
) -> list[FinishedRun]:
    """Selects the runs of other jobs that this job has, too.

    Raises:
        InputError: a checkpoint is missing, or the runs were made with other data or another dtype.
    """
    runs = {run.id: run for each in inputs.values() for run in each.all_runs}
    found = [each for each in finished if each.record.id in runs]
    for each in found:
        run = each.record.run
        if not each.checkpoint.is_dir():
            raise InputError(
                "reuse",
                str(each.job.folder),
                f"lacks {each.checkpoint}: bring the checkpoints, too",
            )
        task = inputs[run.model].tasks[run.task]
        counts = {
            "n_train": len(task.train[run.data_seed]),
            "n_dev": len(task.dev[run.data_seed].labels),
            "n_eval": len(task.test.labels),
        }
        for name, count in counts.items():
            if (there := getattr(each.record, name)) != count:
                raise InputError(
                    "reuse",
                    str(each.job.folder),
                    f"run {run.id} has {name}={there} there and {count} here: give the --n_eval "
                    "and the data of that job",
                )
    for folder in {each.job.folder for each in found}:
        if (dtype := read_flags(folder).get("dtype")) != settings.dtype:
            raise InputError(
                "reuse",
                str(folder),
                f"has runs of --dtype={dtype}, and this job has --dtype={settings.dtype}: give the "
                "same",
            )
    return found


def _mesh(settings: Settings) -> Mesh:
    sizes = settings.mesh or {"runs": jax.device_count()}
    try:
        mesh = make_mesh(**sizes)
    except ValueError as error:
        raise InputError(f"--mesh: {error}") from error
    if jax.process_count() > 1 and mesh.size < jax.device_count():
        raise InputError(
            f"--mesh: uses {mesh.size} of the {jax.device_count()} devices that the processes of "
            "this job have: use all"
        )
    return mesh


def _fetcher(settings: Settings) -> Callable[[str], Path]:
    def fetch(name: str) -> Path:
        return assets.fetch(name, cache_dir=settings.cache_dir, assets_dir=settings.assets_dir)

    return fetch


def read_starts(settings: Settings) -> dict[str, np.ndarray]:
    """By the path that `--init` gives, the prompts that it names beside kinds of starts."""
    starts = {}
    for init in settings.inits:
        if init in STARTS:
            continue
        path = command_line.path(init)
        if not os.path.isdir(path):
            raise InputError(
                f"--init={init}: choose from {', '.join(STARTS)}, or a checkpoint's folder"
            )
        starts[init] = checkpoints.load_prompt(path)
    return starts


def _check_cells(model: LanguageModel, runs: Sequence[Run]) -> None:
    """That something reads as each token that a prompt shall be kept to."""
    readable = model.embedding_table()[: model.tokenizer.vocab_size]
    targets = {run.target_name: run.target_ids for run in runs if run.constraint != "penalty"}
    for name, ids in targets.items():
        lacking = has_empty_cell(readable, np.asarray(ids))
        if lacking.any():
            token = ids[int(lacking.argmax())]
            raise InputError(
                f"--targets: nothing reads as {model.tokenizer.decode([token])!r} (token {token}) "
                f"of {name}, since another token of {model.name} has the same embedding: leave "
                "this target out, or use --constraint=penalty and a number for --gamma"
            )


def _check_starts(starts: Mapping[str, np.ndarray], runs: Sequence[Run], width: int) -> None:
    for run in runs:
        if run.init in starts and starts[run.init].shape != (run.prompt_length, width):
            length, own = starts[run.init].shape
            raise InputError(
                f"--init={run.init} has {length} tokens of width {own}, target {run.target_name} "
                f"for {run.model} has {run.prompt_length} of {width}: choose targets of its length "
                "or --prompt_length, and the model that it was tuned for"
            )
