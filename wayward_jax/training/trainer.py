"""Tunes and evaluates the runs of a population over one frozen model."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from wayward_jax import metrics
from wayward_jax.constraints import CONSTRAINTS, Constraint
from wayward_jax.models import LanguageModel
from wayward_jax.runs import NOTHING, Run, RunRecord
from wayward_jax.sharding import local_shards, on_host, place, place_part
from wayward_jax.training.calls import iter_calls
from wayward_jax.training.evaluation import answers, score_prompts, start_scoring
from wayward_jax.training.examples import EncodedTask
from wayward_jax.training.flops import StepCost
from wayward_jax.training.optimizers import Optimizer, named_optimizer, resolve_optimizer
from wayward_jax.training.outcome import make_records
from wayward_jax.training.population import PopulationPlan
from wayward_jax.training.prefetch import prefetch
from wayward_jax.training.programs import (
    check_memory,
    compile_together,
    lower_scoring,
    lower_training,
)
from wayward_jax.training.progress import StepMetrics, TrainProgress
from wayward_jax.training.reading import start_reading
from wayward_jax.training.scoring import Scoring, plan_for_runs
from wayward_jax.training.starting import init_population
from wayward_jax.training.step import (
    BATCH_SPECS,
    STATE_SPECS,
    Losses,
    Population,
    TrainState,
    train_steps,
)


def tune_population(
    model: LanguageModel,
    task: EncodedTask,
    plan: PopulationPlan,
    mesh: Mesh,
    *,
    starts: Mapping[str, np.ndarray] = MappingProxyType({}),
    constraints: Mapping[str, Constraint] = MappingProxyType(CONSTRAINTS),
    optimizer: Optimizer | None = None,
    device_bytes: int | None = None,
    resume_from: Mapping[str, Any] | None = None,
    on_steps: Callable[[StepMetrics], None] = lambda metrics: None,
    on_progress: Callable[[TrainProgress], None] = lambda progress: None,
) -> list[RunRecord]:
    """Tunes and evaluates the runs of a population together.

    All programs are compiled before the first step. The devices are always one call of the training
    program, or an evaluation, ahead of the results that the host waits for.

    Args:
        model: the frozen model, its weights on the mesh.
        task: its examples.
        plan: R runs and how they are computed.
        mesh: that the plan was made for.
        starts: prompts `[L, D]` to start from, by the name that `run.init` has for them; all other
            names are those of `initialization.STARTS`.
        constraints: by the names that runs have for them.
        optimizer: of prompts, in place of the one that the runs name.
        device_bytes: memory of each device that programs may take, the weights included; None is
            not compared with what they take.
        resume_from: `TrainProgress.to_tree` of the same plan; the records are as if training had
            never been interrupted.
        on_steps: is called with the metrics of each call's steps.
        on_progress: is called after each call. It must not keep the state, whose buffers the next
            call reuses, but may copy it.

    Returns:
        R records with their prompts, in order, without what `with_unprompted` adds.

    Raises:
        InputError: a program takes more memory than there is.
    """
    began = time.perf_counter()
    runs, steps = plan.runs, plan.runs[0].steps
    transformation = _optimizer(runs[0], optimizer)
    population, state = init_population(model, plan, mesh, transformation, starts, constraints)
    progress = TrainProgress(state)
    if resume_from is not None:
        progress = TrainProgress.from_tree(resume_from, state)
        progress = progress.replace(state=place(progress.state, mesh, STATE_SPECS))

    _compile_programs(
        model, task, plan, population, progress.state, transformation, mesh, device_bytes
    )
    subset = plan_for_runs(task.dev_subset, plan)
    if progress.losses:  # of steps that an earlier process took
        on_steps(_metrics(progress, plan, StepCost()))
    untold: StepCost | None = None  # the cost of the last call, until its metrics are told
    for call in prefetch(iter_calls(task.train, plan, progress.step, local_shards(mesh))):
        state, losses = train_steps(
            model.module,
            model.params,
            population,
            progress.state,
            place_part(call.packs, mesh, BATCH_SPECS),
            call.steps,
            transformation,
            steps,
            mesh,
        )
        if call.steps < plan.steps_per_call:
            losses = jax.tree.map(lambda x, taken=call.steps: x[:taken], losses)
        if untold is not None:  # the host waits for the call before, which is done or nearly so
            on_steps(_metrics(progress, plan, untold))
        progress = progress.replace(state=state, losses=(*progress.losses, losses))
        untold = call.cost
        if progress.step in plan.eval_steps:
            progress = _evaluate(model, subset, plan, population, progress, mesh)
            # The devices are busy with the evaluation, whose time does not count with these steps.
            on_steps(_metrics(progress, plan, untold))
            untold = None
        on_progress(progress)
    records = make_records(model, task, subset, plan, population, progress, mesh)
    seconds = (time.perf_counter() - began) / len(runs)
    return [dataclasses.replace(record, seconds=seconds) for record in records]


def _compile_programs(
    model: LanguageModel,
    task: EncodedTask,
    plan: PopulationPlan,
    population: Population,
    state: TrainState,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    device_bytes: int | None,
) -> None:
    """Compiles all programs of a population; see `tune_population`."""
    sets = [*task.dev_subset.values(), *task.dev.values(), task.test]
    training = [
        lower_training(model, plan, plan.shapes[number], population, state, optimizer, mesh)
        for number in sorted(set(plan.call_shapes))
    ]
    scoring = [
        lower_scoring(model, plan, shape, state.prompts, mesh)
        for shape in dict.fromkeys(each.shape for each in sets)
    ]
    memory = compile_together([*training, *scoring], plan, mesh)
    if device_bytes is not None:
        largest = max(memory[: len(training)]), max(memory[len(training) :])
        check_memory(plan, mesh, *largest, device_bytes)


def score_unprompted(
    model: LanguageModel, task: EncodedTask, plan: PopulationPlan, mesh: Mesh
) -> np.ndarray:
    """Scores the test examples without any prompt: `[n_eval, C]`, see `evaluation.nll`.

    BOS is put before the examples if the model expects it there. The program is the one that scores
    the prompts of a population.

    Args:
        model: the frozen model.
        task: its examples.
        plan: of the population.
        mesh: that the plan was made for.
    """
    nothing = model.with_bos(np.zeros((0, model.embedding_table().shape[1]), np.float32))
    scores = score_prompts(
        model,
        [nothing],
        task.test,
        mesh,
        length=plan.prompt_length,
        places=len(plan.padded_runs),
    )
    return scores[0]


def with_unprompted(
    records: Sequence[RunRecord], task: EncodedTask, scores: np.ndarray
) -> list[RunRecord]:
    """Adds to records what is predicted and answered without any prompt.

    Args:
        records: of runs on the task.
        task: its examples.
        scores: from `score_unprompted`.
    """
    correct = metrics.predict(scores) == task.test.labels
    nothing = {NOTHING: answers(scores[task.shown.numbers], task.shown.labels)}
    return [
        dataclasses.replace(record, unprompted=correct, answers={**record.answers, **nothing})
        for record in records
    ]


def _optimizer(run: Run, optimizer: Optimizer | None) -> optax.GradientTransformation:
    if optimizer is not None:
        return resolve_optimizer(optimizer, run.steps)
    return named_optimizer(run.optimizer, run.steps, run.warmup, run.weight_decay)


def _metrics(progress: TrainProgress, plan: PopulationPlan, cost: StepCost) -> StepMetrics:
    """The metrics of the last call's steps."""
    last: Losses = progress.losses[-1]
    task, distances = (x[:, plan.places] for x in on_host((last.task, last.distance)))
    return StepMetrics(
        step=progress.step,
        run_ids=tuple(run.id for run in plan.runs),
        task_loss=task,
        distance=np.where([run.has_target for run in plan.runs], distances, np.float32(np.nan)),
        cost=cost,
    )


def _evaluate(
    model: LanguageModel,
    subset: Scoring,
    plan: PopulationPlan,
    population: Population,
    progress: TrainProgress,
    mesh: Mesh,
) -> TrainProgress:
    """Starts to score the prompts on their dev subsets, and to read them."""
    prompts = progress.state.prompts
    scored = start_scoring(model, prompts, subset, mesh)
    read = start_reading(model, population, prompts, mesh)
    progress = progress.replace(nll=(*progress.nll, scored), read=(*progress.read, read))
    if any(run.keep == "best" for run in plan.runs):
        # A copy, because the next call reuses the buffers of the state.
        progress = progress.replace(prompts=(*progress.prompts, jnp.copy(prompts)))
    return progress
