"""Whole runs on a task of one deciding word."""

import dataclasses

import numpy as np
import pytest
import tiny

from wayward_jax.encoded_task import encode_task
from wayward_jax.evaluation import predictions, start_scoring
from wayward_jax.runs import Run
from wayward_jax.sweep import tune_population
from wayward_jax.tasks import Examples, Task, TaskData

TASK = Task("toy", ("bad", "good"), ("%s",), ("terrible", "great"))
TARGET = "w3 w1 w4 w1"
STEPS = 200


def toy_examples(count, seed):
    """Up to three noise words, and then one of two words, which decides the label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count).astype(np.int32)

    def text(label):
        noise = rng.integers(10, 20, rng.integers(0, 4))
        return " ".join(f"w{i}" for i in [*noise, label])

    return Examples(tuple(map(text, labels)), labels)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.pair("gpt2", tmp_path_factory.mktemp("tiny"))[0]


@pytest.fixture(scope="module")
def task(model):
    data = TaskData(TASK, toy_examples(40, 0), toy_examples(30, 1), toy_examples(50, 2))
    return encode_task(model, data, prompt_length=6, template=0, n_curve=10)


@pytest.fixture(scope="module")
def small_task(task):
    """The same training examples, and few others."""
    return dataclasses.replace(task, dev=task.curve, test=task.curve)


@pytest.fixture(scope="module")
def runs(model):
    """Five that differ in length, gamma, seed, start and learning rate."""
    p_star = Run(
        "tiny", "toy", prompt_length=6, steps=STEPS, batch_size=8, learning_rate=0.1, template=0
    )
    wayward = dataclasses.replace(
        p_star,
        prompt_length=4,
        target_name="words",
        target_text=TARGET,
        target_ids=tuple(model.tokenizer.encode(TARGET)),
        gamma=1.0,
    )
    return [
        p_star,
        dataclasses.replace(p_star, seed=2, learning_rate=0.08),
        wayward,
        dataclasses.replace(wayward, init="target", gamma=3.0, seed=3),
        dataclasses.replace(wayward, init="random", gamma=0.0),
    ]


@pytest.fixture(scope="module")
def told():
    """What `on_steps` was told."""
    return []


@pytest.fixture(scope="module")
def results(model, task, runs, told):
    def on_steps(steps, task_loss):
        told.append((steps, task_loss))

    return tune_population(model, task, runs, points=2, chunk=50, on_steps=on_steps)


def test_unconstrained_prompts_learn_the_task(results):
    assert min(result.accuracy for result in results[:2]) > 0.75
    assert all(result.curve[-1].task_loss < result.curve[0].task_loss for result in results)


def test_constrained_prompts_read_as_their_target(results, runs):
    for result in results[2:4]:
        assert result.reading.text == TARGET
        assert result.reading.ids == runs[2].target_ids
        assert result.reading.prompt_f1 == result.reading.token_f1 == 1
    assert results[4].reading.token_f1 < 1
    assert results[3].distance < results[2].distance < results[4].distance


def test_a_run_without_target_is_not_compared_with_one(results):
    for result in results[:2]:
        assert result.distance is result.reading.prompt_f1 is result.reading.token_f1 is None


def test_results_are_of_their_runs_and_complete(results, runs, model, task):
    assert [result.run for result in results] == runs
    prompts = np.stack([np.pad(r.prompt, [(0, 6 - len(r.prompt)), (0, 0)]) for r in results])
    mask = np.arange(6) < np.array([run.prompt_length for run in runs])[:, None]
    expected = predict(model, prompts, mask, task.test)
    for result, predictions in zip(results, expected, strict=True):
        assert result.prompt.shape == (result.run.prompt_length, tiny.WIDTH)
        assert len(result.reading.ids) == result.run.prompt_length
        assert (result.n_train, result.n_dev, result.n_eval) == (40, 30, 50)
        np.testing.assert_array_equal(result.predictions, predictions)
        assert result.accuracy == np.mean(predictions == task.test.labels)
        assert result.diverged_at is None
        assert [point.step for point in result.curve] == [STEPS // 2, STEPS]
        assert result.curve[-1].task_loss == result.task_loss


def test_progress_is_told_after_every_chunk(results, told):
    assert [steps for steps, _ in told] == [50] * 4
    assert all(task_loss.shape == (5,) for _, task_loss in told)


def test_a_run_alone_ends_with_the_same_prompt(results, runs, model, small_task):
    (alone,) = tune_population(model, small_task, runs[3:4], points=2, chunk=50)
    np.testing.assert_allclose(alone.prompt, results[3].prompt, rtol=0, atol=1e-5)


def test_given_starts_hold_and_chunks_end_at_the_curves_points(runs, model, small_task):
    """Without a learning rate a prompt stays where it started."""
    still = [dataclasses.replace(run, steps=5, learning_rate=0.0) for run in runs]
    given = np.random.default_rng(0).normal(size=(6, tiny.WIDTH)).astype(np.float32)
    told = []
    results = tune_population(
        model,
        small_task,
        still,
        starts={still[0].id: given},
        points=2,
        chunk=2,
        on_steps=lambda steps, _: told.append(steps),
    )
    np.testing.assert_array_equal(results[0].prompt, given)
    assert (results[1].prompt != given).any()
    assert results[3].reading.ids == runs[3].target_ids
    assert results[3].distance == 0
    assert [point.step for point in results[3].curve] == [2, 5]
    assert sum(told) == 5
    assert max(told) <= 2
    assert 2 in np.cumsum(told)


def test_populations_share_what_one_program_must():
    run = Run("model", "task", prompt_length=4)
    lengths = [dataclasses.replace(run, prompt_length=n, seed=n, gamma=n) for n in (9, 3, 7, 5, 1)]
    others = [
        dataclasses.replace(run, **different)
        for different in (
            {"steps": 1},
            {"batch_size": 1},
            {"method": "channel"},
            {"template": 0},
            {"k_shot": 1},
            {"data_seed": 1},
        )
    ]
    grouped = list(populations([*lengths[:2], *others, *lengths[2:]], size=2))
    assert [[r.prompt_length for r in group] for group in grouped[:3]] == [[1, 3], [5, 7], [9]]
    assert grouped[3:] == [[other] for other in others]
