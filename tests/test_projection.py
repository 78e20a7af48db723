"""`d_proj` and neighbors against brute force in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.cases import slow_after
from wayward_jax import projection
from wayward_jax.projection import METRICS, c_proj, d_proj, margins, neighbors

every_metric = pytest.mark.parametrize("metric", slow_after(1, METRICS))


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Makes the tables of these tests span several blocks, of which the last is not full."""
    neighbors.clear_cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projection, "BLOCK", 32)
        yield
    neighbors.clear_cache()


def distances(table, prompts, metric):
    """Computes all distances `[..., V]` in float64, one pair at a time."""
    table, prompts = np.asarray(table, np.float64), np.asarray(prompts, np.float64)[..., None, :]
    if metric == "euclidean":
        return ((prompts - table) ** 2).sum(-1)
    dots = (prompts * table).sum(-1)
    if metric == "dot":
        return -dots
    return 1 - dots / np.linalg.norm(prompts, axis=-1) / np.linalg.norm(table, axis=-1)


def brute_force(table, prompts, valid, k, metric):
    """Finds the k nearest valid tokens; of equally near tokens the lowest ids come first."""
    far = np.where(valid, distances(table, prompts, metric), np.inf)
    ids = np.argsort(far, axis=-1, kind="stable")[..., :k]
    return ids, np.take_along_axis(far, ids, axis=-1)


@every_metric
@settings(max_examples=50)
@given(seed=st.integers(0, 2**32))
def test_of_equally_near_tokens_the_lowest_id_is_the_nearest(metric, seed):
    """Prompts and rows are small whole numbers, so sums are exact and ties are frequent."""
    rng = np.random.default_rng(seed)
    table = rng.integers(-1, 2, (70, 4)).astype(np.float32)
    if metric == "cosine":  # the sign decides; powers of 2 lengthen rows exactly
        table = np.copysign(2.0 ** rng.integers(-1, 2, (70, 1)), table).astype(np.float32)
    prompts = rng.integers(-2, 3, (2, 3, 4)).astype(np.float32) + 0.5
    valid = rng.random(70) < 0.7
    valid[:5] = True
    ids, far = neighbors(table, prompts, valid, k=5, metric=metric)
    expected_ids, expected_far = brute_force(table, prompts, valid, 5, metric)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(far, expected_far, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(d_proj(table, prompts, valid, metric), expected_ids[..., 0])


@every_metric
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_neighbors_are_those_of_brute_force(metric, dtype):
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(131, 24)) + 0.3, dtype)
    prompts = rng.normal(size=(3, 5, 24)).astype(np.float32)
    valid = np.arange(131) < 120
    ids, far = neighbors(table, prompts, valid, k=10, metric=metric)
    expected_ids, expected_far = brute_force(table, prompts, valid, 10, metric)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(far, expected_far, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        margins(far), expected_far[..., 1] - expected_far[..., 0], rtol=1e-3, atol=1e-5
    )


@every_metric
def test_of_many_equal_rows_the_first_is_the_nearest(metric):
    """There are more equal rows than the shortlist holds, in several blocks."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(131, 24)).astype(np.float32)
    copies = rng.permutation(131)[:50]
    table[copies] = table[copies[0]]
    prompts = 1.01 * table[copies[:1]]
    ids, far = neighbors(table, prompts, np.ones(131, bool), k=3, metric=metric)
    np.testing.assert_array_equal(ids[0], np.sort(copies)[:3])
    np.testing.assert_array_equal(margins(far), [0])


def test_tokens_far_from_zero_and_near_each_other_are_told_apart():
    """The matrix product alone, even in float32, would cancel to noise."""
    rng = np.random.default_rng(0)
    table = (1000 + rng.normal(size=(24, 16))).astype(np.float32)
    prompts = (table[5:12] + 0.01 * rng.normal(size=(7, 16))).astype(np.float32)
    ids, far = neighbors(table, prompts, np.ones(24, bool), k=3)
    expected_ids, expected_far = brute_force(table, prompts, np.ones(24, bool), 3, "euclidean")
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(far, expected_far, rtol=1e-5)


def test_midway_between_two_tokens_the_lower_id_is_the_nearest():
    """Distances are equal to the last bit, though the terms of the matrix product are rounded."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(-8000, 8000, (20, 24)).astype(np.float32) / 8
    aside = rng.integers(-8, 9, (20, 24)).astype(np.float32) / 8
    table = rng.permutation(np.concatenate([prompts + aside, prompts - aside]))
    ids, far = neighbors(table, prompts, np.ones(40, bool), k=2)
    expected_ids, _ = brute_force(table, prompts, np.ones(40, bool), 2, "euclidean")
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(margins(far), np.zeros(20))


@every_metric
def test_invalid_tokens_are_never_neighbors(metric):
    table = np.random.default_rng(0).normal(size=(131, 24)).astype(np.float32)
    valid = np.arange(131) % 16 == 5
    ids, _ = neighbors(table, table, valid, k=5, metric=metric)
    assert valid[np.asarray(ids)].all()


def test_rows_of_zeros_are_nearest_to_no_prompt_under_cosine():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(131, 24)).astype(np.float32)
    table[::4] = 0
    prompts = table[[1, 50, 129]]
    np.testing.assert_array_equal(
        d_proj(table, prompts, np.ones(131, bool), "cosine"), [1, 50, 129]
    )


def test_tokens_project_to_themselves():
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(131, 24)), jnp.bfloat16)
    ids = rng.integers(0, 131, (3, 5))
    prompts = c_proj(table, ids)
    assert prompts.dtype == jnp.float32
    np.testing.assert_array_equal(d_proj(table, prompts, np.ones(131, bool)), ids)


def test_what_all_embeddings_have_in_common_does_not_matter():
    """Their distances are a millionth of their squared lengths, where products have no digits."""
    rng = np.random.default_rng(0)
    table = np.float32(rng.normal(size=(300, 16)) + 3000 * rng.normal(size=16))
    prompts = np.float32((table[:60] + table[60:120]) / 2 + rng.normal(size=(60, 16)))[None]
    valid = np.ones(300, bool)
    ids, _ = neighbors(table, prompts, valid, k=3)
    np.testing.assert_array_equal(ids, brute_force(table, prompts, valid, 3, "euclidean")[0])
