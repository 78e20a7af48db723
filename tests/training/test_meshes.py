"""The mesh that is chosen where none is given, against cases worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wayward_jax.training.meshes import WEIGHTS_SHARE, choose_sizes

GIB = 2**30


@pytest.mark.parametrize(
    ("devices", "free", "weights", "runs", "batch_size", "runs_data_model"),
    [
        (1, 16 * GIB, GIB, 1, 8, (1, 1, 1)),
        (8, 16 * GIB, GIB, 1, 8, (1, 8, 1)),
        (8, 16 * GIB, GIB, 3, 8, (4, 2, 1)),
        (8, 16 * GIB, GIB, 4, 8, (4, 2, 1)),
        (8, 16 * GIB, GIB, 5, 8, (8, 1, 1)),
        (8, 16 * GIB, GIB, 512, 8, (8, 1, 1)),
        # A run of four examples is divided by four, so half of the devices stay empty.
        (8, 16 * GIB, GIB, 1, 4, (2, 4, 1)),
        (6, 16 * GIB, GIB, 2, 8, (2, 3, 1)),
        (7, 16 * GIB, GIB, 2, 8, (7, 1, 1)),
        # 16 GB are 14.9 of 16 GiB, which leaves too little for a step.
        (8, 16 * GIB, 16 * 10**9, 512, 8, (4, 1, 2)),
        (8, 16 * GIB, 16 * 10**9, 1, 8, (1, 4, 2)),
        (8, 80 * GIB, 16 * 10**9, 512, 8, (8, 1, 1)),
        (8, 80 * GIB, 140 * 10**9, 512, 4, (2, 1, 4)),
        (4, 16 * GIB, 140 * 10**9, 512, 4, (1, 1, 4)),
        (32, 16 * GIB, 16 * 10**9, 12, 8, (16, 1, 2)),
        (32, 16 * GIB, 16 * 10**9, 8, 8, (8, 2, 2)),
    ],
)
def test_devices_that_runs_do_not_fill_share_examples_and_weights_that_are_too_large(
    devices, free, weights, runs, batch_size, runs_data_model
):
    found = choose_sizes(devices, free, weights, runs, batch_size)
    assert found == dict(zip(("runs", "data", "model"), runs_data_model, strict=True))


@given(
    st.integers(1, 300),
    st.integers(0, 99),
    st.integers(0, 999),
    st.integers(0, 999),
    st.integers(1, 64),
)
def test_all_devices_are_used_no_run_waits_for_another_and_weights_fit_if_they_can(
    devices, free, weights, runs, batch_size
):
    """Several processes share a mesh only if it has the devices of all."""
    found = choose_sizes(devices, free, weights, runs, batch_size)
    assert math.prod(found.values()) == devices
    assert found["runs"] >= min(runs, devices // found["model"])
    assert found["data"] <= batch_size
    assert weights <= found["model"] * WEIGHTS_SHARE * free or found["model"] == devices
