"""The choice of runs that are compared with each other, on records made by hand."""

import dataclasses

import pytest

from tests.helpers.finished_runs import best, wayward, with_run
from wayward_jax.analysis.selection import compare


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


def test_p_star_is_the_best_on_dev_of_as_many_tries_as_a_target_has_gammas():
    tries = [
        best(0.6, dev_accuracy=0.6),
        best(0.8, run={"attempt": 1}, dev_accuracy=0.7),
        best(0.9, run={"attempt": 2}, dev_accuracy=0.9),
    ]
    once = wayward(0.7, run={"gamma": 0.1})
    twice = [wayward(0.7, text="other words", run={"gamma": gamma}) for gamma in (0.1, 0.2)]
    first, second = compare([*tries, once, *twice])
    assert (first.best_accuracy, first.tries, first.p_star_tries) == (0.6, 1, 1)
    assert (second.best_accuracy, second.tries, second.p_star_tries) == (0.8, 2, 2)


def test_p_stars_of_different_starts_are_not_pooled():
    records = [best(0.6), best(0.9, run={"init": "random"}), wayward(0.7)]
    (comparison,) = compare(records)
    assert [record.accuracy for record in comparison.p_star] == [0.6]


def test_a_target_is_compared_with_its_own_start_without_the_constraint():
    free = wayward(0.9, run={"gamma": 0.0, "init": "target"})
    elsewhere = wayward(0.5, run={"gamma": 0.0})
    held = [
        wayward(0.8, run={"gamma": 0.1, "init": "target"}),
        wayward(0.7, run={"constraint": "cell", "margin": 0.01, "init": "target"}),
    ]
    found = compare([best(0.8), free, elsewhere, *held])
    beside = {c.wayward[0].accuracy: [r.accuracy for r in c.unconstrained] for c in found}
    assert beside == {0.8: [0.9], 0.7: [0.9], 0.5: []}


def test_all_targets_from_a_start_that_knows_none_are_beside_its_one_run_without_a_target():
    tries = [
        best(0.9, run={"init": "random"}, dev_accuracy=0.9),
        best(0.5, run={"attempt": 1}, dev_accuracy=0.7),
        best(0.6, dev_accuracy=0.6),
    ]
    held = [
        wayward(right, text=text, run={"gamma": 0.1, "init": init})
        for text, right in (("some words", 0.4), ("other words", 0.3))
        for init in ("vocab", "random", "target")
    ]
    found = compare([*tries, *held])
    beside = {"vocab": [0.6], "random": [0.9], "target": []}
    for c in found:
        assert [r.accuracy for r in c.unconstrained] == beside[c.wayward[0].run.init]
        assert c.best_accuracy == 0.6  # p_star starts at common tokens
    groups = {c.beside_unconstrained.group for c in found if c.unconstrained}
    assert len(groups) == 2  # what targets share is not taken for several runs


def test_runs_are_beside_the_twin_of_their_own_seed():
    free = [
        wayward(right, run={"gamma": 0.0, "init": "target", "seed": seed})
        for seed, right in ((2, 0.6), (1, 0.9))
    ]
    held = [
        wayward(right, run={"gamma": 0.1, "init": "target", "seed": seed})
        for seed, right in ((1, 0.8), (2, 0.5))
    ]
    (found,) = compare([best(0.8), *free, *held])
    beside = found.beside_unconstrained
    assert beside.twins
    assert beside.p_star.mean(axis=1) == pytest.approx([0.9, 0.6])
    assert beside.wayward.mean(axis=1) == pytest.approx([0.8, 0.5])


@pytest.mark.parametrize("seeds", [(1,), (1, 3), (1, 2, 3)])
def test_runs_without_a_twin_each_are_beside_all_of_them(seeds):
    start = {"init": "target"}
    free = [wayward(0.9, run={"gamma": 0.0, "seed": seed, **start}) for seed in seeds]
    held = [wayward(0.8, run={"gamma": 0.1, "seed": seed, **start}) for seed in (1, 2)]
    (found,) = compare([best(0.8), *free, *held])
    assert not found.beside_unconstrained.twins
    assert len(found.beside_unconstrained.p_star) == len(seeds)
