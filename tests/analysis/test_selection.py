"""The choice of runs that are compared with each other, on records made by hand."""

import dataclasses

import numpy as np
import pytest

from tests.helpers.finished_runs import best, wayward, with_run
from wayward_jax.analysis.selection import compare, correctness


def test_the_gamma_is_chosen_on_dev_among_those_that_read_as_the_target():
    records = [
        best(0.8),
        wayward(0.9, run={"gamma": 0.0}, dev_accuracy=0.9, prompt_f1=0.5),
        wayward(0.6, run={"gamma": 0.1}, dev_accuracy=0.8),
        wayward(0.7, run={"gamma": 0.2}, dev_accuracy=0.7),
    ]
    (comparison,) = compare(records)
    assert comparison.wayward[0].run.gamma == 0.1
    assert comparison.drop.value == pytest.approx(25)


def test_if_no_gamma_reads_as_the_target_dev_alone_decides():
    records = [
        best(0.8),
        wayward(0.4, run={"gamma": 0.1}, dev_accuracy=0.8, prompt_f1=0.5),
        wayward(0.7, run={"gamma": 0.2}, dev_accuracy=0.7, prompt_f1=0.9),
    ]
    assert compare(records)[0].accuracy == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        *(("task", "trec"), ("steps", 5), ("k_shot", 16), ("prompt_length", 3)),
        *(("learning_rate", 0.1), ("optimizer", "sgd"), ("warmup", 10), ("weight_decay", 0.1)),
        *(("keep", "best"), ("model_digest", "other weights")),
    ],
)
def test_a_run_is_not_compared_with_a_p_star_of_another_setting(name, other):
    assert len(compare([best(0.8), wayward(0.7)])) == 1
    assert compare([with_run(best(0.8), **{name: other}), wayward(0.7)]) == []


def test_a_run_is_not_compared_with_a_p_star_that_has_other_test_examples():
    assert compare([dataclasses.replace(best(0.8), n_eval=20), wayward(0.7)]) == []


def test_each_learning_rate_is_compared_with_its_own_p_star():
    records = [best(0.8), with_run(best(0.5), learning_rate=0.1)]
    records += [wayward(0.7), wayward(0.4, run={"learning_rate": 0.1})]
    found = [(c.best_accuracy, c.accuracy) for c in compare(records)]
    assert found == [pytest.approx((0.8, 0.7)), pytest.approx((0.5, 0.4))]


def test_targets_are_told_apart_by_text_and_start():
    records = [best(0.8), wayward(0.7), wayward(0.6, text="other words")]
    records.append(wayward(0.5, run={"init": "target"}))
    assert [c.accuracy for c in compare(records)] == pytest.approx([0.7, 0.6, 0.5])


def test_correctness_is_tabulated_for_the_seeds_that_all_targets_have():
    records = [best(0.8, seed=1), best(0.6, seed=2), best(0.9, seed=3)]
    records += [wayward(0.7, run={"seed": 1}), wayward(0.5, run={"seed": 2})]
    records += [wayward(0.4, text="other words", run={"seed": seed}) for seed in (1, 2, 3)]
    p_star, right = correctness(compare(records))
    assert right.shape == (2, 2, 10)
    np.testing.assert_allclose(p_star.mean(axis=-1), [[0.8, 0.6], [0.8, 0.6]])
    np.testing.assert_allclose(right.mean(axis=-1), [[0.7, 0.5], [0.4, 0.4]])
    assert p_star[0, 1].tolist() == [1.0] * 6 + [0.0] * 4


def test_correctness_is_a_mean_over_seeds_if_none_is_common():
    records = [best(0.8, seed=1), wayward(0.7, run={"seed": 2}), wayward(0.5, run={"seed": 3})]
    p_star, right = correctness(compare(records))
    np.testing.assert_allclose(p_star.mean(axis=-1), [[0.8]])
    assert right[0, 0].tolist() == [1.0] * 5 + [0.5] * 2 + [0.0] * 3
