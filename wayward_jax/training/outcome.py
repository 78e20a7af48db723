"""The records of a population that is tuned: its prompts chosen, evaluated and read."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from wayward_jax import metrics
from wayward_jax.constraints import BY_CONSTRUCTION
from wayward_jax.models import LanguageModel
from wayward_jax.objective import distance
from wayward_jax.projection import c_proj
from wayward_jax.provenance import Provenance
from wayward_jax.readings import ReadTokens
from wayward_jax.runs import PROMPT, TEXT, Answers, CurvePoint, Run, RunRecord
from wayward_jax.sharding import on_host
from wayward_jax.training.evaluation import answers, nll, predictions, start_scoring
from wayward_jax.training.examples import EncodedTask
from wayward_jax.training.population import PopulationPlan
from wayward_jax.training.progress import TrainProgress
from wayward_jax.training.reading import decode_readings, reading_name
from wayward_jax.training.scoring import Scoring, plan_for_runs
from wayward_jax.training.shown import Shown
from wayward_jax.training.step import Population, TrainState


def make_records(
    model: LanguageModel,
    task: EncodedTask,
    subset: Scoring,
    plan: PopulationPlan,
    population: Population,
    progress: TrainProgress,
    mesh: Mesh,
) -> list[RunRecord]:
    """Evaluates the prompts of a population that is tuned, and makes a record of each run.

    Args:
        model: the frozen model.
        task: its examples.
        subset: how the dev subsets were scored during training.
        plan: R runs and how they were computed.
        population: what they were tuned with.
        progress: after the last step.
        mesh: that the plan was made for.

    Returns:
        R records with their prompts, in order, without their seconds and without what
        `trainer.with_unprompted` adds.
    """
    runs, state = plan.runs, progress.state
    readings = [decode_readings(model, ids, plan) for ids in progress.read]
    curves = _curves(subset, plan, progress, readings)
    kept = [_kept_point(run, curve) for run, curve in zip(runs, curves, strict=True)]
    prompts = _kept_prompts(plan, progress, kept)

    dev, test, shown = (
        plan_for_runs(each, plan) for each in (task.dev, task.test, task.shown.scored)
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
    """Says what is known of an adaptive gamma, see `RunRecord` and `AdaptiveGammaState`."""
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
