"""Attention in plain JAX and in the kernel, against softmax written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wayward_jax.models import attention

ROWS, SLOTS = 2, 80
# Heads, key heads, and the width of a head.
HEADS = [
    (4, 4, 64),
    (4, 2, 64),
    (9, 3, 64),
    (5, 5, 64),
    (3, 3, 128),
    (4, 2, 128),
    (8, 8, 32),
    (3, 3, 80),
    (2, 1, 256),
    (4, 2, 8),
]


def case(heads, kv_heads, head_dim, dtype=jnp.float32):
    """Queries, keys, values, a gradient and a mask."""
    keys = jax.random.split(jax.random.key(heads), 5)
    widths = heads, kv_heads, kv_heads, heads
    arrays = [
        jax.random.normal(key, (ROWS * SLOTS, n * head_dim), dtype)
        for key, n in zip(keys, widths, strict=False)
    ]
    causal = jnp.tril(jax.random.bernoulli(keys[4], 0.6, (ROWS, SLOTS, SLOTS)))
    return *arrays, causal | jnp.eye(SLOTS, dtype=bool)


def written_out(q, k, v, mask, heads, kv_heads):
    """Softmax attention with all its scores."""
    q, k, v = (x.reshape(ROWS, SLOTS, -1, q.shape[1] // heads) for x in (q, k, v))
    k, v = (jnp.repeat(x, heads // kv_heads, axis=2) for x in (k, v))
    scores = jnp.einsum("wqhd,wkhd->whqk", q, k) / q.shape[-1] ** 0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("whqk,wkhd->wqhd", weights, v).reshape(ROWS * SLOTS, -1)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
def test_attention_and_its_gradients_are_those_of_softmax_written_out(heads, kv_heads, head_dim):
    *inputs, gradient, mask = case(heads, kv_heads, head_dim)
    bias = attention.attention_bias(mask)
    found, of_found = jax.vjp(lambda *x: attention.attend(*x, bias, head_dim), *inputs)
    expected, of_expected = jax.vjp(lambda *x: written_out(*x, mask, heads, kv_heads), *inputs)
    np.testing.assert_allclose(found, expected, atol=3e-6)
    for ours, theirs in zip(of_found(gradient), of_expected(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=6e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), HEADS)
def test_the_kernel_computes_what_plain_jax_computes(heads, kv_heads, head_dim, dtype):
    *inputs, gradient, mask = case(heads, kv_heads, head_dim, dtype)
    bias = attention.attention_bias(mask)
    tolerance = 3e-6 if dtype == jnp.float32 else 0.04
    for block, given in ((attention.mix, inputs), (attention.mix_gradients, [*inputs, gradient])):
        plain = attention.in_plain_jax(block, head_dim, bias, *given)
        kernel = attention.in_kernel(block, head_dim, bias, *given, interpret=True)
        for ours, expected in zip(kernel, plain, strict=True):
            assert ours.dtype == expected.dtype == dtype
            np.testing.assert_allclose(
                np.float32(ours), np.float32(expected), atol=tolerance, rtol=tolerance
            )


def test_products_of_bfloat16_stay_bfloat16_and_those_of_float32_are_exact():
    def products(dtype):
        *inputs, gradient, mask = case(4, 2, 64, dtype)
        bias = attention.attention_bias(mask)

        def gradients(*inputs):
            return jax.vjp(lambda *x: attention.attend(*x, bias, 64), *inputs)[1](gradient)

        text = str(jax.make_jaxpr(gradients)(*inputs))
        return [line for line in text.splitlines() if "dot_general" in line], text

    lines, text = products(jnp.bfloat16)
    assert lines
    assert "HIGHEST" not in text
    _, text = products(jnp.float32)
    assert text.count("Precision.HIGHEST") >= len(lines)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_numbers_that_are_not_finite_reach_no_slot_that_does_not_attend_to_them(bad):
    """Two runs share a row: the first 6 slots and the others."""
    *inputs, gradient, _ = case(4, 2, 64)
    run = np.arange(SLOTS) >= 6
    mask = jnp.broadcast_to(np.tril(run[:, None] == run[None, :]), (ROWS, SLOTS, SLOTS))
    bias = attention.attention_bias(mask)
    broken = np.tile(~run, ROWS)[:, None]

    def computed(inputs, gradient):
        mixed, of_inputs = jax.vjp(lambda *x: attention.attend(*x, bias, 64), *inputs)
        return mixed, *of_inputs(gradient)

    expected = computed(inputs, gradient)
    found = computed([jnp.where(broken, bad, x) for x in inputs], jnp.where(broken, bad, gradient))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(
            np.asarray(ours)[~broken[:, 0]], np.asarray(theirs)[~broken[:, 0]]
        )
