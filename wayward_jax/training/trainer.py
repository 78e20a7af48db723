"""Tunes and evaluates the runs of a population over one frozen model."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from wayward_jax import metrics
from wayward_jax.constraints import BY_CONSTRUCTION, CONSTRAINTS, Constraint, ReadingPenalty
from wayward_jax.initialization import STARTS
from wayward_jax.models import LanguageModel
from wayward_jax.objective import distance
from wayward_jax.projection import c_proj, d_proj
from wayward_jax.provenance import Provenance
from wayward_jax.readings import ReadTokens, read_tokens
from wayward_jax.runs import (
    NEAREST_TOKENS,
    NOTHING,
    PROMPT,
    TEXT,
    Answers,
    CurvePoint,
    Run,
    RunRecord,
)
from wayward_jax.sharding import BY_RUN, local_shards, on_host, place, place_part
from wayward_jax.training.evaluation import (
    answers,
    nll,
    predictions,
    score_prompts,
    start_scoring,
)
from wayward_jax.training.examples import EncodedTask
from wayward_jax.training.flops import StepCost
from wayward_jax.training.optimizers import Optimizer, named_optimizer, resolve_optimizer
from wayward_jax.training.planning import PopulationPlan, iter_calls
from wayward_jax.training.prefetch import prefetch
from wayward_jax.training.programs import (
    check_memory,
    compile_together,
    lower_scoring,
    lower_training,
)
from wayward_jax.training.progress import StepMetrics, TrainProgress
from wayward_jax.training.scoring import EvaluationSet, Scoring, plan_scoring
from wayward_jax.training.shown import Shown
from wayward_jax.training.step import (
    BATCH_SPECS,
    STATE_SPECS,
    Losses,
    Population,
    TrainState,
    init_state,
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
    program ahead of the results that the host waits for.

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
    subset = _plan_scoring(task.dev_subset, plan)
    cost = StepCost()
    for call in prefetch(iter_calls(task.train, plan, progress.step, local_shards(mesh))):
        previous_cost, cost = cost, call.cost
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
        if progress.losses:  # the host waits for the call before, which is done or nearly so
            on_steps(_metrics(progress, plan, previous_cost))
        progress = progress.replace(state=state, losses=(*progress.losses, losses))
        if progress.step in plan.eval_steps:
            progress = _evaluate(model, subset, plan, population, progress, mesh)
        on_progress(progress)
    on_steps(_metrics(progress, plan, cost))
    records = _make_records(model, task, subset, plan, population, progress, mesh)
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


def init_population(
    model: LanguageModel,
    plan: PopulationPlan,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    starts: Mapping[str, np.ndarray] = MappingProxyType({}),
    constraints: Mapping[str, Constraint] = MappingProxyType(CONSTRAINTS),
) -> tuple[Population, TrainState]:
    """A population before its first step, on the mesh; arguments as for `tune_population`."""
    runs = plan.padded_runs
    population = describe_population(plan, model.tokenizer.vocab_size, constraints)
    table = on_host(model.embedding_table()).astype(np.float32)
    vectors = [
        np.concatenate(
            [
                table[list(run.bos_ids)],
                starts[run.init] if run.init in starts else STARTS[run.init](run, table),
            ]
        )
        for run in runs
    ]
    state = init_state(
        population,
        model.embedding_table(),
        _padded(vectors, plan),
        optimizer,
        gamma=[run.gamma for run in runs],
        margin=[run.margin for run in runs],
        steps=runs[0].steps,
    )
    return place(population, mesh, BY_RUN), place(state, mesh, STATE_SPECS)


def describe_population(
    plan: PopulationPlan,
    vocab_size: int,
    constraints: Mapping[str, Constraint] = MappingProxyType(CONSTRAINTS),
) -> Population:
    """What the runs of a plan are tuned with, on the host's device; see `tune_population`."""
    runs = plan.padded_runs
    names = sorted({run.constraint for run in runs})
    return Population(
        target_ids=_padded(
            [np.asarray((*run.bos_ids, *run.target_ids), np.int32) for run in runs], plan
        ),
        mask=_padded([np.arange(run.input_length) >= len(run.bos_ids) for run in runs], plan),
        learning_rate=jnp.asarray([run.learning_rate for run in runs], jnp.float32),
        constraint=jnp.asarray([names.index(run.constraint) for run in runs], jnp.int32),
        constraints=tuple(constraints[name] for name in names),
        vocab_size=vocab_size,
    )


def _optimizer(run: Run, optimizer: Optimizer | None) -> optax.GradientTransformation:
    if optimizer is not None:
        return resolve_optimizer(optimizer, run.steps)
    return named_optimizer(run.optimizer, run.steps, run.warmup, run.weight_decay)


def _padded(arrays: Sequence[np.ndarray], plan: PopulationPlan) -> jax.Array:
    """Stacks arrays of `[<= L, ...]` as `[R, L, ...]`, padded with zeros at the end."""
    length = plan.prompt_length
    return jnp.asarray(
        np.stack([np.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in arrays])
    )


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


def _plan_scoring(
    sets: EvaluationSet | Mapping[int, EvaluationSet], plan: PopulationPlan
) -> Scoring:
    """Plans how each run is scored on its set: one for all runs, or by the run's data seed."""
    own = [sets if isinstance(sets, EvaluationSet) else sets[run.data_seed] for run in plan.runs]
    return plan_scoring(
        plan.in_places(own, None), plan.prompt_lengths.tolist(), plan.run_shards, plan.data_shards
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


def start_reading(
    model: LanguageModel, population: Population, prompts: jax.Array, mesh: Mesh
) -> jax.Array:
    """Starts to read prompts, each by the reading that its constraint is about: `[R, L]` int32.

    That is the nearest tokens, if it is no `ReadingPenalty`.
    """
    ids = d_proj(model.embedding_table(), prompts, model.valid_tokens())
    for number, constraint in enumerate(population.constraints):
        if isinstance(constraint, ReadingPenalty):
            own = _read_shards(constraint, model.params, prompts, population.mask, mesh)
            ids = jnp.where((population.constraint == number)[:, None], own, ids)
    return ids


@functools.partial(jax.jit, static_argnames=("constraint", "mesh"))
def _read_shards(
    constraint: ReadingPenalty, params: dict, prompts: jax.Array, mask: jax.Array, mesh: Mesh
) -> jax.Array:
    """`ReadingPenalty.read` of each device's own runs."""
    return jax.shard_map(
        constraint.read,
        mesh=mesh,
        in_specs=(PartitionSpec(), BY_RUN, BY_RUN),
        out_specs=BY_RUN,
        axis_names={"runs", "data"},
        check_vma=False,
    )(params, prompts, mask)


def _make_records(
    model: LanguageModel,
    task: EncodedTask,
    subset: Scoring,
    plan: PopulationPlan,
    population: Population,
    progress: TrainProgress,
    mesh: Mesh,
) -> list[RunRecord]:
    """The records of a population that is tuned, all but their seconds."""
    runs, state = plan.runs, progress.state
    readings = [decode_readings(model, ids, plan) for ids in progress.read]
    curves = _curves(subset, plan, progress, readings)
    kept = [_kept_point(run, curve) for run, curve in zip(runs, curves, strict=True)]
    prompts = _kept_prompts(plan, progress, kept)

    dev, test, shown = (
        _plan_scoring(each, plan) for each in (task.dev, task.test, task.shown.scored)
    )
    dev_nll = start_scoring(model, prompts, dev, mesh)
    test_nll = start_scoring(model, prompts, test, mesh)
    targets = c_proj(model.embedding_table(), population.target_ids)
    text_nll = start_scoring(model, targets, shown, mesh)
    dev_accuracies = _accuracies(dev_nll, dev)
    scores, of_texts = nll(test_nll, test), nll(text_nll, shown)
    predicted = [metrics.predict(own) for own in scores]
    gammas = jnp.asarray([run.gamma for run in plan.padded_runs], jnp.float32)
    never = jnp.zeros(len(gammas), bool)
    found = on_host(
        (
            distance(prompts, targets, population.mask),
            prompts,
            state.diverged_at,
            _in_constraint_states(population, state, "gamma", gammas),
            _in_constraint_states(population, state, "left", never),
            _in_constraint_states(population, state, "outside", never),
        )
    )
    distances, prompts, diverged_at, gammas, left, outside = (x[plan.places] for x in found)
    return [
        RunRecord(
            run=run,
            n_train=len(task.train[run.data_seed]),
            n_dev=len(task.dev[run.data_seed].labels),
            n_eval=len(task.test.labels),
            accuracy=metrics.accuracy(predicted[r], task.test.labels),
            macro_f1=metrics.macro_f1(predicted[r], task.test.labels),
            majority=metrics.majority(task.test.labels),
            correct=predicted[r] == task.test.labels,
            unprompted=None,
            answers=_answers(run, task.shown, scores[r], of_texts[r]),
            dev_accuracy=dev_accuracies[r],
            reading=reading_name(population, plan.places[r]),
            text=readings[kept[r]][r].text,
            token_ids=readings[kept[r]][r].ids,
            prompt_f1=readings[kept[r]][r].prompt_f1,
            token_f1=readings[kept[r]][r].token_f1,
            distance=float(distances[r]) if run.has_target else None,
            final_gamma=float(gammas[r]),
            gamma_found=_gamma_found(left[r], outside[r]) if run.constraint == "dual" else None,
            in_cells=readings[kept[r]][r].ids == run.target_ids
            if run.constraint in BY_CONSTRUCTION
            else None,
            kept_step=curves[r][kept[r]].step,
            task_loss=curves[r][kept[r]].task_loss,
            diverged_at=int(diverged_at[r]) if diverged_at[r] >= 0 else None,
            seconds=0.0,
            curve=curves[r],
            provenance=Provenance.here(model, task.digests[run.data_seed], mesh),
            prompt=prompts[r, len(run.bos_ids) : run.input_length],
        )
        for r, run in enumerate(runs)
    ]


def _answers(run: Run, shown: Shown, prompt: np.ndarray, text: np.ndarray) -> Answers:
    """See `RunRecord.answers`; the scores are those of test examples, and `text` of those shown."""
    scores = {PROMPT: prompt[shown.numbers]}
    if run.has_target:
        scores[TEXT] = text
    return {name: answers(own, shown.labels) for name, own in scores.items()}


def reading_name(population: Population, place: int) -> str:
    """See `RunRecord.reading`."""
    constraint = population.constraints[int(population.constraint[place])]
    return str(constraint.reading) if isinstance(constraint, ReadingPenalty) else NEAREST_TOKENS


def _kept_point(run: Run, curve: Sequence[CurvePoint]) -> int:
    """The evaluation whose prompt a run keeps: the last, or the last of the best on dev."""
    last = len(curve) - 1
    if run.keep == "last":
        return last
    return max(range(len(curve)), key=lambda i: (curve[i].dev_accuracy, i))


def _kept_prompts(plan: PopulationPlan, progress: TrainProgress, kept: Sequence[int]) -> jax.Array:
    """The prompts that the runs keep: `[R, L, D]`."""
    if not progress.prompts:
        return progress.state.prompts
    last = len(progress.prompts) - 1
    padded = np.array(plan.in_places(kept, last))
    prompts = progress.state.prompts
    for number, at_evaluation in enumerate(progress.prompts[:-1]):
        prompts = jnp.where((padded == number)[:, None, None], at_evaluation, prompts)
    return prompts


def _in_constraint_states(
    population: Population, state: TrainState, name: str, default: jax.Array
) -> jax.Array:
    """A field of the states of the runs' constraints: `[R]`, `default` where there is none."""
    for number, constraint_state in enumerate(state.constraint_states):
        found = getattr(constraint_state, name, default)
        default = jnp.where(population.constraint == number, found, default)
    return default


def _gamma_found(left: bool, outside: bool) -> str:
    """What is known of an adaptive gamma, see `RunRecord` and `AdaptiveGammaState`."""
    if not left:
        return "never needed"
    return "too small" if outside else "suffices"


def _accuracies(parts: Sequence[jax.Array], scoring: Scoring) -> list[float]:
    """Each run's accuracy on its set, from `start_scoring`."""
    labels = [own.labels for own in scoring.sets if own is not None]
    return list(map(metrics.accuracy, predictions(parts, scoring), labels))


def _curves(
    subset: Scoring,
    plan: PopulationPlan,
    progress: TrainProgress,
    readings: Sequence[Sequence[ReadTokens]],
) -> list[tuple[CurvePoint, ...]]:
    """Each run's curve."""
    losses = on_host(progress.losses)
    task_loss = np.concatenate([call.task for call in losses])[:, plan.places]
    distances = np.concatenate([call.distance for call in losses])[:, plan.places]
    accuracies = [_accuracies(nll, subset) for nll in progress.nll]
    stretches = list(zip([0, *plan.eval_steps[:-1]], plan.eval_steps, strict=True))
    return [
        tuple(
            CurvePoint(
                step=last,
                task_loss=float(task_loss[first:last, r].mean()),
                distance=float(distances[first:last, r].mean()) if run.has_target else None,
                dev_accuracy=accuracies[i][r],
                prompt_f1=readings[i][r].prompt_f1,
            )
            for i, (first, last) in enumerate(stretches)
        )
        for r, run in enumerate(plan.runs)
    ]


def decode_readings(
    model: LanguageModel, read: jax.Array, plan: PopulationPlan
) -> list[ReadTokens]:
    """Decodes the tokens that the prompts in all places read as, `[R, L]`, for each run."""
    return [
        read_tokens(model.tokenizer, ids[len(run.bos_ids) : run.input_length], run.target)
        for run, ids in zip(plan.runs, on_host(read)[plan.places].tolist(), strict=True)
    ]
