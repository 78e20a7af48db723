"""Carries out a job: loads what it needs, tunes its runs, and writes results as they come."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.flags import Settings, as_flags
from experiments.terminal import Watch
from wayward_jax import assets, checkpoints, models, results, targets, tasks
from wayward_jax.encoded_task import encode_task
from wayward_jax.errors import InputError
from wayward_jax.initialization import STARTS
from wayward_jax.memory import busy_tokens, pack_tokens
from wayward_jax.mesh import make_mesh
from wayward_jax.models.tokenizer import Tokenizer
from wayward_jax.populations import plan
from wayward_jax.runs import Run
from wayward_jax.sweep import tune_population
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
    """The rows of `results.jsonl`, and the tokenizer that reads their ids."""

    rows: list[dict]
    tokenizer: Tokenizer


def carry_out(settings: Settings, runs_of: RunsOf, out_dir: Path, watch: Watch) -> Finished:
    """Tunes and evaluates every run of an experiment.

    Writes into `out_dir`, which is made once all input has been found good: `flags.json`,
    `results.jsonl` (a population's rows at a time), and `checkpoints/<run id>`.

    Args:
        settings: of the job.
        runs_of: gives the runs of a task for its targets.
        out_dir: must be new or empty.
        watch: is told how far the job has come.

    Raises:
        InputError: something given cannot be used; nothing is written then.
    """
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise InputError(f"--out_dir={out_dir} is not empty: name a new folder")
    start = _read_start(settings)
    dtype = prepare_device(settings)
    mesh = _mesh(settings)
    fetch = _fetcher(settings)
    watch.doing("fetching and reading")
    datasets = {
        name: tasks.load(
            name,
            data_dir=settings.data_dir,
            k_shot=settings.k_shot,
            data_seed=settings.data_seed,
            fetch=fetch,
        )
        for name in settings.tasks
    }
    model = models.load(
        settings.model,
        cache_dir=settings.cache_dir,
        assets_dir=settings.assets_dir,
        dtype=dtype,
        mesh=mesh,
    )
    planned, encoded = {}, {}
    for name, data in datasets.items():
        found = targets.load(
            settings.targets,
            model.tokenizer,
            task=name,
            data_dir=settings.data_dir,
            prompt_length=settings.prompt_length,
        )
        planned[name] = runs_of(settings, name, found)
        longest = max(run.prompt_length for run in planned[name])
        _check_start(settings, start, planned[name])
        encoded[name] = encode_task(
            model,
            data,
            prompt_length=longest,
            method=settings.method,
            template=settings.template,
            n_eval=settings.n_eval,
            tokens=busy_tokens(mesh),
            devices=mesh.shape["data"],
        )
    plans = [
        (name, each)
        for name, runs in planned.items()
        for each in plan(
            encoded[name].train,
            runs,
            population=settings.population,
            pack_tokens=pack_tokens(model, encoded[name].train, runs, mesh),
            mesh=mesh,
        )
    ]

    _make(out_dir)
    (out_dir / "flags.json").write_text(json.dumps(as_flags(settings), indent=2) + "\n")
    watch.planned(sum(each.runs[0].steps for _, each in plans))
    rows = []
    for name, each in plans:
        watch.doing(f"{name}, {len(each.runs)} prompts")
        given = start is not None
        starts = {run.id: start for run in each.runs if given and run.init == settings.init}
        found = tune_population(
            model, encoded[name], each, mesh, starts=starts, on_steps=watch.stepped
        )
        for result in found:
            checkpoints.save_prompt(out_dir / "checkpoints" / result.run.id, result.prompt)
        new = [results.to_row(result, encoded[name].test.labels) for result in found]
        results.append(out_dir / "results.jsonl", new)
        rows += new
    return Finished(rows, model.tokenizer)


def _mesh(settings: Settings) -> Mesh:
    sizes = settings.mesh or {"runs": jax.device_count()}
    try:
        return make_mesh(**sizes)
    except ValueError as error:
        raise InputError(f"--mesh: {error}") from error


def _fetcher(settings: Settings) -> Callable[[str], Path]:
    def fetch(name: str) -> Path:
        return assets.fetch(name, cache_dir=settings.cache_dir, assets_dir=settings.assets_dir)

    return fetch


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out_dir={folder} cannot be made ({error.strerror}): name a folder that can"
        ) from error


def _read_start(settings: Settings) -> np.ndarray | None:
    """The prompt that `--init` names, unless it names a kind of start."""
    if settings.init in STARTS:
        return None
    if not Path(settings.init).expanduser().is_dir():
        raise InputError(
            f"--init={settings.init}: choose one of {', '.join(STARTS)}, or a checkpoint's folder"
        )
    return checkpoints.load_prompt(Path(settings.init).expanduser())


def _check_start(settings: Settings, start: np.ndarray | None, runs: Sequence[Run]) -> None:
    for run in runs:
        if start is not None and run.init == settings.init and len(start) != run.prompt_length:
            raise InputError(
                f"--init={settings.init} has {len(start)} tokens, target {run.target_name} has "
                f"{run.prompt_length}: choose targets of its length or --prompt_length"
            )
