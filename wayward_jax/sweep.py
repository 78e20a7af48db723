"""Tunes and evaluates any runs of one task over one frozen model, a population at a time."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from wayward_jax import metrics
from wayward_jax.batching import Batch, example_order, spread, to_batch, widths
from wayward_jax.encoded_task import EncodedTask
from wayward_jax.evaluation import predict
from wayward_jax.initialization import STARTS
from wayward_jax.models import LanguageModel
from wayward_jax.objective import distance
from wayward_jax.projection import c_proj, d_proj
from wayward_jax.runs import Run
from wayward_jax.tuning import Population, TuningState, start, tune

# Longer rows attend in vain across examples, shorter ones are unevenly filled.
EXAMPLES_A_ROW = 4


@dataclasses.dataclass(frozen=True)
class Point:
    """A run seen on its way: after `step` steps, with the losses averaged since the last point."""

    step: int
    task_loss: float
    distance: float | None
    dev_accuracy: float
    prompt_f1: float | None


@dataclasses.dataclass(frozen=True)
class Reading:
    """A prompt as its nearest tokens, compared with the run's target (None without one).

    Attributes:
        ids: `d_proj` of the prompt, L tokens.
        text: their text.
        prompt_f1: F1 of the text's words (the paper's).
        token_f1: F1 of the tokens.
    """

    ids: tuple[int, ...]
    text: str
    prompt_f1: float | None
    token_f1: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What became of a run.

    Attributes:
        run: its definition.
        prompt: `[L, D]` float32.
        reading: what the prompt reads as.
        distance: mean squared distance to the target's embeddings; None without a target.
        task_loss: mean training loss over the curve's last stretch.
        predictions: `[n_eval]` labels predicted for the test examples.
        accuracy: on the test examples.
        macro_f1: on the test examples.
        dev_accuracy: on the dev examples; what choices between runs go by.
        n_train: training examples.
        n_dev: dev examples.
        n_eval: test examples.
        curve: the run on its way.
        diverged_at: the step at which its loss or gradient was no longer finite, from which on
            its prompt stayed as it was; None if that never happened.
        seconds: the run's share of its population's time.
    """

    run: Run
    prompt: np.ndarray
    reading: Reading
    distance: float | None
    task_loss: float
    predictions: np.ndarray
    accuracy: float
    macro_f1: float
    dev_accuracy: float
    n_train: int
    n_dev: int
    n_eval: int
    curve: tuple[Point, ...]
    diverged_at: int | None
    seconds: float


def populations(runs: Sequence[Run], size: int) -> Iterator[list[Run]]:
    """Groups runs that can be tuned in one program, at most `size` at a time.

    They share the number of steps, the batch size and the examples; the rest differs as it may.
    Runs of like prompt length stand together, which saves padding.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        shared = (run.steps, run.batch_size, run.method, run.template, run.k_shot, run.data_seed)
        groups.setdefault(shared, []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: run.prompt_length)
        for first in range(0, len(group), size):
            yield group[first : first + size]


def tune_population(
    model: LanguageModel,
    task: EncodedTask,
    runs: Sequence[Run],
    *,
    starts: Mapping[str, np.ndarray] = MappingProxyType({}),
    points: int = 4,
    chunk: int = 5,
    on_steps: Callable[[int, np.ndarray], None] = lambda steps, task_loss: None,
) -> list[Result]:
    """Tunes and evaluates the runs of one of the `populations`, all at once.

    Args:
        model: the frozen model.
        task: its examples.
        runs: R runs.
        starts: by run id, prompts of the run's own `[L, D]` to start from, not at `run.init`.
        points: how often the training curve is measured.
        chunk: the most steps between two reports of progress.
        on_steps: is told, after each chunk, its steps and the runs' last task losses `[R]`.

    Returns:
        R results, in order.
    """
    began = time.perf_counter()
    steps = runs[0].steps
    table = model.table()
    population = _population(runs)
    state = start(_starts(runs, np.asarray(table, np.float32), starts), steps)

    curves: list[list[Point]] = [[] for _ in runs]
    # The last of these is the last step, so its readings are the results', too.
    measured = [round(steps * (i + 1) / points) for i in range(points)]
    since: list[np.ndarray] = []
    for last, batches in _batches(task, runs, chunk, measured):
        state, losses = tune(model.module, model.params, population, state, batches, steps)
        since.append(np.stack([losses.task, losses.distance]))  # [2, n, R]
        on_steps(losses.task.shape[0], since[-1][0, -1])
        if last in measured:
            task_loss, far = np.concatenate(since, axis=1).mean(axis=1)
            since.clear()
            right = predict(model, state.prompts, population.mask, task.curve) == task.curve.labels
            readings = _readings(model, table, state, runs)
            for r, reading in enumerate(readings):
                point = Point(
                    step=last,
                    task_loss=float(task_loss[r]),
                    distance=float(far[r]) if runs[r].target_ids else None,
                    dev_accuracy=float(right[r].mean()),
                    prompt_f1=reading.prompt_f1,
                )
                curves[r].append(point)

    dev = predict(model, state.prompts, population.mask, task.dev)
    test = predict(model, state.prompts, population.mask, task.test)
    far = distance(state.prompts, c_proj(table, population.targets), population.mask)
    seconds = (time.perf_counter() - began) / len(runs)
    return [
        Result(
            run=run,
            prompt=np.asarray(state.prompts[r, : run.prompt_length]),
            reading=reading,
            distance=float(far[r]) if run.target_ids else None,
            task_loss=curves[r][-1].task_loss,
            predictions=test[r],
            accuracy=metrics.accuracy(test[r], task.test.labels),
            macro_f1=metrics.macro_f1(test[r], task.test.labels),
            dev_accuracy=metrics.accuracy(dev[r], task.dev.labels),
            n_train=len(task.train),
            n_dev=len(task.dev.labels),
            n_eval=len(task.test.labels),
            curve=tuple(curves[r]),
            diverged_at=int(state.diverged_at[r]) if state.diverged_at[r] >= 0 else None,
            seconds=seconds,
        )
        for r, (run, reading) in enumerate(zip(runs, readings, strict=True))
    ]


def _population(runs: Sequence[Run]) -> Population:
    return Population(
        targets=jnp.asarray(_padded([np.asarray(run.target_ids, np.int32) for run in runs], runs)),
        mask=jnp.asarray(_padded([np.ones(run.prompt_length, bool) for run in runs], runs)),
        gamma=jnp.asarray([run.gamma for run in runs], jnp.float32),
        learning_rate=jnp.asarray([run.learning_rate for run in runs], jnp.float32),
    )


def _starts(runs: Sequence[Run], table: np.ndarray, given: Mapping[str, np.ndarray]) -> jax.Array:
    vectors = [given[run.id] if run.id in given else STARTS[run.init](run, table) for run in runs]
    return jnp.asarray(_padded(vectors, runs), jnp.float32)


def _padded(arrays: Sequence[np.ndarray], runs: Sequence[Run]) -> np.ndarray:
    """Stacks arrays of `[<= L, ...]` as `[R, max L, ...]`, padded with zeros at the end."""
    length = max(run.prompt_length for run in runs)
    return np.stack([np.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in arrays])


def _batches(
    task: EncodedTask, runs: Sequence[Run], chunk: int, stops: Sequence[int]
) -> Iterator[tuple[int, Batch]]:
    """Batches `[n, R, N, S]` of equally many steps n <= chunk, which end at every stop.

    With each comes the number of its last step.
    """
    steps, batch_size = runs[0].steps, runs[0].batch_size
    n_rows = -(-batch_size // EXAMPLES_A_ROW)
    n = max(n for n in range(1, chunk + 1) if all(stop % n == 0 for stop in stops))
    orders = [
        example_order(len(task.train), steps * batch_size, run.seed).reshape(steps, batch_size)
        for run in runs
    ]
    rows = [
        [row for step in order for row in spread([task.train[i] for i in step], n_rows)]
        for order in orders
    ]
    slots, predictions = widths(row for run_rows in rows for row in run_rows)
    for first in range(0, steps, n):
        here = slice(first * n_rows, (first + n) * n_rows)
        batches = [to_batch(run_rows[here], slots, predictions) for run_rows in rows]
        yield (
            first + n,
            jax.tree.map(
                lambda *x: np.stack([y.reshape(n, n_rows, -1) for y in x], axis=1), *batches
            ),
        )


def _readings(
    model: LanguageModel, table: jax.Array, state: TuningState, runs: Sequence[Run]
) -> list[Reading]:
    nearest = np.asarray(d_proj(table, state.prompts, model.readable()))
    readings = []
    for run, ids in zip(runs, nearest.tolist(), strict=True):
        ids = tuple(ids[: run.prompt_length])
        text = model.tokenizer.decode(ids)
        aimed = bool(run.target_ids)
        readings.append(
            Reading(
                ids=ids,
                text=text,
                prompt_f1=metrics.prompt_f1(text, run.target_text) if aimed else None,
                token_f1=metrics.token_f1(ids, run.target_ids) if aimed else None,
            )
        )
    return readings
