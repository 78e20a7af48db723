"""Attention in plain JAX and in the kernels, against softmax written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.cases import slow_after
from wayward_jax.models import attention, attention_blocks, attention_gpu, attention_tpu
from wayward_jax.models.attention_blocks import Scoring
from wayward_jax.models.rotary import Rotary

ROWS, SLOTS = 2, 136
# Heads, key heads, and the width of a head.
HEADS = [
    (4, 2, 64),
    (9, 3, 64),
    (4, 4, 64),
    (5, 5, 64),
    (3, 3, 128),
    (4, 2, 128),
    (8, 8, 32),
    (3, 3, 80),
    (4, 2, 96),
    (2, 1, 256),
    (4, 2, 8),
]
# Arguments of `attend`.
VARIANTS = [
    {},
    {"scale": 0.2, "soft_cap": 2.0, "window": 20, "rotary": 1.0},
    {"scale": 0.3},
    {"soft_cap": 1.5},
    {"window": 7},
    {"rotary": 1.0},
    {"rotary": 0.25},
]
MAGNITUDE = 1.3  # of what is rotated


def case(heads, kv_heads, head_dim, dtype=jnp.float32, slots=SLOTS):
    """Queries, keys, values, a gradient, which slots are attended to, and positions."""
    keys = jax.random.split(jax.random.key(heads), 5)
    widths = heads, kv_heads, kv_heads, heads
    arrays = [
        jax.random.normal(key, (ROWS * slots, n * head_dim), dtype)
        for key, n in zip(keys, widths, strict=False)
    ]
    causal = jnp.tril(jax.random.bernoulli(keys[4], 0.6, (ROWS, slots, slots)))
    # Positions go back in a row, as they do at the next example or branch.
    positions = jnp.tile(jnp.arange(slots) % 50, (ROWS, 1))
    return *arrays, causal | jnp.eye(slots, dtype=bool), positions


def angles_of(positions, half):
    return positions.ravel()[:, None] * 0.5 ** jnp.arange(half)


def make_rotary(positions, head_dim, options):
    """The rotation of the share `options["rotary"]` of a head's channels; None without it."""
    if "rotary" not in options:
        return None
    half = int(head_dim * options["rotary"]) // 2
    return Rotary.by(angles_of(positions, half), head_dim, MAGNITUDE)


def written_out(q, k, v, attended, positions, heads, kv_heads, options):
    """Softmax attention with all its scores; channels are rotated as complex numbers."""
    head_dim = q.shape[1] // heads
    q, k, v = (x.reshape(ROWS, SLOTS, -1, head_dim) for x in (q, k, v))
    if "rotary" in options:
        half = int(head_dim * options["rotary"]) // 2
        turn = MAGNITUDE * jnp.exp(1j * angles_of(positions, half)).reshape(ROWS, SLOTS, 1, -1)

        def rotated(x):
            complex_x = (x[..., :half] + 1j * x[..., half : 2 * half]) * turn
            parts = [complex_x.real, complex_x.imag, x[..., 2 * half :]]
            return jnp.concatenate(parts, axis=-1)

        q, k = rotated(q), rotated(k)
    k, v = (jnp.repeat(x, heads // kv_heads, axis=2) for x in (k, v))
    exactly = {"precision": "highest"}  # GPUs would round the factors
    scores = jnp.einsum("wqhd,wkhd->whqk", q, k, **exactly) * options.get("scale", head_dim**-0.5)
    if "soft_cap" in options:
        scores = options["soft_cap"] * jnp.tanh(scores / options["soft_cap"])
    if "window" in options:
        distance = positions[:, :, None] - positions[:, None, :]
        attended &= distance < options["window"]
    weights = jax.nn.softmax(jnp.where(attended[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("whqk,wkhd->wqhd", weights, v, **exactly).reshape(ROWS * SLOTS, -1)


def attention_of(head_dim, attended, positions, options):
    """`attend` as a function of queries, keys and values."""
    mask = attention.AttentionMask.of(attended, positions)
    rotary = make_rotary(positions, head_dim, options)
    options = {**options, "rotary": rotary}
    return lambda q, k, v: attention.attend(q, k, v, mask, head_dim, **options)


def computed(attend, inputs, gradient):
    """The result of `attend`, and the gradients of its inputs, by one program."""

    @jax.jit
    def both(inputs, gradient):
        result, pull_back = jax.vjp(attend, *inputs)
        return result, pull_back(gradient)

    return both(inputs, gradient)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "options"),
    slow_after(
        1,
        [
            *[(*HEADS[0], options) for options in VARIANTS],
            *[(*heads, {}) for heads in HEADS[1:]],
        ],
    ),
)
def test_attention_and_its_gradients_are_those_of_softmax_written_out(
    heads, kv_heads, head_dim, options
):
    *inputs, gradient, attended, positions = case(heads, kv_heads, head_dim)
    found, of_found = computed(
        attention_of(head_dim, attended, positions, options), inputs, gradient
    )
    expected, of_expected = computed(
        lambda *x: written_out(*x, attended, positions, heads, kv_heads, options), inputs, gradient
    )
    np.testing.assert_allclose(found, expected, atol=5e-6)
    for ours, theirs in zip(of_found, of_expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def compare_kernel(in_kernel, heads, dtype, options, slots=SLOTS):
    """Compares the results of kernels, interpreted, with those of plain JAX."""
    head_dim = heads[-1]
    *inputs, gradient, attended, positions = case(*heads, dtype, slots)
    bias = attention.AttentionMask.of(attended, positions).bias
    rotary = make_rotary(positions, head_dim, options)
    scoring = Scoring(head_dim, head_dim**-0.5, options.get("soft_cap"))
    tolerance = 5e-6 if dtype == jnp.float32 else 0.04
    for block, given in (
        (attention_blocks.mix, inputs),
        (attention_blocks.mix_gradients, [*inputs, gradient]),
    ):
        plain = attention.in_plain_jax(block, scoring, bias, rotary, *given)
        kernel = in_kernel(block, scoring, bias, rotary, *given, interpret=True)
        for ours, expected in zip(kernel, plain, strict=True):
            assert ours.dtype == expected.dtype == dtype
            np.testing.assert_allclose(
                np.float32(ours), np.float32(expected), atol=tolerance, rtol=tolerance
            )


# In bfloat16, heads of every width, with and without groups.
HEADS_OF_BFLOAT16 = [(4, 2, 64), (5, 5, 64), (3, 3, 128), (3, 3, 80), (2, 1, 256), (4, 2, 8)]


@pytest.mark.parametrize(
    ("heads", "dtype"),
    slow_after(
        1,
        [
            *[(heads, jnp.float32) for heads in HEADS],
            *[(heads, jnp.bfloat16) for heads in HEADS_OF_BFLOAT16],
        ],
    ),
)
def test_the_kernel_for_tpus_computes_what_plain_jax_computes(heads, dtype):
    compare_kernel(attention_tpu.in_kernel, heads, dtype, {})


@pytest.mark.parametrize(
    ("heads", "dtype"),
    slow_after(
        1,
        [
            *[(heads, jnp.bfloat16) for heads in [(4, 2, 64), (9, 3, 64), (2, 1, 256)]],
            *[(heads, jnp.float32) for heads in [(9, 3, 64), (3, 3, 80), (4, 2, 8)]],
        ],
    ),
)
def test_the_kernels_for_gpus_compute_what_plain_jax_computes(heads, dtype):
    compare_kernel(attention_gpu.in_kernel, heads, dtype, {}, slots=128)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "share"),
    [
        *[((4, 4, 64), 1.0), ((9, 3, 64), 0.5), ((4, 2, 128), 1.0), ((3, 3, 80), 0.5)],
        *[((4, 2, 8), 0.5), ((4, 2, 8), 1.0)],
    ],
)
def test_the_kernel_for_tpus_rotates_queries_and_keys_and_caps_scores(heads, share):
    compare_kernel(attention_tpu.in_kernel, heads, jnp.float32, {"rotary": share, "soft_cap": 1.5})


@pytest.mark.slow
def test_the_kernels_for_gpus_rotate_queries_and_keys_and_cap_scores():
    options = {"rotary": 0.5, "soft_cap": 1.5}
    compare_kernel(attention_gpu.in_kernel, (4, 2, 64), jnp.float32, options, slots=128)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("in_kernel", "slots"), [(attention_tpu.in_kernel, 200), (attention_gpu.in_kernel, 192)]
)
def test_the_kernels_take_rows_that_are_longer_than_a_block_of_queries(
    in_kernel, slots, monkeypatch
):
    monkeypatch.setattr(attention_tpu, "QUERIES", 128)
    compare_kernel(in_kernel, (4, 2, 64), jnp.float32, {"rotary": 1.0}, slots)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, 1e30])
def test_the_kernels_for_gpus_replace_numbers_that_are_not_finite_by_0(bad):
    *inputs, gradient, attended, positions = case(2, 1, 64, slots=128)
    bias = attention.AttentionMask.of(attended, positions).bias
    scoring = Scoring(64, 0.125, None)
    broken = [x.at[::7, ::5].set(bad) for x in (*inputs, gradient)]
    zeroed = [x.at[::7, ::5].set(0.0) for x in (*inputs, gradient)]
    for block, n in ((attention_blocks.mix, 3), (attention_blocks.mix_gradients, 4)):
        found, expected = (
            attention_gpu.in_kernel(block, scoring, bias, None, *given[:n], interpret=True)
            for given in (broken, zeroed)
        )
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def products(text):
    """The products of a program: whether each takes bfloat16, and whether it is exact."""
    return [
        ("bf16" in line.split("->")[0].rsplit(":", 1)[1], "HIGHEST" in line)
        for line in text.splitlines()
        if "stablehlo.dot_general" in line
    ]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_of_bfloat16_stay_bfloat16_and_those_of_float32_are_exact(dtype):
    *inputs, gradient, attended, positions = case(4, 2, 64, dtype)
    attend = attention_of(64, attended, positions, {})
    lowered = jax.jit(lambda *x: jax.vjp(attend, *x)[1](gradient)).lower(*inputs)
    is_bfloat16 = dtype == jnp.bfloat16
    assert set(products(lowered.as_text())) == {(is_bfloat16, not is_bfloat16)}


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_numbers_that_are_not_finite_reach_no_slot_that_does_not_attend_to_them(bad):
    """Two runs share a row: the first 6 slots and the others."""
    *inputs, gradient, _, positions = case(4, 2, 64)
    run = np.arange(SLOTS) >= 6
    attended = jnp.broadcast_to(np.tril(run[:, None] == run[None, :]), (ROWS, SLOTS, SLOTS))
    broken = np.tile(~run, ROWS)[:, None]

    attend = attention_of(64, attended, positions, {"rotary": 1.0})
    expected = computed(attend, inputs, gradient)
    inputs, gradient = jax.tree.map(lambda x: jnp.where(broken, bad, x), (inputs, gradient))
    found = computed(attend, inputs, gradient)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(
            np.asarray(ours)[~broken[:, 0]], np.asarray(theirs)[~broken[:, 0]]
        )
