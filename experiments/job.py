"""Carries out a job: loads what it needs, tunes its runs, and writes results as they come."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.flags import Settings, as_flags
from experiments.interruption import Interruption
from experiments.job_folder import JobFolder, Plans, of_shard, writing
from experiments.part import part
from experiments.processes import agreed, first, on_first
from experiments.terminal import Watch
from wayward_jax import assets, checkpoints, models, targets, tasks
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
from wayward_jax.sweep import Progress, tune_population
from wayward_jax.targets import Target

RunsOf = Callable[[Settings, str, Sequence[Target]], list[Run]]


def prepare_device(settings: Settings) -> jnp.dtype:
    """Turns JAX's compilation cache on, and says which dtype frozen weights shall have."""
    jax.config.update("jax_compilation_cache_dir", str(settings.cache_dir / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    if settings.dtype != "auto":
        return jnp.dtype(settings.dtype)
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
    """The rows of `results.jsonl`, the tokenizer that reads their ids, and the job's folder."""

    rows: list[dict]
    tokenizer: Tokenizer
    folder: Path


def carry_out(settings: Settings, runs_of: RunsOf, out_dir: Path, watch: Watch) -> Finished:
    """Tunes and evaluates every run of an experiment.

    Writes into `out_dir`, see `JobFolder`, once all input has been found good. What an earlier
    process with the same flags finished there is not done again, and what it had begun goes on from
    the last checkpoint: the rows are the same as if nothing had come between, but for `seconds`.

    Args:
        settings: of the job.
        runs_of: gives the runs of a task for its targets.
        out_dir: new or empty, or of an earlier job with the same flags; of shards, the folder that
            their own are in.
        watch: is told how far the job has come.

    Raises:
        InputError: something given cannot be used, and nothing is written then; or `out_dir` can no
            longer be written, and what was written stays.
        KeyboardInterrupt: it was asked to stop, and has kept how far it had come.
    """
    dtype = prepare_device(settings)

    own = out_dir if settings.shard is None else first(lambda: of_shard(out_dir, settings.shard))
    folder = JobFolder(own, as_flags(settings))
    first(folder.look)
    with agreed():
        inputs = _read(settings, runs_of, watch, dtype)
    interruption = Interruption()

    def save(kept: ProgressCheckpoints, progress: Progress) -> None:
        with writing(out_dir):
            kept.save(progress)

    def keep(kept: ProgressCheckpoints | None, progress: Progress) -> None:
        before = progress.step - len(progress.losses[-1].task)
        every = settings.checkpoint_every
        asked = interruption.asked()
        if asked or progress.step // every > before // every:
            progress = on_host(progress)
            first(lambda: save(kept, progress))
        if asked:
            raise KeyboardInterrupt(f": the same command with --out_dir={out_dir} goes on")

    def on_broken(step: int) -> None:
        watch.note(f"the checkpoint of step {step} is broken: going on from the one before it")

    with on_first(folder.claimed(watch.note)), interruption.heed():
        plans = first(lambda: _plans(settings, folder, inputs))
        watch.planned(sum(each.runs[0].steps for _, each in plans))
        for name, each in plans:
            watch.doing(f"{name}, {len(each.runs)} prompts")
            task = inputs.tasks[name]
            with on_first(folder.in_flight(name, each)) as kept:
                found = tune_population(
                    inputs.model,
                    task,
                    each,
                    inputs.mesh,
                    starts=inputs.starts,
                    since=first(lambda: kept.restore(on_broken)),
                    on_steps=watch.stepped,
                    on_progress=functools.partial(keep, kept),
                )
                first(lambda: folder.add(found, task.test.labels))  # noqa: B023
        rows = first(folder.rows)
    asked_for = {run.id for runs in inputs.runs.values() for run in runs}
    finished = [row for id, row in rows.items() if id in asked_for]
    return Finished(finished, inputs.model.tokenizer, own)


@dataclasses.dataclass(frozen=True, eq=False)
class _Inputs:
    """What a job reads before it starts: runs, examples and tokens a pack by task, for one model.

    `starts` are the prompts that runs start from by their ids, if they are given.
    """

    model: LanguageModel
    mesh: Mesh
    tasks: dict[str, EncodedTask]
    runs: dict[str, list[Run]]
    pack_tokens: dict[str, int]
    starts: dict[str, np.ndarray]


def _read(settings: Settings, runs_of: RunsOf, watch: Watch, dtype: jnp.dtype) -> _Inputs:
    start = _read_start(settings)
    mesh = _mesh(settings)
    fetch = _fetcher(settings)
    watch.doing("fetching and reading")
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
    model = models.load(
        settings.model,
        cache_dir=settings.cache_dir,
        assets_dir=settings.assets_dir,
        dtype=dtype,
        mesh=mesh,
    )
    every = {}
    for name in datasets:
        found = targets.load(
            settings.targets,
            model.tokenizer,
            task=name,
            data_dir=settings.data_dir,
            prompt_length=settings.prompt_length,
        )
        every[name] = runs_of(settings, name, found)
    planned = part(settings, every)
    encoded, fitting, starts = {}, {}, {}
    for name, runs in planned.items():
        if start is not None:
            starts |= _starts(settings, start, runs)
        encoded[name] = encode_task(
            model,
            datasets[name],
            # Of all runs, so that a part of them is tuned and evaluated on the very same texts.
            prompt_length=max(run.prompt_length for run in every[name]),
            method=settings.method,
            template=settings.template,
            n_eval=settings.n_eval,
            tokens=busy_tokens(mesh),
            devices=mesh.shape["data"],
        )
        fitting[name] = pack_tokens(model, encoded[name].train, runs, mesh)
    return _Inputs(model, mesh, encoded, planned, fitting, starts)


def _plans(settings: Settings, folder: JobFolder, inputs: _Inputs) -> Plans:
    """What is left of an earlier process's plans or, if those do not suit any more, new ones.

    Plans depend on the memory that is free and on what else is planned. Only with the same ones do
    populations go on from their checkpoints, and come to the very same numbers.
    """
    made_for = {"population": settings.population, "mesh": dict(inputs.mesh.shape)}
    runs = {run.id: run for of_task in inputs.runs.values() for run in of_task}
    plans = folder.read_plans(made_for, runs)
    done = folder.rows().keys()
    if plans is None:
        plans = [
            (name, each)
            for name, of_task in inputs.runs.items()
            for each in plan(
                inputs.tasks[name].train,
                [run for run in of_task if run.id not in done],
                population=settings.population,
                pack_tokens=inputs.pack_tokens[name],
                mesh=inputs.mesh,
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


def _read_start(settings: Settings) -> np.ndarray | None:
    """The prompt that `--init` names, unless it names a kind of start."""
    if settings.init in STARTS:
        return None
    if not Path(settings.init).expanduser().is_dir():
        raise InputError(
            f"--init={settings.init}: choose one of {', '.join(STARTS)}, or a checkpoint's folder"
        )
    return checkpoints.load_prompt(Path(settings.init).expanduser())


def _starts(settings: Settings, start: np.ndarray, runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """The prompt that `--init` names, for the runs that start there."""
    starting = [run for run in runs if run.init == settings.init]
    for run in starting:
        if len(start) != run.prompt_length:
            raise InputError(
                f"--init={settings.init} has {len(start)} tokens, target {run.target_name} has "
                f"{run.prompt_length}: choose targets of its length or --prompt_length"
            )
    return {run.id: start for run in starting}
