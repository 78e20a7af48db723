"""Tunes and evaluates any runs of one task over one frozen model, a population at a time."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from wayward_jax import metrics
from wayward_jax.constraints import Cells, nearest
from wayward_jax.initialization import STARTS
from wayward_jax.models import LanguageModel
from wayward_jax.objective import distance
from wayward_jax.projection import c_proj, d_proj
from wayward_jax.readings import ReadTokens, read_tokens
from wayward_jax.runs import CurvePoint, Run, RunRecord
from wayward_jax.sharding import BY_RUN, on_host, place
from wayward_jax.training.evaluation import EvaluationSet, predictions, start_scoring
from wayward_jax.training.examples import EncodedTask
from wayward_jax.training.flops import StepCost, step_cost
from wayward_jax.training.planning import Plan, batches
from wayward_jax.training.step import (
    BATCH_SPECS,
    STATE_SPECS,
    Losses,
    Population,
    TuningState,
    held,
    start,
    tune,
)

# How fast gammas are found: a rate of one step, times the number of steps.
DUAL_TRAVEL = 30.0


@dataclasses.dataclass(frozen=True, eq=False)
class StepMetrics:
    """StepMetrics that were just taken.

    Attributes:
        task_loss: `[n, R]` float32, each run's at each step.
        distance: `[n, R]` float32, to its target; NaN for runs without one.
        work: what they took to compute; nothing for steps that were taken by an earlier process.
    """

    task_loss: np.ndarray
    distance: np.ndarray
    work: StepCost


@struct.dataclass
class TrainProgress:
    """A population on its way: all that going on takes, and all that its results are made of.

    state: after the steps so far, given up when more are taken.
    losses: of those steps, a chunk after the other.
    scored: at each point of the curves so far, what `evaluation.start_scoring` gave for the dev
        examples of each data seed.
    nearest: at each of them, `d_proj` of the prompts, `[R, L]`.
    """

    state: TuningState
    losses: tuple[Losses, ...] = ()
    scored: tuple[list[list[jax.Array]], ...] = ()
    nearest: tuple[jax.Array, ...] = ()

    @property
    def step(self) -> int:
        """StepMetrics taken."""
        return sum(len(chunk.task) for chunk in self.losses)


def tune_population(
    model: LanguageModel,
    task: EncodedTask,
    plan: Plan,
    mesh: Mesh,
    *,
    starts: Mapping[str, np.ndarray] = MappingProxyType({}),
    since: TrainProgress | None = None,
    on_steps: Callable[[StepMetrics], None] = lambda steps: None,
    on_progress: Callable[[TrainProgress], None] = lambda progress: None,
) -> list[RunRecord]:
    """Tunes and evaluates the runs of a population, all at once.

    The devices are always a chunk of steps ahead of what the host waits for.

    Args:
        model: the frozen model, its weights on the mesh.
        task: its examples.
        plan: R runs and how they are computed, from `populations.plan`.
        mesh: that the plan was made for.
        starts: by run id, prompts of the run's own `[L, D]` to start from, not at `run.init`.
        since: where the same plan was when it was left; the results are as if it never was.
        on_steps: is told of the steps of each chunk.
        on_progress: is told, after each chunk, where the population is. It must not keep the state,
            which the next chunk uses up, but may copy it.

    Returns:
        R results, in order.
    """
    began = time.perf_counter()
    runs, steps = plan.runs, plan.runs[0].steps
    table = model.embedding_table()
    population, state = begin(model, plan, mesh, starts)
    now = TrainProgress(state)
    if since is not None:
        now = since.replace(state=place(since.state, mesh, STATE_SPECS))

    work = StepCost()
    for batch in batches(task.train, plan, now.step):
        before, work = work, step_cost(batch, plan)
        batch = place(batch, mesh, BATCH_SPECS)
        state, losses = tune(model.module, model.params, population, now.state, batch, steps, mesh)
        if now.losses:  # those of the chunk before, for which the wait is short
            on_steps(_steps(now.losses[-1], runs, before))
        now = now.replace(state=state, losses=(*now.losses, losses))
        if now.step in plan.stops:
            scored = _start_scoring_samples(
                model, state.prompts, population.mask, task.dev_subset, plan, mesh
            )
            nearest = d_proj(table, state.prompts, model.valid_tokens())
            now = now.replace(scored=(*now.scored, scored), nearest=(*now.nearest, nearest))
        on_progress(now)
    on_steps(_steps(now.losses[-1], runs, work))

    state = now.state
    of_dev = _start_scoring_samples(model, state.prompts, population.mask, task.dev, plan, mesh)
    of_test = start_scoring(model, state.prompts, population.mask, task.test, mesh)
    dev_accuracies, test = _accuracies(of_dev, task.dev, plan), predictions(of_test, task.test)
    far = distance(state.prompts, c_proj(table, population.targets), population.mask)
    far, prompts, diverged_at, final_gamma = on_host(
        (far, state.prompts, state.diverged_at, state.gamma)
    )
    # The last of these were made at the last step, so they are the results', too.
    readings = [_readings(model, ids, runs) for ids in now.nearest]
    curves = _curves(task, plan, now, readings)
    seconds = (time.perf_counter() - began) / len(runs)
    return [
        RunRecord(
            run=run,
            prompt=prompts[r, : run.prompt_length],
            text=readings[-1][r].text,
            token_ids=readings[-1][r].ids,
            prompt_f1=readings[-1][r].prompt_f1,
            token_f1=readings[-1][r].token_f1,
            distance=float(far[r]) if run.target_ids else None,
            final_gamma=float(final_gamma[r]),
            task_loss=curves[r][-1].task_loss,
            correct=test[r] == task.test.labels,
            accuracy=metrics.accuracy(test[r], task.test.labels),
            macro_f1=metrics.macro_f1(test[r], task.test.labels),
            dev_accuracy=dev_accuracies[r],
            n_train=len(task.train[run.data_seed]),
            n_dev=len(task.dev[run.data_seed].labels),
            n_eval=len(task.test.labels),
            curve=curves[r],
            diverged_at=int(diverged_at[r]) if diverged_at[r] >= 0 else None,
            seconds=seconds,
        )
        for r, run in enumerate(runs)
    ]


def begin(
    model: LanguageModel, plan: Plan, mesh: Mesh, starts: Mapping[str, np.ndarray]
) -> tuple[Population, TuningState]:
    """A population before its first step, on the mesh; `starts` as for `tune_population`."""
    table = on_host(model.embedding_table()).astype(np.float32)
    vectors = [
        starts[run.id] if run.id in starts else STARTS[run.init](run, table)
        for run in plan.padded_runs
    ]
    population = _population(model, plan)
    gamma = jnp.asarray([run.gamma for run in plan.padded_runs], jnp.float32)
    # Hard cells hold from the start.
    prompts, _ = held(model.embedding_table(), population, _padded(vectors, plan), gamma, left=1.0)
    state = start(prompts, gamma, plan.runs[0].steps)
    return place(population, mesh, BY_RUN), place(state, mesh, STATE_SPECS)


def _population(model: LanguageModel, plan: Plan) -> Population:
    runs = plan.padded_runs
    targets = _padded([np.asarray(run.target_ids, np.int32) for run in runs], plan)
    return Population(
        targets=targets,
        mask=_padded([np.ones(run.prompt_length, bool) for run in runs], plan),
        learning_rate=jnp.asarray([run.learning_rate for run in runs], jnp.float32),
        cells=_cells(model, runs, targets),
    )


def _cells(model: LanguageModel, runs: Sequence[Run], targets: jax.Array) -> Cells | None:
    """What holds the runs to their targets, if that takes more than a given gamma for any."""
    if all(run.constraint == "penalty" for run in runs):
        return None
    vocab_size = model.tokenizer.vocab_size
    return Cells(
        nearest=nearest(model.embedding_table()[:vocab_size], targets),
        share=jnp.asarray([1 - run.margin for run in runs], jnp.float32),
        hard=jnp.asarray([run.constraint == "cell" for run in runs]),
        dual_rate=jnp.asarray(
            [DUAL_TRAVEL / run.steps if run.constraint == "dual" else 0 for run in runs],
            jnp.float32,
        ),
        vocab_size=vocab_size,
    )


def _padded(arrays: Sequence[np.ndarray], plan: Plan) -> jax.Array:
    """Stacks arrays of `[<= L, ...]` as `[R, L, ...]`, padded with zeros at the end."""
    length = plan.prompt_length
    return jnp.asarray(
        np.stack([np.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in arrays])
    )


def _steps(losses: Losses, runs: Sequence[Run], work: StepCost) -> StepMetrics:
    task, far = (x[:, : len(runs)] for x in on_host((losses.task, losses.distance)))
    aimed = [bool(run.target_ids) for run in runs]
    return StepMetrics(task, np.where(aimed, far, np.float32(np.nan)), work)


def _start_scoring_samples(
    model: LanguageModel,
    prompts: jax.Array,
    mask: jax.Array,
    sets: Mapping[int, EvaluationSet],
    plan: Plan,
    mesh: Mesh,
) -> list[list[jax.Array]]:
    """`start_scoring` of every sample's set under all prompts, by rising data seed."""
    return [start_scoring(model, prompts, mask, sets[seed], mesh) for seed in plan.data_seeds]


def _accuracies(
    scored: Sequence[list[jax.Array]], sets: Mapping[int, EvaluationSet], plan: Plan
) -> list[float]:
    """Each run's accuracy on the set of its own sample, from `_start_scoring_samples`."""
    predicted = {
        seed: predictions(losses, sets[seed])
        for seed, losses in zip(plan.data_seeds, scored, strict=True)
    }
    return [
        metrics.accuracy(predicted[run.data_seed][r], sets[run.data_seed].labels)
        for r, run in enumerate(plan.runs)
    ]


def _curves(
    task: EncodedTask, plan: Plan, now: TrainProgress, readings: Sequence[list[ReadTokens]]
) -> list[tuple[CurvePoint, ...]]:
    """Each run's curve, from what was set going at the plan's stops."""
    losses = on_host(now.losses)
    task_loss = np.concatenate([chunk.task for chunk in losses])
    far = np.concatenate([chunk.distance for chunk in losses])
    accuracies = [_accuracies(scored, task.dev_subset, plan) for scored in now.scored]
    stretches = list(zip([0, *plan.stops[:-1]], plan.stops, strict=True))
    return [
        tuple(
            CurvePoint(
                step=last,
                task_loss=float(task_loss[first:last, r].mean()),
                distance=float(far[first:last, r].mean()) if run.target_ids else None,
                dev_accuracy=accuracies[i][r],
                prompt_f1=readings[i][r].prompt_f1,
            )
            for i, (first, last) in enumerate(stretches)
        )
        for r, run in enumerate(plan.runs)
    ]


def _readings(model: LanguageModel, nearest: jax.Array, runs: Sequence[Run]) -> list[ReadTokens]:
    return [
        read_tokens(model.tokenizer, ids[: run.prompt_length], run.target)
        for run, ids in zip(runs, on_host(nearest).tolist(), strict=False)
    ]
