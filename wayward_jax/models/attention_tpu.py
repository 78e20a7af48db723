"""The kernel that computes attention on TPUs, a row at a time."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from wayward_jax.models.attention_blocks import Block, Scoring, add_longer, query_blocks
from wayward_jax.models.rotary import Rotary, rotate

# The width of a TPU's registers. Narrower heads share a register.
LANES = 128

# The scores of up to so many queries and all keys before them fit into fast memory.
QUERIES = 512


def in_kernel(
    block: Block,
    scoring: Scoring,
    bias: jax.Array,
    rotary: Rotary | None,
    *inputs: jax.Array,
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """Does the same as `attention.in_plain_jax` in a Pallas kernel for TPUs.

    `interpret` runs the kernel on any platform.
    """
    rows, slots, _ = bias.shape
    results = inputs[:1] if len(inputs) == 3 else inputs[:3]
    tables = [] if rotary is None else [_of_register(x) for x in (rotary.cos, rotary.sin)]

    def of_row(x: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec((slots, x.shape[1]), lambda row: (row, 0))

    return tuple(
        pl.pallas_call(
            functools.partial(
                _kernel, block, scoring, None if rotary is None else rotary.half, len(inputs)
            ),
            grid=(rows,),
            in_specs=[
                pl.BlockSpec((None, slots, slots), lambda row: (row, 0, 0)),
                *map(of_row, [*tables, *inputs]),
            ],
            out_specs=[of_row(x) for x in results],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
            # The two cores of a v4 or v5p share the rows.
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
            interpret=interpret,
            name=block.__name__,
        )(bias, *tables, *inputs)
    )


def _of_register(table: jax.Array) -> jax.Array:
    """Repeats a table `[T, d]` for all heads of a register."""
    return jnp.tile(table, max(1, LANES // table.shape[1]))


def _kernel(
    block: Block,
    scoring: Scoring,
    half: int | None,
    n_inputs: int,
    bias_ref: jax.Ref,
    *refs: jax.Ref,
) -> None:
    """Applies a block to one row, a register of heads at a time.

    Heads of 64 share a register of 128 lanes. A product over 128 lanes takes as long as one over
    64, so each head is multiplied with the lanes of the other set to 0, and no lane ever moves.
    """
    n_tables = 0 if half is None else 2
    tables, refs = refs[:n_tables], refs[n_tables:]
    (q_ref, *kv_refs), (out_ref, *sum_refs) = refs[:n_inputs], refs[n_inputs:]
    k_ref, v_ref, *gradient_refs = kv_refs
    head_dim, slots = scoring.head_dim, q_ref.shape[0]
    group = q_ref.shape[1] // k_ref.shape[1]
    width = head_dim * max(1, LANES // head_dim)

    def rotated(x: jax.Array, sign: int = 1) -> jax.Array:
        if half is None:
            return x
        cos, sin = (table[:, : x.shape[1]] for table in tables)
        return rotate(x, cos, sign * sin, head_dim, half)

    sums: dict[int, list[jax.Array]] = {}  # the gradients of k and v, by key head
    for first in range(0, q_ref.shape[1], width):
        lanes = slice(first, min(first + width, q_ref.shape[1]))
        kv_heads = [head // group for head in range(first // head_dim, lanes.stop // head_dim)]
        keys, values = (_lanes_of(ref, kv_heads, head_dim) for ref in (k_ref, v_ref))
        keys, q = rotated(keys), rotated(q_ref[:, lanes])
        gradient = [ref[:, lanes] for ref in gradient_refs]
        of_queries: list[jax.Array] = []
        of_keys: list[jax.Array] = []
        for own, seen in query_blocks(slots, QUERIES, LANES):
            heads_q, *heads_gradient = (_one_below_other(x[own], head_dim) for x in (q, *gradient))
            result, *of_block = block(
                scoring, bias_ref[:seen, own], heads_q, keys[:seen], values[:seen], *heads_gradient
            )
            of_queries.append(_side_by_side(result, head_dim, q.shape[1]))
            of_keys = add_longer(of_keys, of_block, axis=0)
        out = jnp.concatenate(of_queries)
        if of_keys:
            out, of_keys[0] = rotated(out, -1), rotated(of_keys[0], -1)
        out_ref[:, lanes] = out.astype(out_ref.dtype)
        if group == 1:
            for ref, x in zip(sum_refs, of_keys, strict=True):
                ref[:, lanes] = x.astype(ref.dtype)
            continue
        for place, head in enumerate(kv_heads if of_keys else ()):
            parts = [x[:, place * head_dim : (place + 1) * head_dim] for x in of_keys]
            sums[head] = (
                [a + b for a, b in zip(sums[head], parts, strict=True)] if head in sums else parts
            )
    for head, parts in sums.items():
        for ref, x in zip(sum_refs, parts, strict=True):
            ref[:, head * head_dim : (head + 1) * head_dim] = x.astype(ref.dtype)


def _lanes_of(ref: jax.Ref, heads: list[int], head_dim: int) -> jax.Array:
    """Reads the lanes of some heads; heads that stand side by side are read at once."""
    if heads == list(range(heads[0], heads[-1] + 1)):
        return ref[:, heads[0] * head_dim : (heads[-1] + 1) * head_dim]
    return jnp.concatenate([ref[:, h * head_dim : (h + 1) * head_dim] for h in heads], axis=1)


def _one_below_other(x: jax.Array, head_dim: int) -> jax.Array:
    """Puts n heads one below the other, each between zeros: `[S, n * d] -> [n * S, n * d]`."""
    head = lax.broadcasted_iota(jnp.int32, x.shape, 1) // head_dim
    heads = range(x.shape[1] // head_dim)
    return jnp.concatenate([jnp.where(head == i, x, jnp.zeros_like(x)) for i in heads])


def _side_by_side(x: jax.Array, head_dim: int, width: int) -> jax.Array:
    """Undoes `_one_below_other`: takes each head's lanes from its part of `x`."""
    merged, *parts = jnp.split(x, width // head_dim)
    head = lax.broadcasted_iota(jnp.int32, merged.shape, 1) // head_dim
    for i, part in enumerate(parts, 1):
        merged = jnp.where(head == i, part, merged)
    return merged
