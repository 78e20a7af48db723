"""`tune`: prompts of one task in one call, with the job's defaults around the trainer."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jax.typing import ArrayLike
from rich.console import Console

from wayward_jax.checkpoints import prompt_digest
from wayward_jax.constraints import CONSTRAINTS, Constraint, ReadingPenalty, hold
from wayward_jax.errors import InputError
from wayward_jax.initialization import STARTS
from wayward_jax.jobs.inputs import check_cells
from wayward_jax.jobs.progress_bar import ProgressReporter
from wayward_jax.jobs.settings import Settings
from wayward_jax.jobs.throughput import ThroughputMeter
from wayward_jax.models import LanguageModel
from wayward_jax.projection import c_proj
from wayward_jax.prompt_files import checked_prompt
from wayward_jax.readings import Method, find_reading
from wayward_jax.runs import Run, RunRecord
from wayward_jax.targets import require_readable, tokenize
from wayward_jax.tasks import TaskData
from wayward_jax.training.examples import encode_task
from wayward_jax.training.memory import busy_tokens, free_bytes, pack_tokens, row_grain
from wayward_jax.training.optimizers import Optimizer
from wayward_jax.training.planning import plan_populations
from wayward_jax.training.progress import StepMetrics
from wayward_jax.training.trainer import score_unprompted, tune_population, with_unprompted


class Records(list[RunRecord]):
    """Records of runs."""

    def to_frame(self) -> pd.DataFrame:
        """A row a run, as in a job's results file, without nested values."""
        nested = ("curve", "correct", "unprompted", "answers", "target_ids", "token_ids", "bos_ids")
        rows = [record.to_json() for record in self]
        return pd.DataFrame([{k: v for k, v in row.items() if k not in nested} for row in rows])


def tune(
    model: LanguageModel,
    task: TaskData,
    target: str | None = None,
    *,
    targets: Mapping[str, str] | Sequence[str | None] | None = None,
    prompt_length: int | None = None,
    constraint: str | Constraint | Method = "penalty",
    gamma: float = 0.03,
    gammas: Sequence[float] | None = None,
    margin: float = 0.01,
    init: str | ArrayLike = "target",
    seed: int = 1,
    seeds: Sequence[int] | None = None,
    steps: int = 160,
    batch_size: int = 4,
    learning_rate: float | Sequence[float] | None = None,
    optimizer: str | Optimizer = "adamw",
    warmup: int = 0,
    weight_decay: float = 0.0,
    keep: str = "last",
    method: str = "direct",
    template: int | None = None,
    truncate: str = "tail",
    n_dev: int = 128,
    n_eval: int = 500,
    population: int | None = None,
    callback: Callable[[StepMetrics], None] | None = None,
    progress: bool = True,
) -> RunRecord | Records:
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
        constraint: a name of `constraints.CONSTRAINTS`, or a `Constraint` of your own; or a
            reading, whose loss then stands in place of the distance: a name that
            `readings.find_reading` takes, or a `readings.Method` of your own.
        gamma: weight of the distance term or of the reading's loss; `cell` and `dual` need none.
        gammas: several of them.
        margin: the part of each cell that stays free, for `cell` and `dual`.
        init: where prompts start: a name of `initialization.STARTS`, a text of L tokens, or an
            array `[L, D]`. A `p_star` starts at `vocab` in place of `target`.
        seed: of the start and the order of examples.
        seeds: several of them.
        steps: optimizer steps.
        batch_size: examples a step.
        learning_rate: its peak, or several. None is 0.03, and 1 with an optimizer of your own,
            whose updates it multiplies.
        optimizer: a name of `optimizers.OPTIMIZERS`, an optax transformation, or a function that
            makes one for a number of steps.
        warmup: steps in which the learning rate of a named optimizer rises to its peak.
        weight_decay: of `adamw`.
        keep: `last` keeps the prompt of the last step, `best` that of the best evaluation on dev.
        method: `direct` or `channel`.
        template: index of the task's template; None is the paper's.
        truncate: the end that is cut from a text that is too long, `tail` or `head`.
        n_dev: dev examples, by which prompts are chosen; 0 is all of them.
        n_eval: test examples that are evaluated; 0 is all of them.
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
    if isinstance(targets, str):
        raise InputError("targets", targets, "give a list of texts, or a single text as --target")
    texts = _by_name([target] if targets is None else targets)
    weights = [gamma] if gammas is None else list(gammas)
    seed_list = [seed] if seeds is None else list(seeds)
    if learning_rate is None:
        learning_rate = 0.03 if isinstance(optimizer, str) else 1.0
    rates = [float(rate) for rate in np.atleast_1d(learning_rate)]
    kinds, held_by = _constraints(constraint, model)
    if template is None:
        template = task.task.default_template
    # A job's checks of its flags, on the same arguments.
    _check(
        gamma=weights,
        margin=margin,
        seeds=seed_list,
        steps=steps,
        batch_size=batch_size,
        learning_rate=rates,
        optimizer=optimizer if isinstance(optimizer, str) else "adamw",
        warmup=warmup,
        weight_decay=weight_decay,
        keep=keep,
        method=method,
        template=template,
        truncate=truncate,
        n_dev=n_dev,
        n_eval=n_eval,
        population="auto" if population is None else population,
        prompt_length=[] if prompt_length is None else [prompt_length],
    )
    start, starts = _start(init, model)
    if isinstance(kinds[held_by], ReadingPenalty):
        margin = 0.0  # there are no cells
    common: dict[str, Any] = {
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
        "template": template,
        "k_shot": task.k_shot,
        "data_seed": task.data_seed,
        "bos_ids": model.bos_ids,
    }
    readable = model.valid_tokens()
    runs: dict[Run, None] = {}  # a p_star has no gamma, so several gammas are one run of it
    for (name, text), weight, rate, number in itertools.product(
        texts.items(), weights, rates, seed_list
    ):
        own = {**common, "learning_rate": rate, "seed": number}
        if text is not None:
            (tokens,) = tokenize({name: text}, model.tokenizer, prompt_length)
            require_readable([tokens], model.tokenizer, readable)
            held = hold(held_by, float(weight), margin)
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
            n_dev=n_dev,
            n_eval=n_eval,
            truncate=truncate,
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


def _check(**arguments: Any) -> None:
    """Raises the `InputError` of a job with these settings, if there is any."""
    texts = {
        name: ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in arguments.items()
    }
    Settings.parse(texts)


def _constraints(
    constraint: str | Constraint | Method, model: LanguageModel
) -> tuple[dict[str, Constraint], str]:
    """All constraints by name, and the name of the one that is asked for."""
    if isinstance(constraint, str) and constraint in CONSTRAINTS:
        return dict(CONSTRAINTS), constraint
    if isinstance(constraint, str):
        constraint = find_reading(constraint, model)
    if isinstance(constraint, Constraint):
        return CONSTRAINTS | {repr(constraint): constraint}, repr(constraint)
    own = ReadingPenalty.of(constraint, model)
    return CONSTRAINTS | {str(constraint): own}, str(constraint)


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
        prompt = checked_prompt(model, init)
    name = f"checkpoint:{prompt_digest(prompt)}"
    return name, {name: prompt}


def _tune_runs(
    model: LanguageModel,
    task: TaskData,
    runs: Sequence[Run],
    *,
    n_dev: int,
    n_eval: int,
    truncate: str,
    population: int | None,
    callback: Callable[[StepMetrics], None] | None,
    console: Console,
    **options: Any,
) -> list[RunRecord]:
    """The records of runs, in order; `options` are those of `tune_population`."""
    mesh = model.mesh
    check_cells(model, runs)
    longest = max(run.prompt_length for run in runs)
    encoded = encode_task(
        model,
        {task.data_seed: task},
        prompt_length=longest,
        method=runs[0].method,
        template=runs[0].template,
        n_dev=n_dev,
        n_eval=n_eval,
        tokens=busy_tokens(mesh),
        truncate=truncate,
        row_grain=row_grain(mesh),
    )
    free = free_bytes(mesh.local_devices)
    plans = plan_populations(
        {task.task.name: encoded.train},
        runs,
        population=population,
        pack_tokens=pack_tokens(model, encoded.train, runs, free),
        mesh=mesh,
        row_grain=row_grain(mesh),
    )
    meter = ThroughputMeter(model.embedding_table().dtype, mesh)
    records: dict[str, RunRecord] = {}
    with ProgressReporter(console) as reporter:
        reporter.planned(sum(plan.runs[0].steps for plan in plans))
        for plan in plans:
            reporter.doing(f"{model.name}, {task.task.name}, {len(plan.runs)} prompts")
            meter.begin(model, encoded, plan)

            def on_steps(found: StepMetrics) -> None:
                reporter.stepped(len(found.task_loss), meter.steps(found))
                if callback is not None:
                    callback(found)

            tuned = tune_population(
                *(model, encoded, plan, mesh),
                device_bytes=free + model.device_nbytes,
                on_steps=on_steps,
                **options,
            )
            records |= {record.id: record for record in tuned}
    unprompted = score_unprompted(model, encoded, plans[0], mesh)
    return with_unprompted([records[run.id] for run in runs], encoded, unprompted)
