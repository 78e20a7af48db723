"""The library in a few calls: load, tune, read, evaluate, and the loss itself.

The functions here put defaults around those of the other modules: the cache folder, the devices,
and the number of tokens that go through the model at once are chosen as for a job.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.sharding import Mesh
from jax.typing import ArrayLike, DTypeLike
from rich.console import Console

from wayward_jax import assets, metrics, models, objective, tasks
from wayward_jax.checkpoints import prompt_digest
from wayward_jax.constraints import CONSTRAINTS, Constraint, hold
from wayward_jax.errors import InputError
from wayward_jax.initialization import STARTS
from wayward_jax.jobs.progress_bar import ProgressReporter
from wayward_jax.jobs.settings import default_cache_dir
from wayward_jax.jobs.throughput import ThroughputMeter
from wayward_jax.models import LanguageModel
from wayward_jax.packing import (
    PackedBatch,
    fitting_shape,
    gold_segments,
    pack_segments,
    row_sizes,
)
from wayward_jax.projection import METRICS, c_proj
from wayward_jax.readings import Reading, read_prompts
from wayward_jax.runs import KEEP, Run, RunRecord
from wayward_jax.sharding import make_mesh
from wayward_jax.targets import load_texts, tokenize
from wayward_jax.tasks import TaskData
from wayward_jax.training.evaluation import score_prompts
from wayward_jax.training.examples import encode_task
from wayward_jax.training.memory import busy_tokens, pack_tokens, row_grain
from wayward_jax.training.optimizers import Optimizer
from wayward_jax.training.planning import plan_populations
from wayward_jax.training.progress import StepMetrics
from wayward_jax.training.trainer import tune_population


def load_model(
    name: str,
    *,
    cache_dir: Path | None = None,
    assets_dir: Path | None = None,
    dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
) -> LanguageModel:
    """Loads a frozen language model; built-in models and models of the hub are fetched.

    Args:
        name: see `models.load`; `smollm2-135m` is built in.
        cache_dir: keeps fetched and converted models; None is the user's cache folder.
        assets_dir: a folder with the files of built-in models, to use no network.
        dtype: of the weights; None is bfloat16 on accelerators and float32 on CPU.
        mesh: devices that its prompts will be tuned on; None is all of them, for different runs.

    Raises:
        InputError: there is no such model, or it cannot be used.
    """
    return models.load(
        name,
        cache_dir=cache_dir or default_cache_dir(),
        assets_dir=assets_dir,
        dtype=dtype or models.default_dtype(),
        mesh=mesh or make_mesh(runs=jax.device_count()),
    )


def load_task(
    name: str,
    *,
    data_dir: Path | None = None,
    k_shot: int = -1,
    data_seed: int = 100,
    cache_dir: Path | None = None,
    assets_dir: Path | None = None,
) -> TaskData:
    """Loads a task with its train, dev and test examples.

    Args:
        name: see `tasks.load`; `reviews` and `plots` are built in.
        data_dir: the folder of data sets, for tasks that are not built in.
        k_shot: training examples a class; -1 is all of them.
        data_seed: of the choice of training examples.
        cache_dir: keeps fetched files; None is the user's cache folder.
        assets_dir: a folder with the files of built-in tasks, to use no network.

    Raises:
        InputError: there is no such task, or its data cannot be used.
    """
    cache = cache_dir or default_cache_dir()
    return tasks.load(
        name,
        data_dir=data_dir,
        k_shot=k_shot,
        data_seed=data_seed,
        fetch=lambda asset: assets.fetch(asset, cache_dir=cache, assets_dir=assets_dir),
    )


def load_targets(
    spec: str, *, task: str | None = None, data_dir: Path | None = None
) -> dict[str, str]:
    """Loads target texts by name, for instance `instructions:3`.

    Args:
        spec: sets of targets, see `targets.load_texts`.
        task: name of the task, for sets that have texts for each task.
        data_dir: the folder of the paper's files, for sets that are not built in.

    Raises:
        InputError: there is no such set or text.
    """
    return load_texts(spec, task=task, data_dir=data_dir)


class Records(list[RunRecord]):
    """Records of runs."""

    def to_frame(self) -> pd.DataFrame:
        """A row a run, as in a job's results file, without nested values."""
        nested = ("curve", "correct", "target_ids", "token_ids")
        rows = [record.to_json() for record in self]
        return pd.DataFrame([{k: v for k, v in row.items() if k not in nested} for row in rows])


def tune(
    model: LanguageModel,
    task: TaskData,
    target: str | None = None,
    *,
    targets: Mapping[str, str] | Sequence[str | None] | None = None,
    prompt_length: int | None = None,
    constraint: str | Constraint = "penalty",
    gamma: float = 0.1,
    gammas: Sequence[float] | None = None,
    margin: float = 0.01,
    init: str | ArrayLike = "target",
    seed: int = 1,
    seeds: Sequence[int] | None = None,
    steps: int = 120,
    batch_size: int = 8,
    learning_rate: float | Sequence[float] | None = None,
    optimizer: str | Optimizer = "adamw",
    warmup: int = 0,
    weight_decay: float = 0.0,
    keep: str = "last",
    method: str = "direct",
    template: int | None = None,
    n_eval: int = 256,
    population: int | None = None,
    callback: Callable[[StepMetrics], None] | None = None,
    progress: bool = True,
) -> Any:
    """Tunes prompts that solve a task and read as given texts, and evaluates them.

    `target`, `gamma`, `seed` and a single learning rate give one record. With `targets`, `gammas`,
    `seeds` or several learning rates, every combination is a run; the runs are tuned together as
    populations and give `Records`, a list with `to_frame()`.

    Args:
        model: the frozen model.
        task: from `load_task`.
        target: the text that the prompt is to read as; None tunes a `p_star`, without a target.
        targets: several texts, by name or not; None among them is a `p_star`.
        prompt_length: L. Targets are cut to it; it must be given for a `p_star`. None is the length
            of each target.
        constraint: a name of `constraints.CONSTRAINTS`, or a `Constraint` of your own.
        gamma: weight of the distance term; `cell` and `dual` need none.
        gammas: several of them.
        margin: the part of each cell that stays free, for `cell` and `dual`.
        init: where prompts start: a name of `initialization.STARTS`, a text of L tokens, or an
            array `[L, D]`. A `p_star` starts at `vocab` in place of `target`.
        seed: of the start and the order of examples.
        seeds: several of them.
        steps: optimizer steps.
        batch_size: examples a step.
        learning_rate: its peak, or several. None is 0.01, and 1 with an optimizer of your own,
            whose updates it multiplies.
        optimizer: a name of `optimizers.OPTIMIZERS`, an optax transformation, or a function that
            makes one for a number of steps.
        warmup: steps in which the learning rate of a named optimizer rises to its peak.
        weight_decay: of `adamw`.
        keep: `last` keeps the prompt of the last step, `best` that of the best evaluation on dev.
        method: `direct` or `channel`.
        template: index of the task's template; None is the paper's.
        n_eval: examples of dev and of test that are evaluated; 0 is all of them.
        population: the most runs to tune at once; None is as many as keep the devices busy.
        callback: is called with the metrics of every few steps.
        progress: whether to show a progress bar.

    Returns:
        A `RunRecord`, or `Records` in the order targets, gammas, learning rates, seeds.

    Raises:
        InputError: an argument cannot be used.
    """
    if target is not None and targets is not None:
        raise InputError("targets", targets, "give either target or targets")
    texts = _by_name([target] if targets is None else targets)
    weights = [gamma] if gammas is None else list(gammas)
    seed_list = [seed] if seeds is None else list(seeds)
    if learning_rate is None:
        learning_rate = 0.01 if isinstance(optimizer, str) else 1.0
    rates = [float(rate) for rate in np.atleast_1d(learning_rate)]
    kinds = dict(CONSTRAINTS)
    if not isinstance(constraint, str):
        kinds[repr(constraint)] = constraint
        constraint = repr(constraint)
    start, starts = _start(init, model)
    for name, value, allowed in (
        ("constraint", constraint, kinds),
        ("keep", keep, KEEP),
        ("init", start, [*STARTS, *starts]),
    ):
        if value not in allowed:
            raise InputError(name, value, f"choose one of {', '.join(allowed)}")

    common = {
        "model": model.name,
        "model_digest": model.digest,
        "task": task.task.name,
        "steps": steps,
        "batch_size": batch_size,
        "optimizer": optimizer if isinstance(optimizer, str) else "custom",
        "warmup": warmup,
        "weight_decay": weight_decay,
        "keep": keep,
        "method": method,
        "template": task.task.default_template if template is None else template,
        "k_shot": task.k_shot,
        "data_seed": task.data_seed,
    }
    runs: dict[Run, None] = {}  # a p_star has no gamma, so several gammas are one run of it
    for (name, text), weight, rate, number in itertools.product(
        texts.items(), weights, rates, seed_list
    ):
        own = {**common, "learning_rate": rate, "seed": number}
        if text is not None:
            (tokens,) = tokenize({name: text}, model.tokenizer, prompt_length)
            held = hold(constraint, float(weight), margin)
            run = Run.towards(tokens, init=start, **held, **own)
        elif prompt_length is None:
            raise InputError("prompt_length", None, "give it for prompts without a target")
        else:
            p_star_start = "vocab" if start == "target" else start
            run = Run(prompt_length=prompt_length, init=p_star_start, **own)
        if start in starts and starts[start].shape[0] != run.prompt_length:
            raise InputError(
                "init",
                start,
                f"has {len(starts[start])} vectors where the prompt has {run.prompt_length}: give "
                "as many, or --prompt_length",
            )
        runs[run] = None

    records = Records(
        _tune_runs(
            model,
            task,
            list(runs),
            n_eval=n_eval,
            population=population,
            callback=callback,
            console=Console(quiet=not progress),
            starts=starts,
            constraints=kinds,
            optimizer=None if isinstance(optimizer, str) else optimizer,
        )
    )
    single = targets is None and gammas is None and seeds is None and np.ndim(learning_rate) == 0
    return records[0] if single else records


def read(
    model: LanguageModel, prompt: ArrayLike, k: int = 10, *, target: str | None = None
) -> dict[str, Reading]:
    """Reads a prompt by its nearest tokens under every metric.

    Args:
        model: the model that the prompt is for.
        prompt: `[L, D]`.
        k: neighbors of each vector.
        target: a text that the readings are compared with.

    Returns:
        A `Reading` for each of `projection.METRICS`: neighbors, distances, margins and text.

    Raises:
        InputError: the prompt is not an array of finite numbers `[L, D]`.
    """
    vectors = _checked_prompt(model, prompt)
    aim = None if target is None else tokenize({"text": target}, model.tokenizer)[0]
    return {metric: read_prompts(model, [vectors], [aim], metric, k)[0] for metric in METRICS}


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """A prompt on N test examples with C labels.

    Attributes:
        nll: `[N, C]` float32, the mean negative log-likelihood of each label in nats a token.
        predictions: `[N]` int32, the label of lowest `nll`.
        accuracy: of the predictions.
        macro_f1: of the predictions.
    """

    nll: np.ndarray
    predictions: np.ndarray
    accuracy: float
    macro_f1: float


def evaluate(
    model: LanguageModel,
    prompts: Sequence[ArrayLike],
    task: TaskData,
    *,
    n_eval: int = 0,
    method: str = "direct",
    template: int | None = None,
) -> list[Evaluation]:
    """Evaluates prompts on the test examples of a task.

    Args:
        model: the frozen model.
        prompts: `[L, D]` each, of any lengths.
        task: from `load_task`.
        n_eval: test examples, chosen at random; 0 is all of them.
        method: `direct` or `channel`.
        template: index of the task's template; None is the paper's.

    Raises:
        InputError: a prompt is not an array of finite numbers `[L, D]`.
    """
    vectors = [_checked_prompt(model, prompt) for prompt in prompts]
    length = max(map(len, vectors))
    mesh = _mesh_of(model)
    encoded = encode_task(
        model,
        {task.data_seed: task},
        prompt_length=length,
        method=method,
        template=task.task.default_template if template is None else template,
        n_eval=n_eval,
        tokens=busy_tokens(mesh),
        devices=mesh.shape["data"],
        row_grain=row_grain(mesh),
    )
    test = encoded.test
    nll = score_prompts(model, vectors, test, mesh, length=length)
    return [
        Evaluation(
            nll=own,
            predictions=own.argmin(axis=-1),
            accuracy=metrics.accuracy(own.argmin(axis=-1), test.labels),
            macro_f1=metrics.macro_f1(own.argmin(axis=-1), test.labels),
        )
        for own in nll
    ]


def pack(
    model: LanguageModel,
    task: TaskData,
    examples: Sequence[Sequence[int]],
    *,
    prompt_length: int,
    method: str = "direct",
    template: int | None = None,
) -> PackedBatch:
    """Packs training examples of R runs, for `losses`.

    Args:
        model: the frozen model.
        task: from `load_task`.
        examples: for each of the R runs, which of the task's training examples it has.
        prompt_length: L, of each run's prompt.
        method: `direct` or `channel`.
        template: index of the task's template; None is the paper's.
    """
    numbers = sorted({number for own in examples for number in own})
    chosen = task.train.take(numbers)
    encoded = tasks.encode(
        task.task,
        chosen.texts,
        model.tokenizer,
        template=task.task.default_template if template is None else template,
        method=method,
        max_tokens=model.module.config.max_positions - prompt_length,
    )
    segments = dict(zip(numbers, gold_segments(encoded, chosen.labels), strict=True))
    runs = [[segments[number] for number in own] for own in examples]
    lengths = np.full((1, len(runs)), prompt_length)
    longest = max(len(segment.ids) for segment in segments.values())
    shape = min(
        (
            fitting_shape([runs], lengths, slots)
            for slots in row_sizes(prompt_length + longest, row_grain(_mesh_of(model)))
        ),
        key=lambda shape: shape.cost,
    )
    return jax.tree.map(lambda x: x[0], pack_segments([runs], lengths, shape))


def losses(
    model: LanguageModel,
    prompts: jax.Array,
    packed: PackedBatch,
    targets: ArrayLike,
    gamma: ArrayLike,
) -> jax.Array:
    """The losses of R prompts: pure, and differentiable with respect to the prompts.

    Args:
        model: the frozen model.
        prompts: `[R, L, D]`.
        packed: the examples of the R runs, from `pack`.
        targets: `[R, L]`, target tokens.
        gamma: `[R]` or `[]`, weights of the distance term.

    Returns:
        `[R]` float32, `objective.losses`.
    """
    target_ids = jnp.asarray(targets, jnp.int32)
    return objective.losses(model.module, model.params, prompts, packed, target_ids, gamma)


def _by_name(texts: Mapping[str, str] | Sequence[str | None]) -> dict[str, str | None]:
    """Texts by name; a text without a name is its own, and `text` if it is the only one."""
    if isinstance(texts, Mapping):
        return dict(texts)
    if len(texts) == 1:
        return {"text": texts[0]}
    return {str(text): text for text in texts}


def _start(init: str | ArrayLike, model: LanguageModel) -> tuple[str, dict[str, np.ndarray]]:
    """The name of a start, and the prompts that are not known by name alone."""
    if isinstance(init, str) and init in STARTS:
        return init, {}
    if isinstance(init, str):
        ids = np.asarray(model.tokenizer.encode(init), np.int32)
        prompt = np.asarray(c_proj(model.embedding_table(), ids))
    else:
        prompt = _checked_prompt(model, init)
    name = f"checkpoint:{prompt_digest(prompt)}"
    return name, {name: prompt}


def _checked_prompt(model: LanguageModel, prompt: ArrayLike) -> np.ndarray:
    """The prompt as `[L, D]` float32."""
    vectors, width = np.asarray(prompt, np.float32), model.embedding_table().shape[1]
    if vectors.ndim != 2 or vectors.shape[1] != width or not len(vectors):
        raise InputError(
            "prompt", vectors.shape, f"give an array of vectors of {model.name}: [L, {width}]"
        )
    if not np.isfinite(vectors).all():
        raise InputError("prompt", vectors.shape, "holds numbers that are not finite: remove them")
    return vectors


def _mesh_of(model: LanguageModel) -> Mesh:
    """The devices that the model's weights are on."""
    return jax.tree.leaves(model.params)[0].sharding.mesh


def _tune_runs(
    model: LanguageModel,
    task: TaskData,
    runs: Sequence[Run],
    *,
    n_eval: int,
    population: int | None,
    callback: Callable[[StepMetrics], None] | None,
    console: Console,
    **options: Any,
) -> list[RunRecord]:
    """The records of runs, in order; `options` are those of `tune_population`."""
    mesh = _mesh_of(model)
    encoded = encode_task(
        model,
        {task.data_seed: task},
        prompt_length=max(run.prompt_length for run in runs),
        method=runs[0].method,
        template=runs[0].template,
        n_eval=n_eval,
        tokens=busy_tokens(mesh),
        devices=mesh.shape["data"],
        row_grain=row_grain(mesh),
    )
    plans = plan_populations(
        encoded.train,
        runs,
        population=population,
        pack_tokens=pack_tokens(model, encoded.train, runs, mesh),
        mesh=mesh,
        row_grain=row_grain(mesh),
    )
    meter = ThroughputMeter(model.embedding_table().dtype, mesh)
    records: dict[str, RunRecord] = {}
    with ProgressReporter(console) as reporter:
        reporter.planned(sum(plan.runs[0].steps for plan in plans))
        for plan in plans:
            reporter.doing(f"{model.name}, {task.task.name}, {len(plan.runs)} prompts")
            meter.begin(model)

            def on_steps(found: StepMetrics) -> None:
                reporter.stepped(len(found.task_loss), meter.steps(found))
                if callback is not None:
                    callback(found)

            tuned = tune_population(model, encoded, plan, mesh, on_steps=on_steps, **options)
            records |= {record.id: record for record in tuned}
    return [records[run.id] for run in runs]
