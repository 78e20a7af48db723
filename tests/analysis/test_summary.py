"""The sentences of a report, on records made by hand."""

import dataclasses

import pytest

from tests.helpers.finished_runs import best, wayward
from wayward_jax.analysis import tables
from wayward_jax.analysis.selection import compare
from wayward_jax.analysis.summary import reservations, summary


def said(records):
    comparisons = compare(records)
    by_task = tables.by_group(comparisons, [n for n in tables.SETTING_NAMES if n != "set"])
    return summary(records, comparisons, by_task)


@pytest.mark.parametrize(("majority", "unprompted"), [(0.8, 0.1), (0.1, 0.8)])
def test_nothing_but_that_is_said_of_a_task_that_was_not_learned(majority, unprompted):
    given = {"majority": majority, "unprompted": unprompted}
    sentences = said([best(0.8, **given), wayward(0.8, **given)])
    assert len(sentences) == 2
    assert "sst2 was not learned by gpt2 (accuracy of p_star 0.800, 95 % interval" in sentences[1]
    assert f"majority class {majority:.3f}, no prompt {unprompted:.3f}): take" in sentences[1]
    assert len(said([best(0.8), wayward(0.8)])) > 2


def test_the_numerical_floor_stands_under_the_drops():
    assert said([best(0.8), wayward(0.8)])[-1].startswith("Numerical floor: ")


def test_devices_and_versions_that_differ_are_said():
    first, second = best(0.8), wayward(0.7)
    assert reservations([first, second], {}) == []
    other = dataclasses.replace(second.provenance, device="TPU v5 lite", version="9")
    sentences = reservations([first, dataclasses.replace(second, provenance=other)], {})
    assert [sentence.partition(")")[0] for sentence in sentences] == [
        "The runs were made with different kinds of devices (TPU v5 lite; cpu",
        "The runs were made with different versions of wayward_jax (0.2.0; 9",
    ]
