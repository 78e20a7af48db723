"""Which runs are compared, on rows made by hand."""

import numpy as np
import pytest

from tests.helpers.finished_runs import best, wayward
from wayward_jax.analysis.selection import compare, correctness


def test_the_gamma_is_chosen_on_dev_among_those_that_read_as_the_target():
    rows = [
        best(0.8),
        wayward(0.9, run={"gamma": 0.0}, dev_accuracy=0.9, prompt_f1=0.5),
        wayward(0.6, run={"gamma": 0.1}, dev_accuracy=0.8),
        wayward(0.7, run={"gamma": 0.2}, dev_accuracy=0.7),
    ]
    (comparison,) = compare(rows)
    assert comparison.wayward[0]["gamma"] == 0.1
    assert comparison.drop.value == pytest.approx(25)


def test_if_no_gamma_reads_as_the_target_dev_alone_decides():
    rows = [
        best(0.8),
        wayward(0.4, run={"gamma": 0.1}, dev_accuracy=0.8, prompt_f1=0.5),
        wayward(0.7, run={"gamma": 0.2}, dev_accuracy=0.7, prompt_f1=0.9),
    ]
    assert compare(rows)[0].accuracy == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("name", "other"),
    [("task", "trec"), ("steps", 5), ("k_shot", 16), ("n_eval", 20), ("prompt_length", 3)],
)
def test_a_p_star_of_another_setting_is_none(name, other):
    assert len(compare([best(0.8), wayward(0.7)])) == 1
    assert compare([{**best(0.8), name: other}, wayward(0.7)]) == []


def test_targets_are_told_apart_by_text_and_start():
    rows = [best(0.8), wayward(0.7), wayward(0.6, text="other words")]
    rows.append(wayward(0.5, run={"init": "target"}))
    assert [c.accuracy for c in compare(rows)] == pytest.approx([0.7, 0.6, 0.5])


def test_what_is_right_is_of_the_seeds_that_all_have():
    rows = [best(0.8, seed=1), best(0.6, seed=2), best(0.9, seed=3)]
    rows += [wayward(0.7, run={"seed": 1}), wayward(0.5, run={"seed": 2})]
    rows += [wayward(0.4, text="other words", run={"seed": seed}) for seed in (1, 2, 3)]
    p_star, right = correctness(compare(rows))
    assert right.shape == (2, 2, 10)
    np.testing.assert_allclose(p_star.mean(axis=-1), [[0.8, 0.6], [0.8, 0.6]])
    np.testing.assert_allclose(right.mean(axis=-1), [[0.7, 0.5], [0.4, 0.4]])
    assert p_star[0, 1].tolist() == [1.0] * 6 + [0.0] * 4


def test_without_a_common_seed_it_is_a_mean():
    rows = [best(0.8, seed=1), wayward(0.7, run={"seed": 2}), wayward(0.5, run={"seed": 3})]
    p_star, right = correctness(compare(rows))
    np.testing.assert_allclose(p_star.mean(axis=-1), [[0.8]])
    assert right[0, 0].tolist() == [1.0] * 5 + [0.5] * 2 + [0.0] * 3
