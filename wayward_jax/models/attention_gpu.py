"""The kernels that compute attention on GPUs, a block of slots of one head at a time.

Scores never leave the chip. Softmax is computed block by block (FlashAttention-2, Dao, 2023,
section 3). The backward pass has two kernels: one for the gradients of queries, which also leaves
what normalizes each query's weights, and one for the gradients of keys and values. Neither needs
anything of the forward pass but its inputs.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

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
    score,
)
from wayward_jax.models.products import product
from wayward_jax.models.rotary import Rotary

# The slots of a block, and of heads that are wider than 128. Larger blocks do not fit into the fast
# memory of an A100 or H100.
BLOCK, BLOCK_OF_WIDE = 64, 32

# The warps of a block, and the stages of its loops that overlap.
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


class _Blocks(NamedTuple):
    """The parts of arrays that a kernel reads for one row, head and block of slots.

    Attributes:
        per_row: the number of blocks of a row.
        own: the block's own slots of the head.
        row: all slots of the key head that a query head uses.
        mask: what the block's slots attend to, or which slots attend to them.
    """

    per_row: int
    own: pl.BlockSpec
    row: pl.BlockSpec
    mask: pl.BlockSpec

    @classmethod
    def of(cls, scoring: Scoring, slots: int, group: int) -> "_Blocks":
        width, size = _width(scoring.head_dim), _block(scoring)
        per_row = slots // size
        return cls(
            per_row,
            pl.BlockSpec((size, width), lambda row, head, i: (row * per_row + i, head)),
            pl.BlockSpec((slots, width), lambda row, head, i: (row, lax.div(head, group))),
            pl.BlockSpec((None, size, slots), lambda row, head, i: (row, i, 0)),
        )


def _mix(
    scoring: Scoring, attended: jax.Array, interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array
) -> Sequence[jax.Array]:
    rows, slots, _ = attended.shape
    blocks = _Blocks.of(scoring, slots, q.shape[1] // k.shape[1])
    return _call(
        functools.partial(_mix_block, scoring),
        (rows, q.shape[1] // _width(scoring.head_dim), blocks.per_row),
        [blocks.mask, blocks.own, blocks.row, blocks.row],
        [blocks.own],
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
    group = heads // kv_heads
    blocks = _Blocks.of(scoring, slots, group)
    statistic = jax.ShapeDtypeStruct((heads, q.shape[0]), jnp.float32)
    of_statistic = pl.BlockSpec((None, size), lambda row, head, i: (head, row * blocks.per_row + i))
    of_q, normalizer, mean = _call(
        functools.partial(_query_gradients, scoring),
        (rows, heads, blocks.per_row),
        [blocks.mask, blocks.own, blocks.row, blocks.row, blocks.own],
        [blocks.own, of_statistic, of_statistic],
        [q, statistic, statistic],
        interpret,
    )(attended.swapaxes(1, 2), q, k, v, gradient)

    of_group = pl.BlockSpec((slots, group * width), lambda row, head, j: (row, head))
    of_statistics = pl.BlockSpec((group, slots), lambda row, head, j: (head, row))
    of_k, of_v = _call(
        functools.partial(_key_gradients, scoring),
        (rows, kv_heads, blocks.per_row),
        [
            *(blocks.mask, of_group, blocks.own, blocks.own, of_group),
            *(of_statistics, of_statistics),
        ],
        [blocks.own, blocks.own],
        [k, v],
        interpret,
    )(attended, q, k, v, gradient, normalizer, mean)
    return of_q, of_k, of_v


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


def _weigh(
    scores: jax.Array, most: jax.Array, total: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Exponentiates a further block of scores (queries first) beside those before it.

    Args:
        scores: `[Z, S]` float32.
        most: `[Z]`, each query's largest score before this block.
        total: `[Z]`, the sum of the weights before it, which are relative to `most`.

    Returns:
        Weights `[Z, S]` relative to the new largest score; that score and the new total, `[Z]`; and
        the factor `[Z]` that turns what was summed up before into what is relative to it.
    """
    higher = jnp.maximum(most, scores.max(axis=1))
    kept = jnp.exp(most - higher)
    weights = jnp.exp(scores - higher[:, None])
    return weights, higher, kept * total + weights.sum(axis=1), kept


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
        weights, most, total, kept = _weigh(scores, most, total)
        values = finite(v_ref[keys, :])
        more = product(weights.astype(values.dtype), values, 1, 0)
        return most, total, kept[:, None] * mixed + more

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
        weights, most, total, kept = _weigh(scores, most, total)
        changes = weights * of_weights
        return (
            most,
            total,
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
