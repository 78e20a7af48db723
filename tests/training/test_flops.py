"""The work of steps, counted by hand."""

import numpy as np
import pytest

from tests.helpers import toy_models
from wayward_jax.segments import example_order
from wayward_jax.sharding import make_mesh
from wayward_jax.training.calls import iter_calls
from wayward_jax.training.examples import encode_task
from wayward_jax.training.flops import StepCost, matrix_peak, needed_flops
from wayward_jax.training.planning import plan_populations


@pytest.mark.parametrize(
    ("mesh", "tokens"), [({}, 10**6), ({}, 60), ({"runs": 2, "data": 2}, 60)], ids=str
)
def test_the_step_cost_all_steps_is_that_of_the_runs_examples(model, mesh, tokens):
    mesh = make_mesh(**mesh)
    runs = toy_models.toy_runs(model, steps=6, batch_size=3)
    train = encode_task(model, {100: toy_models.toy_data()}, prompt_length=6, template=0).train
    (own,) = plan_populations(
        {"toy": train}, runs, population=len(runs), pack_tokens=tokens, mesh=mesh, num_evals=2
    )

    prompts = sum(6 * run.prompt_length for run in runs)
    expected = StepCost(tokens=prompts)
    for run in runs:
        for number in example_order(len(train[100]), 6 * 3, run.seed):
            segment = train[100][number]
            seen = segment.positions + 1 + run.prompt_length
            expected += StepCost(len(segment.ids), len(segment.of), int(seen.sum()))
    found = [call.cost for call in iter_calls(train, own)]
    assert sum(found, StepCost()) == expected


def test_flops_are_four_a_weight_and_token(model):
    """There are 2 layers of 12 D^2 weights; 3 D^2 of the last are for queries, keys and values."""
    width, table = toy_models.WIDTH, 96 * toy_models.WIDTH
    layer, first = 12 * width**2, 3 * width**2
    assert needed_flops(model, StepCost(tokens=1)) == 4 * (layer + first)
    assert needed_flops(model, StepCost(predictions=1)) == 4 * (layer - first + table)
    # A query times a key, and a weight times a value, forward and twice backward, in 2 layers.
    assert needed_flops(model, StepCost(pairs=1)) == 2 * 3 * (2 * width + 2 * width)


def test_a_peak_is_a_speed():
    peak = matrix_peak(np.float32, 64, repeats=2)
    assert np.isfinite(peak)
    assert peak > 0
