"""Root mean square norms against float64, as every platform computes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wayward_jax.models import norms
from wayward_jax.models.norms import RMSNorm

TOKENS, HEADS, HEAD_DIM, EPSILON = 12, 3, 16, 1e-2
ROUNDING = {"float32": 1e-6, "bfloat16": 1e-2}


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture
def case(dtype):
    """Heads of very different sizes, the scale of a head's numbers, and a gradient."""
    rng = np.random.default_rng(0)
    sizes = np.repeat([0.01, 1.0, 30.0], HEAD_DIM)
    drawn = (rng.normal(size=shape) for shape in ((TOKENS, HEADS * HEAD_DIM), (HEAD_DIM,)))
    x, scale = (
        jnp.asarray(each * size, dtype) for each, size in zip(drawn, (sizes, 1), strict=True)
    )
    return x, scale, jnp.asarray(rng.normal(size=x.shape), dtype)


@pytest.fixture(params=["tpu", "default"])
def platform(request, monkeypatch):
    """Has this machine compute as a platform does."""
    monkeypatch.setattr(norms, "by_platform", lambda *arrays, **ways: ways[request.param](*arrays))
    return request.param


def by_head(x):
    return np.float64(x).reshape(TOKENS, HEADS, HEAD_DIM)


def assert_close(found, expected, rounding):
    """By the largest number of each head of each token."""
    found = by_head(found)
    assert (np.abs(found - expected) <= rounding * np.abs(expected).max(2, keepdims=True)).all()


def normalize(scale, x, zero_centered=False):
    norm = RMSNorm(EPSILON, zero_centered, head_dim=HEAD_DIM)
    return norm.apply({"params": {"scale": scale}}, x)


@pytest.mark.parametrize("zero_centered", [True, False])
def test_each_head_is_divided_by_its_own_root_mean_square(case, dtype, platform, zero_centered):
    x, scale, _ = case
    rms = np.sqrt(np.square(by_head(x)).mean(axis=2, keepdims=True) + EPSILON)
    expected = by_head(x) / rms * (np.float64(scale) + zero_centered)
    found = normalize(scale, x, zero_centered)
    assert found.dtype == x.dtype
    assert_close(found, expected, ROUNDING[dtype])


def test_the_gradient_is_that_of_each_head_alone(case, dtype, platform):
    """A change along the head itself changes nothing but by `EPSILON`."""
    x, scale, gradient = case
    rms = np.sqrt(np.square(by_head(x)).mean(axis=2, keepdims=True) + EPSILON)
    inner = by_head(gradient) * np.float64(scale)
    along = (inner * by_head(x)).mean(axis=2, keepdims=True)
    (found,) = jax.vjp(lambda x: normalize(scale, x), x)[1](gradient)
    assert_close(found, inner / rms - by_head(x) * along / rms**3, ROUNDING[dtype])


@pytest.mark.parametrize(("lowered_for", "products"), [("tpu", HEADS), ("cuda", 0), ("cpu", 0)])
def test_only_tpus_sum_by_products(case, lowered_for, products):
    x, scale, _ = case
    program = jax.jit(normalize).trace(scale, x).lower(lowering_platforms=(lowered_for,)).as_text()
    assert program.count("dot_general") == products
