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
# Heads, key heads, and the width of a head: on a TPU, several heads fill registers exactly or not,
# or one has a register or more; with and without groups.
HEADS = [
    (4, 2, 64),
    (9, 3, 64),
    (5, 5, 64),
    (4, 2, 128),
    (8, 8, 32),
    (3, 3, 80),
    (2, 1, 256),
    (4, 2, 8),
]
# Arguments of `attend`. Each is given and left out, among others and without them.
VARIANTS = [
    {},
    {"scale": 0.2, "soft_cap": 2.0, "window": 20, "rotary": 1.0},
    {"scale": 0.3, "window": 7},
    {"soft_cap": 1.5, "rotary": 0.25},
]
MAGNITUDE = 1.3  # of what is rotated


def case(heads, kv_heads, head_dim, dtype=jnp.float32, slots=SLOTS):
    """Queries, keys, values, a gradient, which slots are attended to, and positions, in NumPy."""
    rng = np.random.default_rng(heads)
    arrays = [
        rng.normal(size=(ROWS * slots, n * head_dim)).astype(jnp.dtype(dtype))
        for n in (heads, kv_heads, kv_heads, heads)
    ]
    causal = np.tril(rng.random((ROWS, slots, slots)) < 0.6)
    # Positions go back in a row, as they do at the next example or branch.
    positions = np.tile(np.arange(slots, dtype=np.int32) % 50, (ROWS, 1))
    return *arrays, causal | np.eye(slots, dtype=bool), positions


def angles_of(positions, half):
    return positions.ravel()[:, None] * 0.5 ** np.arange(half)


def make_rotary(positions, head_dim, options):
    """The rotation of the share `options["rotary"]` of a head's channels; None without it."""
    if "rotary" not in options:
        return None
    half = int(head_dim * options["rotary"]) // 2
    return Rotary.by(angles_of(positions, half), head_dim, MAGNITUDE)


def written_out(q, k, v, gradient, attended, positions, kv_heads, options):
    """Softmax attention with all its scores, and its gradients, in float64.

    Channels are rotated as complex numbers, and gradients back by the conjugates.
    """
    heads = len(q[0]) // (head_dim := len(k[0]) // kv_heads)
    q, k, v, gradient = (
        np.float64(x).reshape(ROWS, SLOTS, -1, head_dim).swapaxes(1, 2) for x in (q, k, v, gradient)
    )
    half = int(head_dim * options.get("rotary", 0)) // 2
    turn = MAGNITUDE * np.exp(1j * angles_of(positions, half)).reshape(ROWS, 1, SLOTS, half)

    def rotated(x, turn):
        complex_x = (x[..., :half] + 1j * x[..., half : 2 * half]) * turn
        return np.concatenate([complex_x.real, complex_x.imag, x[..., 2 * half :]], axis=-1)

    def of_key_heads(x):
        return x.reshape(ROWS, kv_heads, -1, SLOTS, head_dim).sum(axis=2)

    scale = options.get("scale", head_dim**-0.5)
    q, k, v = (
        rotated(q, turn),
        *(np.repeat(x, heads // kv_heads, axis=1) for x in (rotated(k, turn), v)),
    )
    scores, slope = scale * (q @ k.swapaxes(2, 3)), 1.0
    if cap := options.get("soft_cap"):
        scores = cap * np.tanh(scores / cap)
        slope = 1 - (scores / cap) ** 2
    if "window" in options:
        distance = positions[:, :, None] - positions[:, None, :]
        attended = attended & (distance < options["window"])
    weights = np.exp(np.where(attended[:, None], scores, -np.inf))
    weights /= weights.sum(axis=-1, keepdims=True)
    of_weights = gradient @ v.swapaxes(2, 3)
    mean = (weights * of_weights).sum(axis=-1, keepdims=True)
    of_scores = scale * weights * (of_weights - mean) * slope
    results = (
        weights @ v,
        rotated(of_scores @ k, turn.conj()),
        rotated(of_key_heads(of_scores.swapaxes(2, 3) @ q), turn.conj()),
        of_key_heads(weights.swapaxes(2, 3) @ gradient),
    )
    return [x.swapaxes(1, 2).reshape(ROWS * SLOTS, -1) for x in results]


def computed(head_dim, options):
    """One program: the result of `attend`, and the gradients of queries, keys and values."""

    @jax.jit
    def program(q, k, v, gradient, attended, positions):
        mask = attention.AttentionMask.of(attended, positions)
        rotary = make_rotary(positions, head_dim, options)
        result, pull_back = jax.vjp(
            lambda q, k, v: attention.attend(
                q, k, v, mask, head_dim, **{**options, "rotary": rotary}
            ),
            *(q, k, v),
        )
        return result, *pull_back(gradient)

    return program


@pytest.mark.parametrize(
    ("heads", "options"),
    slow_after(
        1,
        [
            *[(HEADS[0], options) for options in VARIANTS],
            *[(heads, {}) for heads in [(9, 3, 64), (5, 5, 64), (2, 1, 256), (4, 2, 8)]],
        ],
    ),
)
def test_attention_and_its_gradients_are_those_of_softmax_written_out(heads, options):
    inputs = case(*heads)
    found = computed(heads[-1], options)(*inputs)
    expected = written_out(*inputs, heads[1], options)
    for ours, theirs, tolerance in zip(found, expected, (5e-6, *[1e-5] * 3), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance)


def compare_kernel(in_kernel, heads, dtype, options, slots=SLOTS):
    """Compares the results of kernels, interpreted, with those of plain JAX."""
    head_dim = heads[-1]
    *inputs, gradient, attended, positions = case(*heads, dtype, slots)
    scoring = Scoring(head_dim, head_dim**-0.5, options.get("soft_cap"))

    @jax.jit
    def both(inputs, gradient, attended, positions):
        bias = attention.AttentionMask.of(attended, positions).bias
        rotary = make_rotary(positions, head_dim, options)

        def results(function, **how):
            return [
                *function(attention_blocks.mix, scoring, bias, rotary, *inputs, **how),
                *function(
                    attention_blocks.mix_gradients, scoring, bias, rotary, *inputs, gradient, **how
                ),
            ]

        return results(in_kernel, interpret=True), results(attention.in_plain_jax)

    tolerance = 5e-6 if dtype == jnp.float32 else 0.04
    for ours, expected in zip(*both(inputs, gradient, attended, positions), strict=True):
        assert ours.dtype == expected.dtype == dtype
        np.testing.assert_allclose(
            np.float32(ours), np.float32(expected), atol=tolerance, rtol=tolerance
        )


@pytest.mark.parametrize(
    ("heads", "dtype"),
    slow_after(
        1,
        [
            *[(heads, jnp.float32) for heads in HEADS],
            *[(heads, jnp.bfloat16) for heads in [(4, 2, 64), (5, 5, 64), (2, 1, 256)]],
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
            *[(heads, jnp.bfloat16) for heads in [(4, 2, 64), (2, 1, 256)]],
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
        ((4, 4, 64), 1.0),
        ((9, 3, 64), 0.5),
        ((3, 3, 80), 0.5),
        ((4, 2, 8), 0.5),
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
    *inputs, attended, positions = case(2, 1, 64, slots=128)
    scoring = Scoring(64, 0.125, None)

    @jax.jit
    def kernels(*inputs):
        bias = attention.AttentionMask.of(attended, positions).bias
        return [
            attention_gpu.in_kernel(block, scoring, bias, None, *inputs[:n], interpret=True)
            for block, n in ((attention_blocks.mix, 3), (attention_blocks.mix_gradients, 4))
        ]

    def with_some(number):
        changed = [x.copy() for x in inputs]
        for x in changed:
            x[::7, ::5] = number
        return changed

    found, expected = kernels(*with_some(bad)), kernels(*with_some(0))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
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
    lowered = computed(64, {}).lower(*case(4, 2, 64, dtype))
    is_bfloat16 = dtype == jnp.bfloat16
    assert set(products(lowered.as_text())) == {(is_bfloat16, not is_bfloat16)}


@pytest.fixture(scope="module")
def rotating():
    """The program that rotates all channels of heads of 64."""
    return computed(64, {"rotary": 1.0})


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_numbers_that_are_not_finite_reach_no_slot_that_does_not_attend_to_them(bad, rotating):
    """Two runs share a row: the first 6 slots and the others."""
    *inputs, _, positions = case(4, 2, 64)
    run = np.arange(SLOTS) >= 6
    attended = np.broadcast_to(np.tril(run[:, None] == run[None, :]), (ROWS, SLOTS, SLOTS))
    broken = np.tile(~run, ROWS)[:, None]

    expected = rotating(*inputs, attended, positions)
    inputs = [np.where(broken, np.float32(bad), x) for x in inputs]
    found = rotating(*inputs, attended, positions)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(
            np.asarray(ours)[~broken[:, 0]], np.asarray(theirs)[~broken[:, 0]]
        )
