"""The benchmark on a toy model: it runs, and both sides compute the same."""

import dataclasses

import jax.numpy as jnp
import pytest

from tests.helpers import toy_models
from wayward_jax import tasks
from wayward_jax.training import flops

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_shape")]


@pytest.fixture
def data():
    return dataclasses.replace(toy_models.toy_data(), task=tasks.TASKS["reviews"])


def test_a_population_is_measured(model, data, monkeypatch):
    from experiments.benchmark import measure

    monkeypatch.setattr(measure, "load_model", lambda name, dtype: model)
    monkeypatch.setattr(measure, "load_reviews", lambda: data)
    # The product of large matrices takes seconds.
    monkeypatch.setattr(measure, "matrix_peak", lambda dtype, size: flops.matrix_peak(dtype, 64))
    row = measure.measure_tuning("toy", jnp.dtype("float32"), population=3, seconds=1e-3)
    assert row["population"] == 3
    assert 0 < row["real share"] <= 1
    assert row["real tokens/s"] == pytest.approx(row["real share"] * row["tokens/s"])
    assert row["mfu"] > 0
    assert row["programs"] >= 1


def test_tuning_and_scoring_are_compared_with_pytorch_once_they_agree(
    model, theirs, data, monkeypatch
):
    pytest.importorskip("peft")
    from experiments.benchmark import compare, torch_side

    label_words = tuple((f"w{i}",) for i in range(20, 26))
    six = dataclasses.replace(tasks.TASKS["trec"], label_words=label_words)
    monkeypatch.setitem(tasks.TASKS, "trec", six)
    monkeypatch.setattr(torch_side, "PAPER_LENGTH", 40)  # the toy has 64 positions
    monkeypatch.setattr(compare, "load_model_pair", lambda *_: (model, theirs))
    monkeypatch.setattr(compare, "load_reviews", lambda: data)
    rows = compare.compare("toy", jnp.dtype("float32"), [1, 2], rounds=1)
    assert [(row["what"], row["beside"]) for row in rows] == [
        ("tuning, population 1", "peft"),
        ("tuning, population 1", "paper-style"),
        ("tuning, population 2", "peft"),
        ("scoring, 2 labels", "paper-style"),
        ("scoring, 6 labels", "paper-style"),
    ]
    for row in rows:
        assert row["times faster"] == pytest.approx(row["there ms"] / row["here ms"])
        assert row["least"] <= row["times faster"] <= row["most"]


def test_sides_that_disagree_stop_the_benchmark(model):
    pytest.importorskip("peft")
    from experiments.benchmark import compare

    compare._check("loss", model, 1.0, 1.0005)
    with pytest.raises(AssertionError, match="loss"):
        compare._check("loss", model, 1.0, 1.01)
