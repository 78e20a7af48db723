"""The speed that a job shows, with a clock that takes a second between looks."""

import itertools
import types

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import toy_models
from wayward_jax.jobs import throughput
from wayward_jax.jobs.throughput import ThroughputMeter
from wayward_jax.sharding import make_mesh
from wayward_jax.training.examples import encode_task
from wayward_jax.training.flops import StepCost
from wayward_jax.training.planning import plan_populations
from wayward_jax.training.progress import StepMetrics


def test_an_evaluation_counts_with_the_steps_after_it_in_the_same_process(model, monkeypatch):
    data = {100: toy_models.toy_data()}
    task = encode_task(model, data, prompt_length=6, template=0, n_dev_subset=10)
    runs, mesh = toy_models.toy_runs(model, steps=8), make_mesh()
    (plan,) = plan_populations(
        {"toy": task.train}, runs, population=len(runs), pack_tokens=10**6, mesh=mesh, num_evals=2
    )
    clock = types.SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr(throughput, "time", clock)
    meter = ThroughputMeter(jnp.float32, mesh)

    def speed(step, tokens=1000):
        losses = np.ones((1, len(runs)))
        metrics = StepMetrics(step, (), losses, losses, StepCost(tokens))
        return meter.steps(metrics).get("tokens_per_second")

    examples = sum(len(segment.ids) for segment in task.dev_subset[100].segments)
    evaluation = sum(run.prompt_length + examples for run in runs)
    meter.begin(model, task, plan)
    assert [speed(step) for step in (3, 4, 5, 6)] == [None, 1000, 1000 + evaluation, 1000]
    meter.begin(model, task, plan)
    assert [speed(4, tokens=0), speed(5)] == [None, 1000]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "250 ms"), (90, "90 s"), (450, "7.5 min"), (9000, "2.5 h")],
)
def test_durations_are_in_units_of_their_size(seconds, text):
    assert throughput.duration(seconds) == text
