"""The layer of weights against products in float64, and what XLA is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wayward_jax.models.products import Dense

ROWS, INNER, OUTER = 24, 40, 16


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def case(request):
    """A layer, its weights and inputs, and a gradient, all of which float64 holds exactly."""
    rng = np.random.default_rng(0)
    shapes = (ROWS, INNER), (INNER, OUTER), (OUTER,), (ROWS, OUTER)
    x, kernel, bias, gradient = (
        jnp.asarray(rng.normal(size=shape), request.param) for shape in shapes
    )
    return {"kernel": kernel, "bias": bias}, x, gradient


def apply(params, x):
    return Dense(OUTER).apply({"params": params}, x)


def assert_rounded(found, expected):
    """Equal but for the rounding of the result, whose sums are in float32."""
    precision = jnp.finfo(found.dtype).eps
    expected = np.asarray(expected)
    scale = np.abs(expected).max()
    assert np.abs(np.float64(found) - expected).max() <= (precision + 1e-6) * scale


def test_outputs_are_the_rounded_products(case):
    params, x, _ = case
    expected = np.float64(x) @ np.float64(params["kernel"]) + np.float64(params["bias"])
    found = apply(params, x)
    assert found.dtype == x.dtype
    assert_rounded(found, expected)


def test_gradients_are_the_rounded_products(case):
    params, x, gradient = case
    of_params, of_x = jax.vjp(apply, params, x)[1](gradient)
    assert_rounded(of_x, np.float64(gradient) @ np.float64(params["kernel"]).T)
    assert_rounded(of_params["kernel"], np.float64(x).T @ np.float64(gradient))


def test_inputs_may_have_any_number_of_axes(case):
    params, x, gradient = case
    folded = (x.reshape(4, 6, INNER), gradient.reshape(4, 6, OUTER))
    flat = jax.vjp(apply, params, x)[1](gradient)
    found = jax.vjp(apply, params, folded[0])[1](folded[1])
    np.testing.assert_array_equal(found[1].reshape(x.shape), flat[1])
    np.testing.assert_array_equal(found[0]["kernel"], flat[0]["kernel"])


@pytest.mark.parametrize(
    ("platform", "result"), [("cpu", "f32"), ("cuda", "bf16"), ("tpu", "bf16")]
)
def test_only_on_cpus_is_a_product_of_bfloat16_asked_for_in_float32(platform, result):
    """There, XLA would turn the factors to float32 otherwise."""

    def loss(x, params):
        return apply(params, x).astype(jnp.float32).sum()

    x = jnp.ones((ROWS, INNER), jnp.bfloat16)
    params = {"kernel": jnp.ones((INNER, OUTER), jnp.bfloat16), "bias": jnp.ones(OUTER, x.dtype)}
    traced = jax.jit(jax.grad(loss)).trace(x, params)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert products
    for line in products:
        factors, made = line.rpartition(" : ")[2].split(" -> ")
        assert factors.count("bf16") == 2
        assert made.endswith(f"x{result}>")
