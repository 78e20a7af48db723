"""Cells against their definition in float64: no other embedding is nearer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wayward_jax.constraints import cell_exit, has_empty_cell, nearest_tokens, retract
from wayward_jax.projection import c_proj, d_proj


def differences(table, ids, prompts):
    """Squared distances less that of a vector's own token, in float64: `[L, V]`."""
    table, prompts = np.float64(table), np.float64(prompts)
    far = np.square(prompts[:, None] - table).sum(axis=2)
    return far - np.take_along_axis(far, np.asarray(ids)[:, None], axis=1)


@jax.jit
def exits(table, ids, prompts):
    return cell_exit(table, ids, nearest_tokens(table, ids), prompts)


@jax.jit
def kept(table, ids, prompts, fraction):
    return retract(prompts, c_proj(table, ids), exits(table, ids, prompts), fraction)


def assert_put_back(table, ids, prompts):
    """Each prompt reads as its token, if that has a cell, after it is put back."""
    own = ~np.asarray(has_empty_cell(table, ids))
    back = np.asarray(kept(table, ids, prompts, 0.99))
    read = np.asarray(d_proj(table, back, np.ones(len(table), bool)))
    assert (differences(table, ids, back)[own] >= 0).all()
    np.testing.assert_array_equal(read[own], np.asarray(ids)[own])


@st.composite
def crowds(draw):
    """A table, tokens of it and vectors near and far, some rows of the table close together."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Each shape is compiled by itself.
    size, dim = draw(st.sampled_from([(2, 1), (2, 12), (40, 3), (200, 1), (200, 12)]))
    table = rng.normal(size=(size, dim)) * draw(st.sampled_from([0.01, 1, 30]))
    twins = rng.integers(0, size, size // 4)
    table[twins] = table[rng.integers(0, size, len(twins))]
    table[twins] += rng.normal(size=(len(twins), dim)) * draw(st.sampled_from([1e-5, 1e-3, 0.1]))
    ids = rng.integers(0, size, 5)
    away = rng.normal(size=(5, dim)) * np.abs(table).mean()
    prompts = table[ids] + away * draw(st.sampled_from([0.01, 1, 100]))
    return jnp.float32(table), jnp.int32(ids), jnp.float32(prompts)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(crowds())
def test_what_is_put_back_reads_as_its_token(crowd):
    assert_put_back(*crowd)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(crowds())
def test_vectors_within_their_fraction_stay_and_others_end_on_their_ray(crowd):
    table, ids, prompts = crowd
    back = np.asarray(kept(table, ids, prompts, fraction=0.5))
    own = np.asarray(c_proj(table, ids))
    # Within half of the cell: the vector twice as far from the embedding is in the cell.
    doubled = own + 2 * (np.float64(prompts) - own)
    # Far off, float32 tells squared distances apart only by a share of them.
    slack = 1e-4 * np.square(own).sum(axis=1) + 1e-6 * np.square(doubled - own).sum(axis=1) + 1e-6
    inside = (differences(table, ids, doubled) >= slack[:, None]).sum(axis=1) >= len(table) - 1
    np.testing.assert_array_equal(back[inside], prompts[inside])
    moved = (back != prompts).any(axis=1)
    lengths = [np.linalg.norm(x - own, axis=1)[moved] for x in (back, prompts)]
    assert (lengths[0] <= lengths[1]).all()
    cosines = ((back - own) * (prompts - own)).sum(axis=1)[moved] / np.prod(lengths, axis=0)
    np.testing.assert_allclose(cosines[lengths[0] > 1e-3], 1, atol=1e-3)


@st.composite
def dense_crowds(draw):
    """Rows within a small part of their norm, copies among them, and rows elsewhere."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    crowd, dim = draw(st.sampled_from([(10, 16), (100, 64), (5000, 64)]))
    center = rng.normal(size=dim)
    away = np.linalg.norm(center) * draw(st.sampled_from([1e-3, 3e-3, 1e-2])) / dim**0.5
    table = np.concatenate(
        [center + away * rng.normal(size=(crowd, dim)), rng.normal(size=(200, dim))]
    )
    copies = rng.integers(0, crowd, draw(st.sampled_from([0, 5])))
    table[rng.integers(0, crowd, len(copies))] = table[copies]
    table += draw(st.sampled_from([0, 30, 1000])) * rng.normal(size=dim)
    dtype = draw(st.sampled_from([jnp.float32, jnp.bfloat16]))
    table = jnp.asarray(rng.permutation(table), dtype)
    ids = jnp.asarray(rng.integers(0, len(table), 8), jnp.int32)
    own, others = (c_proj(table, i) for i in (ids, rng.integers(0, len(table), len(ids))))
    ahead = draw(st.sampled_from([0.4, 0.6, 3])) * (others - own)
    aside = away * draw(st.sampled_from([0, 1, 30])) * rng.normal(size=own.shape)
    return table, ids, jnp.float32(own + ahead + aside)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(dense_crowds())
def test_what_is_put_back_among_many_near_tokens_reads_as_its_token(crowd):
    assert_put_back(*crowd)


def test_cells_are_hardly_smaller_than_they_are_in_truth():
    """Where embeddings are as far apart as real ones, and have a large part in common."""
    rng = np.random.default_rng(0)
    table = np.float32(rng.normal(size=(2000, 64)) + 20 * rng.normal(size=64))
    ids, prompts = np.arange(20), np.float32(table[:20] + rng.normal(size=(20, 64)))
    own, ray = np.float64(table[:20]), np.float64(prompts) - table[:20]
    gaps = np.float64(table) - own[:, None]
    ahead = (ray[:, None] * gaps).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        walls = np.where(ahead > 0, np.square(gaps).sum(axis=-1) / 2 / ahead, np.inf)
    found = np.asarray(exits(table, ids, prompts))
    np.testing.assert_allclose(found, walls.min(axis=1), rtol=1e-3)
    assert (found <= walls.min(axis=1)).all()


def test_walls_worked_by_hand():
    """Tokens at 0, 4 and -2 on a line, and one at height 2: walls are halfway to each."""
    table = jnp.asarray([[0.0, 0], [4, 0], [-2, 0], [0, 2]])
    prompts = jnp.asarray([[1.0, 0], [8, 0], [-1, 0], [0, -5], [1, 1], [0, 0]])
    found = np.asarray(exits(table, jnp.zeros(6, jnp.int32), prompts))
    np.testing.assert_allclose(found[[0, 1, 2, 4]], [2, 0.25, 1, 1], rtol=1e-4)
    assert (found[[3, 5]] > 100).all()  # on rays that do not end, as far as float32 goes


def test_the_fraction_of_a_cell_ends_before_its_wall():
    table = jnp.asarray([[0.0, 0], [4, 0]])
    back = kept(table, jnp.zeros(2, jnp.int32), jnp.asarray([[3.0, 1], [1, 1]]), fraction=0.75)
    np.testing.assert_allclose(back, [[1.5, 0.5], [1, 1]], rtol=1e-6)


def test_of_equal_embeddings_the_first_alone_has_a_cell():
    table = jnp.asarray([[0.0, 1], [1, 0], [0, 1], [1, 1e-3]])
    assert has_empty_cell(table, jnp.arange(4)).tolist() == [False, False, True, False]
