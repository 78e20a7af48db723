"""Carries out a job: loads what it needs, tunes its runs, and writes results as they come."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments import command_line
from experiments.bench import Bench
from experiments.experiment import Experiment, Measure
from experiments.flags import Settings, as_flags
from experiments.interruption import Interruption
from experiments.job_folder import JobFolder, Plans, of_shard, writing
from experiments.meter import Meter, curve, outcome
from experiments.object_stores import Mirror
from experiments.part import part
from experiments.processes import agreed, first, is_first, on_first
from experiments.terminal import Watch
from experiments.trace import Trace
from wayward_jax import assets, checkpoints, models, targets, tasks
from wayward_jax.analysis import jobs
from wayward_jax.analysis.jobs import FinishedRun, Measured
from wayward_jax.cells import without_cell
from wayward_jax.checkpoints import ProgressCheckpoints
from wayward_jax.encoded_task import EncodedTask, encode_task
from wayward_jax.errors import InputError
from wayward_jax.initialization import STARTS
from wayward_jax.memory import busy_tokens, pack_tokens
from wayward_jax.mesh import make_mesh, on_host
from wayward_jax.models import LanguageModel
from wayward_jax.models.tokenizer import Tokenizer
from wayward_jax.populations import plan
from wayward_jax.runs import Run
from wayward_jax.sweep import Progress, Steps, tune_population
from wayward_jax.tasks import TaskData


def keep_compiled(cache_dir: Path) -> None:
    """Turns JAX's compilation cache on; before anything is compiled, or it stays off."""
    jax.config.update("jax_compilation_cache_dir", str(cache_dir / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _dtype(settings: Settings) -> jnp.dtype:
    """Of frozen weights."""
    if settings.dtype != "auto":
        return jnp.dtype(settings.dtype)
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
    """What came of a job.

    Attributes:
        rows: of `results.jsonl`, those that were asked for.
        measured: of their prompts.
        tokenizers: by model.
        folder: where it all is.
    """

    rows: list[dict]
    measured: Measured
    tokenizers: dict[str, Tokenizer]
    folder: Path


def carry_out(
    settings: Settings,
    experiment: Experiment,
    out_dir: Path,
    watch: Watch,
    mirror: Mirror | None = None,
) -> Finished:
    """Tunes and evaluates every run of an experiment, and measures what it measures of them.

    Writes into `out_dir`, see `JobFolder`, once all input has been found good. What an earlier
    process with the same flags finished there is not done again, and what it had begun goes on from
    the last checkpoint: the rows are the same as if nothing had come between, but for `seconds`.
    What the jobs of `settings.reuse` have finished is taken over from there.

    Args:
        settings: of the job.
        experiment: lists the runs and measurements.
        out_dir: new or empty, or of an earlier job with the same flags; of shards, the folder that
            their own are in.
        watch: is told how far the job has come.
        mirror: of `out_dir`, if it is a copy.

    Raises:
        InputError: something given cannot be used, and nothing is written then; or `out_dir` can no
            longer be written, and what was written stays.
        KeyboardInterrupt: it was asked to stop, and has kept how far it had come.
    """
    loader = _Loader(settings)
    own = out_dir if settings.shard is None else first(lambda: of_shard(out_dir, settings.shard))
    folder = JobFolder(own, as_flags(settings))
    first(folder.look)
    starts = first(lambda: _read_starts(settings))
    finished = first(lambda: jobs.read(settings.reuse))
    with agreed():
        inputs = _read(settings, experiment, loader, starts, watch)
    reused = first(lambda: _reused(finished, inputs))
    interruption = Interruption()

    def stop() -> None:
        raise KeyboardInterrupt(f": the same command with --out_dir={out_dir} goes on")

    def send() -> None:
        if mirror is not None:
            mirror.send()

    def save(kept: ProgressCheckpoints, progress: Progress) -> None:
        with writing(out_dir):
            kept.save(progress)
            if mirror is not None:
                kept.wait()
        send()

    def add(key: str, found: list[dict]) -> None:
        folder.add_measurement(settings.experiment, key, found)
        send()

    def keep(kept: ProgressCheckpoints | None, progress: Progress) -> None:
        before = progress.step - len(progress.losses[-1].task)
        every = settings.checkpoint_every
        asked = interruption.asked()
        if asked or progress.step // every > before // every:
            progress = on_host(progress)
            first(lambda: save(kept, progress))
        trace.see(progress)
        if asked:
            stop()

    def measure(measure_of: Measure, model: str, rows: list[dict]) -> None:
        """Takes what measurements with a model were not taken before."""
        done = first(folder.measured).get(settings.experiment, {})
        bench = Bench(
            loader.model(model),
            loader.mesh,
            inputs[model].tasks,
            rows,
            settings.select,
            lambda row: first(lambda: checkpoints.load_prompt(folder.checkpoint(row["id"]))),
        )
        left = [(key, take) for key, take in measure_of(bench) if key not in done]
        for number, (key, take) in enumerate(left, start=1):
            watch.doing(f"{model}, measuring, {number} of {len(left)}")
            rows_of = take()
            first(lambda: add(key, rows_of))  # noqa: B023
            if interruption.asked():
                stop()

    def on_steps(steps: Steps) -> None:
        watch.stepped(len(steps.task_loss), meter.steps(steps))

    def on_broken(step: int) -> None:
        watch.note(f"the checkpoint of step {step} is broken: going on from the one before it")

    with on_first(folder.claimed(watch.note)), interruption.heed():
        first(lambda: folder.take_over(reused))
        plans = first(lambda: _plans(settings, folder, inputs, loader.mesh))
        watch.planned(sum(each.runs[0].steps for _, each in plans))
        meter, trace = Meter(loader.dtype, loader.mesh), Trace(own, settings.profile * is_first())
        for name, each in plans:
            model = each.runs[0].model
            watch.doing(f"{model}, {name}, {len(each.runs)} prompts")
            watch.begun(f"{Path(name).name}-{each.runs[0].id}")
            task = inputs[model].tasks[name]
            meter.begin(loader.model(model))
            with on_first(folder.in_flight(name, each)) as kept, trace.of(each):
                found = tune_population(
                    loader.model(model),
                    task,
                    each,
                    loader.mesh,
                    starts=_starts(starts, each.runs),
                    since=first(lambda: kept.restore(on_broken)),
                    on_steps=on_steps,
                    on_progress=functools.partial(keep, kept),
                )
                first(lambda: folder.add(found, task.test.labels))  # noqa: B023
            first(send)
            watch.tuned(curve(found), outcome(found))
        asked_for = {run.id for each in inputs.values() for run in each.all_runs}
        rows = [row for id, row in first(folder.rows).items() if id in asked_for]
        if experiment.measure is not None:
            for model in inputs:
                measure(experiment.measure, model, rows)
        measured = first(folder.measured)
    tokenizers = {name: each.tokenizer for name, each in inputs.items()}
    return Finished(rows, measured, tokenizers, own)


class _Loader:
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
class _Inputs:
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


def _read(
    settings: Settings,
    experiment: Experiment,
    loader: _Loader,
    starts: Mapping[str, np.ndarray],
    watch: Watch,
) -> dict[str, _Inputs]:
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
) -> _Inputs:
    planned = {}
    for name in datasets:
        found = [
            target
            for length in settings.prompt_lengths or (None,)
            for target in targets.load(
                settings.targets,
                model.tokenizer,
                task=name,
                data_dir=settings.data_dir,
                prompt_length=length,
            )
        ]
        planned[name] = experiment.runs(settings, model.name, name, found)
        _check_starts(starts, planned[name], model.table().shape[1])
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
        )
        fitting[name] = pack_tokens(model, encoded[name].train, planned[name], mesh)
    return _Inputs(model.tokenizer, encoded, planned, fitting)


def _reused(finished: Sequence[FinishedRun], inputs: Mapping[str, _Inputs]) -> list[FinishedRun]:
    """Those of other jobs' runs that this one has, too."""
    runs = {run.id: run for each in inputs.values() for run in each.all_runs}
    found = [run for run in finished if run.row["id"] in runs]
    for each in found:
        run, row = runs[each.row["id"]], each.row
        if not each.checkpoint.is_dir():
            raise InputError(f"--reuse: {each.checkpoint} is not there: bring the checkpoints, too")
        task = inputs[run.model].tasks[run.task]
        counts = {
            "n_train": len(task.train[run.data_seed]),
            "n_dev": len(task.dev[run.data_seed].labels),
            "n_eval": len(task.test.labels),
        }
        for name, count in counts.items():
            if row[name] != count:
                raise InputError(
                    f"--reuse={each.folder}: run {run.id} has {name}={row[name]} there and {count} "
                    "here: give the --n_eval and the data of that job"
                )
    return found


def _plans(
    settings: Settings, folder: JobFolder, inputs: Mapping[str, _Inputs], mesh: Mesh
) -> Plans:
    """What is left of an earlier process's plans or, if those do not suit any more, new ones.

    Plans depend on the memory that is free and on what else is planned. Only with the same ones do
    populations go on from their checkpoints, and come to the very same numbers.
    """
    made_for = {"population": settings.population, "mesh": dict(mesh.shape)}
    runs = {run.id: run for each in inputs.values() for run in each.all_runs}
    plans = folder.read_plans(made_for, runs)
    done = folder.rows().keys()
    if plans is None:
        plans = [
            (name, each)
            for of_model in inputs.values()
            for name, of_task in of_model.runs.items()
            for each in plan(
                of_model.tasks[name].train,
                [run for run in of_task if run.id not in done],
                population=settings.population,
                pack_tokens=of_model.pack_tokens[name],
                mesh=mesh,
            )
        ]
        folder.write_plans(made_for, plans)
    return [(name, each) for name, each in plans if not {run.id for run in each.runs} <= done]


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


def _read_starts(settings: Settings) -> dict[str, np.ndarray]:
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


def _starts(starts: Mapping[str, np.ndarray], runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """By run id, the prompts of `_read_starts` for the runs that start there."""
    return {run.id: starts[run.init] for run in runs if run.init in starts}


def _check_cells(model: LanguageModel, runs: Sequence[Run]) -> None:
    """That something reads as each token that a prompt shall be kept to."""
    readable = model.table()[: model.tokenizer.vocab_size]
    targets = {run.target_name: run.target_ids for run in runs if run.constraint != "penalty"}
    for name, ids in targets.items():
        lacking = without_cell(readable, np.asarray(ids))
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
