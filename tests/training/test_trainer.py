"""Whole runs on a task of one deciding word."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import toy_models
from wayward_jax.sharding import make_mesh
from wayward_jax.tasks import encode
from wayward_jax.training.evaluation import predictions, start_scoring
from wayward_jax.training.examples import encode_task
from wayward_jax.training.planning import plan_populations
from wayward_jax.training.scoring import plan_scoring
from wayward_jax.training.trainer import score_unprompted, tune_population

pytestmark = pytest.mark.usefixtures("one_shape")

STEPS = 200


@pytest.fixture(scope="module")
def task(model):
    return encode_task(
        model,
        {100: toy_models.toy_data()},
        prompt_length=6,
        template=0,
        n_dev_subset=10,
        tokens=200,
    )


@pytest.fixture(scope="module")
def small_task(task):
    """The same training examples, and few others."""
    return dataclasses.replace(task, dev=task.dev_subset, test=task.dev_subset[100])


@pytest.fixture(scope="module")
def runs(model):
    return toy_models.toy_runs(model, steps=STEPS)


@pytest.fixture(scope="module")
def told():
    """The metrics that `on_steps` was called with."""
    return []


@pytest.fixture(scope="module")
def saved():
    """The number of steps that `on_steps` had told of at each call of `on_progress`, by step."""
    return {}


@pytest.fixture(scope="module")
def results(model, task, runs, told, saved):
    def on_progress(progress):
        saved[progress.step] = sum(len(steps.task_loss) for steps in told)

    return tuned(model, task, runs, on_steps=told.append, on_progress=on_progress)


def tuned(model, task, runs, pack_tokens=10**6, num_evals=2, **options):
    """The results of all runs in one population, in one pack unless `pack_tokens` are few."""
    mesh = make_mesh()
    (own,) = plan_populations(
        {"toy": task.train},
        runs,
        population=len(runs),
        pack_tokens=pack_tokens,
        mesh=mesh,
        num_evals=num_evals,
    )
    return tune_population(model, task, own, mesh, **options)


@pytest.mark.slow
def test_unconstrained_prompts_learn_the_task(results):
    assert min(result.accuracy for result in results[3:]) > 0.75
    assert all(result.curve[-1].task_loss < result.curve[0].task_loss for result in results)


@pytest.mark.slow
def test_steps_are_told_before_a_checkpoint_waits_for_the_evaluation_after_them(results, saved):
    for point in results[0].curve:
        assert saved[point.step] == point.step


@pytest.mark.slow
def test_constrained_prompts_read_as_their_target(results, runs):
    for result in results[:2]:
        assert result.text == toy_models.TARGET
        assert result.token_ids == runs[0].target_ids
        assert result.prompt_f1 == result.token_f1 == 1
    assert results[2].token_f1 < 1
    assert results[1].distance < results[0].distance < results[2].distance


@pytest.mark.slow
def test_a_run_without_target_is_not_compared_with_one(results):
    for result in results[3:]:
        assert result.distance is result.prompt_f1 is result.token_f1 is None


@pytest.mark.slow
@pytest.mark.parametrize("init", ["vocab", "random"])
def test_without_a_constraint_all_targets_have_the_prompt_that_has_none(model, small_task, init):
    """Runs of one start and seed: `experiments.grid` trains one of them for all targets."""
    held, *_ = toy_models.toy_runs(model, steps=20)
    free = dataclasses.replace(held, gamma=0.0, init=init)
    other = dataclasses.replace(free, target_name="other", target_ids=free.target_ids[::-1])
    alone = dataclasses.replace(free, target_name="p_star", target_text="", target_ids=())
    runs = [held, alone, free, other, dataclasses.replace(free, seed=2)]
    _, *same, elsewhere = (result.prompt for result in tuned(model, small_task, runs))
    for prompt in same[1:]:
        np.testing.assert_allclose(prompt, same[0], atol=1e-5)
    assert np.abs(elsewhere - same[0]).max() > 0.1


@pytest.mark.slow
def test_results_are_of_their_runs_and_complete(results, runs, model, task):
    assert [result.run for result in results] == runs
    prompts = np.stack([np.pad(r.prompt, [(0, 6 - len(r.prompt)), (0, 0)]) for r in results])
    lengths = [run.prompt_length for run in runs]
    scoring = plan_scoring([task.test] * len(runs), lengths, 1, 1)
    losses = start_scoring(model, jnp.asarray(prompts), scoring, make_mesh())
    for result, expected in zip(results, predictions(losses, scoring), strict=True):
        assert result.prompt.shape == (result.run.prompt_length, toy_models.WIDTH)
        assert len(result.token_ids) == result.run.prompt_length
        assert (result.n_train, result.n_dev, result.n_eval) == (40, 30, 50)
        np.testing.assert_array_equal(result.correct, expected == task.test.labels)
        assert result.accuracy == np.mean(expected == task.test.labels)
        assert result.diverged_at is None
        assert [point.step for point in result.curve] == [STEPS // 2, STEPS]
        assert result.curve[-1].task_loss == result.task_loss


@pytest.fixture(scope="module")
def adaptive(model, task):
    """Two runs that leave their cells, and one that stays where it starts, in its own."""
    free, still = toy_models.toy_runs(model, steps=100)[:2]
    held = {"constraint": "dual", "gamma": 1.0, "margin": 0.01}
    runs = [dataclasses.replace(free, **held, init=init) for init in ("vocab", "target")]
    return tuned(model, task, [*runs, dataclasses.replace(still, **held, learning_rate=0.0)])


@pytest.mark.slow
def test_a_gamma_that_is_found_is_near_the_least_that_suffices_from_the_first_step(
    model, task, adaptive
):
    """The least of constant gammas, to a factor of two; docs/design.md has these figures."""
    both = adaptive[:2]
    assert [(found.gamma_found, found.in_cells) for found in both] == [("suffices", True)] * 2
    free = toy_models.toy_runs(model, steps=100)[0]
    factors = [2.0**k for k in range(-6, 3)]
    constant = [
        dataclasses.replace(free, init=found.run.init, gamma=float(found.final_gamma * factor))
        for found in both
        for factor in factors
    ]
    reads = [each.token_f1 == 1 for each in tuned(model, task, constant)]
    for of_run in np.reshape(reads, (2, len(factors))):
        least = of_run.argmax()
        assert of_run[least:].all()
        assert 1 / 16 <= factors[least] <= 4


@pytest.mark.slow
def test_a_gamma_that_was_not_needed_is_not_called_the_least(adaptive):
    found = adaptive[2]
    assert (found.gamma_found, found.in_cells) == ("never needed", True)
    assert found.final_gamma < 1


def test_examples_are_scored_without_any_prompt_as_by_plain_passes(model, theirs):
    torch = pytest.importorskip("torch")
    data = toy_models.toy_data()
    task = encode_task(model, {100: data}, prompt_length=6, template=0, tokens=200)
    nothing = torch.zeros(0, toy_models.WIDTH)
    expected = [
        [
            toy_models.published_nll(theirs, nothing, *sequence).item()
            for sequence in zip(*example, strict=True)
        ]
        for example in encode(data.task, data.test.texts, model.tokenizer, template=0)
    ]
    (own,) = plan_populations(
        {"toy": task.train},
        toy_models.toy_runs(model, steps=2),
        population=5,
        pack_tokens=100,
        mesh=make_mesh(),
    )
    found = score_unprompted(model, task, own, make_mesh())
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_digest_tells_examples_apart(model):
    data = toy_models.toy_data()

    def digest(changed, **options):
        return encode_task(model, {100: changed}, prompt_length=6, template=0, **options).digests

    first = digest(data)
    assert digest(toy_models.toy_data()) == first
    flipped = dataclasses.replace(data.test, labels=1 - data.test.labels)
    shorter = data.dev.take(np.arange(5))
    others = [
        digest(dataclasses.replace(data, test=flipped)),
        digest(dataclasses.replace(data, dev=shorter)),
        digest(dataclasses.replace(data, train=data.dev)),
        digest(data, method="channel"),
        digest(data, n_dev=7),
        digest(data, n_eval=7),
    ]
    assert len({each[100] for each in (first, *others)}) == 7


@pytest.mark.slow
def test_what_is_told_of_all_steps_adds_up_to_the_curves(results, told):
    assert sum(len(steps.task_loss) for steps in told) == STEPS
    assert all(steps.cost.tokens > 0 for steps in told)
    for name in ("task_loss", "distance"):
        halves = np.concatenate([getattr(steps, name) for steps in told]).reshape(2, 100, 5)
        for r, result in enumerate(results):
            known = [getattr(point, name) for point in result.curve]
            found = halves[..., r].mean(axis=1)
            if known[0] is None:
                assert np.isnan(found).all()
            else:
                np.testing.assert_allclose(found, known, rtol=1e-5)


@pytest.mark.slow
def test_a_run_alone_ends_with_the_same_prompt(results, runs, model, small_task):
    (alone,) = tuned(model, small_task, runs[1:2])
    np.testing.assert_allclose(alone.prompt, results[1].prompt, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_results_are_the_same_from_several_packs(results, runs, model, task):
    """Each pack has two runs, the last one a run fewer."""
    again = tuned(model, task, runs, pack_tokens=100)
    for one, other in zip(results, again, strict=True):
        assert one.run == other.run
        assert (one.text, one.token_ids) == (other.text, other.token_ids)
        np.testing.assert_allclose(one.prompt, other.prompt, rtol=0, atol=1e-3)
        np.testing.assert_allclose(one.task_loss, other.task_loss, rtol=1e-2)


@pytest.mark.slow
def test_given_starts_hold_and_chunks_end_at_the_curves_points(runs, model, small_task):
    """Without a learning rate a prompt stays where it started."""
    still = [dataclasses.replace(run, steps=5, learning_rate=0.0) for run in runs]
    still[3] = dataclasses.replace(still[3], init="given")
    given = np.random.default_rng(0).normal(size=(6, toy_models.WIDTH)).astype(np.float32)
    told = []
    results = tuned(
        model,
        small_task,
        still,
        starts={"given": given},
        on_steps=lambda steps: told.append(len(steps.task_loss)),
    )
    np.testing.assert_array_equal(results[3].prompt, given)
    assert (results[4].prompt != given).any()
    assert results[1].token_ids == runs[1].target_ids
    assert results[1].distance == 0
    assert [point.step for point in results[1].curve] == [2, 5]
    assert sum(told) == 5
    assert 2 in np.cumsum(told)


@pytest.mark.slow
def test_a_curve_has_no_more_points_than_steps(model, small_task):
    run = dataclasses.replace(toy_models.toy_runs(model)[0], steps=1)
    (result,) = tuned(model, small_task, [run], num_evals=4)
    assert [point.step for point in result.curve] == [1]
    assert np.isfinite(result.curve[0].task_loss)


@pytest.mark.slow
def test_runs_on_different_samples_are_tuned_and_judged_on_their_own(model):
    """The second together as alone; its sample's labels are the wrong way round."""
    right = toy_models.toy_data()
    wrong = dataclasses.replace(
        right,
        train=dataclasses.replace(right.train, labels=1 - right.train.labels),
        dev=dataclasses.replace(right.dev.take(range(20)), labels=1 - right.dev.labels[:20]),
    )
    task = encode_task(model, {100: right, 13: wrong}, prompt_length=6, template=0, tokens=200)
    run = dataclasses.replace(toy_models.toy_runs(model, steps=STEPS)[3], k_shot=20)
    runs = [run, dataclasses.replace(run, data_seed=13)]
    results = tuned(model, task, runs)
    assert [(result.n_train, result.n_dev) for result in results] == [(40, 30), (40, 20)]
    assert min(result.dev_accuracy for result in results) > 0.75
    assert results[1].accuracy < 0.25
    (alone,) = tuned(model, task, runs[1:])
    np.testing.assert_allclose(alone.task_loss, results[1].task_loss, rtol=1e-2)
    assert abs(alone.dev_accuracy - results[1].dev_accuracy) < 0.1
