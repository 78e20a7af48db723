"""Figures are drawn if there are data for them, tested on records made by hand."""

import pytest

from tests.helpers.finished_runs import best, wayward, with_run
from wayward_jax.analysis.figures import figures
from wayward_jax.analysis.selection import compare


def names(records, parameters=()):
    return list(figures(records, compare(records), dict(parameters)))


def test_one_target_at_one_gamma_has_the_main_figure_and_the_curves():
    assert names([best(0.8), wayward(0.7)]) == ["main", "training"]


def test_without_a_p_star_there_are_only_curves():
    assert names([wayward(0.7)]) == ["training"]


@pytest.mark.parametrize("gammas", [(0.0, 0.1), (0.1, 0.2)])
def test_several_gammas_have_a_figure(gammas):
    records = [wayward(0.7, run={"gamma": gamma}) for gamma in gammas]
    assert names([best(0.8), *records]) == ["main", "training", "gamma"]


def test_several_lengths_have_a_figure():
    longer = with_run(best(0.8), prompt_length=3)
    records = [best(0.8), longer, wayward(0.7), wayward(0.7, text="one two three")]
    assert names(records) == ["main", "training", "length"]


def test_several_models_of_known_size_have_a_figure():
    records = [best(0.8), wayward(0.7)]
    records += [with_run(record, model="gpt2-large", model_digest="1") for record in records]
    small, large = ("gpt2", ""), ("gpt2-large", "1")
    sizes = {small: 124_000_000, large: 774_000_000}
    assert names(records, sizes) == ["main", "training", "model_size"]
    assert names(records, {small: sizes[small]}) == ["main", "training"]


def test_models_of_one_name_and_other_weights_have_sizes_of_their_own():
    records = [best(0.8), wayward(0.7)]
    records += [with_run(record, model_digest="1") for record in records]
    sizes = {("gpt2", ""): 124_000_000, ("gpt2", "1"): 124_000_001}
    assert names(records, sizes) == ["main", "training", "model_size"]
