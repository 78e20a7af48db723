"""The kernels that compute attention on GPUs, a block of slots of one head at a time.

Scores never leave the chip. Softmax is computed block by block (FlashAttention-2, Dao, 2023,
section 3). The backward pass has two kernels: one for the gradients of queries, which also leaves
what normalizes each query's weights, and one for the gradients of keys and values. Neither needs
anything of the forward pass but its inputs.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from wayward_jax.models.attention_blocks import (
    HIDDEN,
    Block,
    Scoring,
    finite,
    mix,
    product,
    score,
)
from wayward_jax.models.rotary import Rotary

# The slots of a block, and of heads that are wider than 128. Larger blocks do not fit into the fast
# memory of an A100 or H100.
BLOCK, BLOCK_OF_WIDE = 64, 32

# How the kernels are compiled.
WARPS, STAGES = 4, 3


def fits(slots: int, dtype: jnp.dtype) -> bool:
    """Tells whether the kernels take rows of so many slots.

    Products of float32 have no hardware of their own and take fast memory for twice as much.
    """
    return slots % BLOCK == 0 and dtype == jnp.bfloat16


def in_kernel(
    block: Block,
    scoring: Scoring,
    bias: jax.Array,
    rotary: Rotary | None,
    *inputs: jax.Array,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """Does the same as `attention.in_plain_jax` in Pallas kernels for GPUs.

    The inputs need not be finite. `interpret` runs the kernels on any platform; without it, `fits`
    must hold.
    """
    attended = (bias == 0).astype(jnp.int8)  # keys first
    if rotary is not None:
        inputs = (*map(rotary.apply, inputs[:2]), *inputs[2:])
    head_dim = scoring.head_dim
    inputs = tuple(_widen(x, head_dim) for x in inputs)
    compute = _mix if block is mix else _mix_gradients
    results = compute(scoring, attended, interpret, *inputs)
    results = [_narrow(x, head_dim) for x in results]
    if rotary is not None and len(results) == 3:
        results = [*map(rotary.transposed().apply, results[:2]), results[2]]
    return tuple(results)


def _width(head_dim: int) -> int:
    """The width of a head in the kernels: a power of 2, of at least 16 for products."""
    return max(16, pl.next_power_of_2(head_dim))


def _block(scoring: Scoring) -> int:
    return BLOCK if _width(scoring.head_dim) <= 128 else BLOCK_OF_WIDE


def _widen(x: jax.Array, head_dim: int) -> jax.Array:
    """Puts zeros behind each head, if its width is not one that kernels take."""
    if (more := _width(head_dim) - head_dim) == 0:
        return x
    heads = x.reshape(x.shape[0], -1, head_dim)
    return jnp.pad(heads, ((0, 0), (0, 0), (0, more))).reshape(x.shape[0], -1)


def _narrow(x: jax.Array, head_dim: int) -> jax.Array:
    """Undoes `_widen`."""
    if (width := _width(head_dim)) == head_dim:
        return x
    return x.reshape(x.shape[0], -1, width)[..., :head_dim].reshape(x.shape[0], -1)


def _mix(
    scoring: Scoring, attended: jax.Array, interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array
) -> Sequence[jax.Array]:
    of_queries, of_row, of_mask, grid = _of_query_blocks(scoring, attended, q, k)
    return _call(
        functools.partial(_mix_block, scoring),
        grid,
        [of_mask, of_queries, of_row, of_row],
        [of_queries],
        [q],
        interpret,
    )(attended.swapaxes(1, 2), q, k, v)


def _mix_gradients(
    scoring: Scoring,
    attended: jax.Array,
    interpret: bool,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    gradient: jax.Array,
) -> Sequence[jax.Array]:
    rows, slots, _ = attended.shape
    width, size = _width(scoring.head_dim), _block(scoring)
    heads, kv_heads = q.shape[1] // width, k.shape[1] // width
    of_queries, of_row, of_mask, grid = _of_query_blocks(scoring, attended, q, k)
    statistic = jax.ShapeDtypeStruct((heads, q.shape[0]), jnp.float32)
    of_statistic = pl.BlockSpec((None, size), lambda row, head, i: (head, row * grid[2] + i))
    of_q, normalizer, mean = _call(
        functools.partial(_query_gradients, scoring),
        grid,
        [of_mask, of_queries, of_row, of_row, of_queries],
        [of_queries, of_statistic, of_statistic],
        [q, statistic, statistic],
        interpret,
    )(attended.swapaxes(1, 2), q, k, v, gradient)

    group = heads // kv_heads
    of_keys = pl.BlockSpec((size, width), lambda row, head, j: (row * grid[2] + j, head))
    of_group = pl.BlockSpec((slots, group * width), lambda row, head, j: (row, head))
    of_statistics = pl.BlockSpec((group, slots), lambda row, head, j: (head, row))
    of_k, of_v = _call(
        functools.partial(_key_gradients, scoring),
        (rows, kv_heads, grid[2]),
        [
            pl.BlockSpec((None, size, slots), lambda row, head, j: (row, j, 0)),
            *(of_group, of_keys, of_keys, of_group),
            *(of_statistics, of_statistics),
        ],
        [of_keys, of_keys],
        [k, v],
        interpret,
    )(attended, q, k, v, gradient, normalizer, mean)
    return of_q, of_k, of_v


def _of_query_blocks(
    scoring: Scoring, attended: jax.Array, q: jax.Array, k: jax.Array
) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec, tuple[int, ...]]:
    """What kernels of a block of one head's queries read: queries, keys, mask; and their grid."""
    rows, slots, _ = attended.shape
    width, size = _width(scoring.head_dim), _block(scoring)
    blocks = slots // size
    group = q.shape[1] // k.shape[1]
    return (
        pl.BlockSpec((size, width), lambda row, head, i: (row * blocks + i, head)),
        pl.BlockSpec((slots, width), lambda row, head, i: (row, lax.div(head, group))),
        pl.BlockSpec((None, size, slots), lambda row, head, i: (row, i, 0)),
        (rows, q.shape[1] // width, blocks),
    )


def _call(
    kernel: functools.partial[None],
    grid: tuple[int, ...],
    in_specs: Sequence[pl.BlockSpec],
    out_specs: Sequence[pl.BlockSpec],
    results: Sequence[jax.Array | jax.ShapeDtypeStruct],
    interpret: bool,
) -> Callable[..., Sequence[jax.Array]]:
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpret,
        name=kernel.func.__name__,
    )


def _mix_block(
    scoring: Scoring,
    attended_ref: jax.Ref,
    q_ref: jax.Ref,
    k_ref: jax.Ref,
    v_ref: jax.Ref,
    out_ref: jax.Ref,
) -> None:
    """Mixes the values of one head for a block of queries."""
    q, size = finite(q_ref[...]) * scoring.scale, q_ref.shape[0]

    def add(j: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        most, total, mixed = sums
        keys = pl.ds(j * size, size)
        scores, _ = score(scoring, finite(k_ref[keys, :]), q)
        scores = jnp.where(attended_ref[:, keys] != 0, scores, HIDDEN)
        higher = jnp.maximum(most, scores.max(axis=1))
        kept = jnp.exp(most - higher)
        weights = jnp.exp(scores - higher[:, None])
        values = finite(v_ref[keys, :])
        more = product(weights.astype(values.dtype), values, 1, 0)
        return higher, kept * total + weights.sum(axis=1), kept[:, None] * mixed + more

    start = jnp.full(size, HIDDEN), jnp.zeros(size), jnp.zeros(q.shape)
    _, total, mixed = lax.fori_loop(0, pl.program_id(2) + 1, add, start)
    out_ref[...] = (mixed / total[:, None]).astype(out_ref.dtype)


def _query_gradients(
    scoring: Scoring,
    attended_ref: jax.Ref,
    q_ref: jax.Ref,
    k_ref: jax.Ref,
    v_ref: jax.Ref,
    gradient_ref: jax.Ref,
    of_q_ref: jax.Ref,
    normalizer_ref: jax.Ref,
    mean_ref: jax.Ref,
) -> None:
    """Computes the gradients of a block of one head's queries, and statistics of their weights.

    These are the logarithm of the sum of exponentiated scores, and the mean of the gradients of the
    weights, weighted by them. The mean is known only after the last block. So the gradient is
    summed up as if the mean were 0, and beside it what the mean is to be multiplied with.
    """
    q, gradient = finite(q_ref[...]) * scoring.scale, finite(gradient_ref[...])
    size = q.shape[0]

    def add(j: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        most, total, weighted, by_gradient, by_weight = sums
        keys = pl.ds(j * size, size)
        k = finite(k_ref[keys, :])
        scores, slope = score(scoring, k, q)
        scores = jnp.where(attended_ref[:, keys] != 0, scores, HIDDEN)
        of_weights = product(gradient, finite(v_ref[keys, :]), 1, 1)
        higher = jnp.maximum(most, scores.max(axis=1))
        kept = jnp.exp(most - higher)
        weights = jnp.exp(scores - higher[:, None])
        changes = weights * of_weights
        return (
            higher,
            kept * total + weights.sum(axis=1),
            kept * weighted + changes.sum(axis=1),
            kept[:, None] * by_gradient + product((changes * slope).astype(k.dtype), k, 1, 0),
            kept[:, None] * by_weight + product((weights * slope).astype(k.dtype), k, 1, 0),
        )

    none = jnp.zeros(size), jnp.zeros(size), jnp.zeros(q.shape), jnp.zeros(q.shape)
    most, total, weighted, by_gradient, by_weight = lax.fori_loop(
        0, pl.program_id(2) + 1, add, (jnp.full(size, HIDDEN), *none)
    )
    mean = weighted / total
    of_q = (by_gradient - mean[:, None] * by_weight) * (scoring.scale / total)[:, None]
    of_q_ref[...] = of_q.astype(of_q_ref.dtype)
    normalizer_ref[...], mean_ref[...] = most + jnp.log(total), mean


def _key_gradients(
    scoring: Scoring,
    attended_ref: jax.Ref,
    q_ref: jax.Ref,
    k_ref: jax.Ref,
    v_ref: jax.Ref,
    gradient_ref: jax.Ref,
    normalizer_ref: jax.Ref,
    mean_ref: jax.Ref,
    of_k_ref: jax.Ref,
    of_v_ref: jax.Ref,
) -> None:
    """Computes the gradients of a block of one key head's keys and values; scores keys first."""
    k, v = finite(k_ref[...]), finite(v_ref[...])
    size, width = k.shape

    def add(
        head: int, i: jax.Array, sums: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        queries, lanes = pl.ds(i * size, size), pl.ds(head * width, width)
        q = finite(q_ref[queries, lanes]) * scoring.scale
        gradient = finite(gradient_ref[queries, lanes])
        scores, slope = score(scoring, q, k)
        scores = jnp.where(attended_ref[:, queries] != 0, scores, HIDDEN)
        weights = jnp.exp(scores - normalizer_ref[head, queries][None, :])
        of_weights = product(v, gradient, 1, 1)
        of_scores = weights * (of_weights - mean_ref[head, queries][None, :]) * slope
        of_k, of_v = sums
        return (
            of_k + product(of_scores.astype(q.dtype), q, 1, 0),
            of_v + product(weights.astype(gradient.dtype), gradient, 1, 0),
        )

    sums = jnp.zeros(k.shape), jnp.zeros(v.shape)
    for head in range(q_ref.shape[1] // width):
        sums = lax.fori_loop(
            pl.program_id(2), q_ref.shape[0] // size, functools.partial(add, head), sums
        )
    for ref, x in zip((of_k_ref, of_v_ref), sums, strict=True):
        ref[...] = x.astype(ref.dtype)
