"""Which figures are made of which runs, on rows made by hand."""

import pytest

from tests.helpers.finished_runs import best, wayward
from wayward_jax.analysis.figures import figures
from wayward_jax.analysis.selection import compare


def with_curve(row):
    f1 = row["prompt_f1"]
    return {**row, "curve": [{"step": 5, "dev_accuracy": 0.5, "prompt_f1": f1}]}


def names(rows, parameters=()):
    rows = [with_curve(row) for row in rows]
    return list(figures(rows, compare(rows), dict(parameters)))


def test_one_target_at_one_gamma_has_the_main_figure_and_the_curves():
    assert names([best(0.8), wayward(0.7)]) == ["main", "training"]


def test_without_a_p_star_there_are_curves_alone():
    assert names([wayward(0.7)]) == ["training"]


@pytest.mark.parametrize("gammas", [(0.0, 0.1), (0.1, 0.2)])
def test_several_gammas_have_a_figure(gammas):
    rows = [wayward(0.7, run={"gamma": gamma}) for gamma in gammas]
    assert names([best(0.8), *rows]) == ["main", "training", "gamma"]


def test_several_lengths_have_a_figure():
    longer = {**best(0.8), "prompt_length": 3, "id": "longer"}
    rows = [best(0.8), longer, wayward(0.7), wayward(0.7, text="one two three")]
    assert names(rows) == ["main", "training", "length"]


def test_several_models_of_known_size_have_a_figure():
    rows = [best(0.8), wayward(0.7)]
    rows += [{**row, "model": "gpt2-large", "id": f"large {row['id']}"} for row in rows]
    sizes = {"gpt2": 124_000_000, "gpt2-large": 774_000_000}
    assert names(rows, sizes) == ["main", "training", "model_size"]
    assert names(rows, {"gpt2": sizes["gpt2"]}) == ["main", "training"]
