"""Attention within rows of slots: plain JAX, and the same arithmetic in a kernel for TPUs.

The tokens of a batch stand in W *rows* of S *slots*, and a boolean mask says which slots of its row
each slot attends to. All layers except attention compute on the flat stream of `T = W * S` slots.

`attend` keeps only queries, keys and values for the backward pass and computes the softmax weights
again there, because they are by far the largest arrays (FlashAttention, Dao et al., 2022, section
3.1). A row is short enough that the scores of a few heads fit into fast memory as a whole.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

# What is added to the score of a slot that is hidden. It is far below every score of numbers that
# are at most LARGEST, so that the weight is exactly 0, and finite, so that no NaN comes of it.
HIDDEN = -1e30

# Larger numbers count as not finite. Sums of their products would overflow.
LARGEST = 1e13

# The queries that plain JAX computes at once, with all keys before the last of them.
QUERIES = 64

# The width of a TPU's registers. Narrower heads share a register.
LANES = 128

Block = Callable[..., tuple[jax.Array, ...]]


def attention_bias(mask: jax.Array) -> jax.Array:
    """Makes the bias for `attend` from a mask.

    Args:
        mask: `[W, S, S]` bool, True where a slot (second axis) attends to another slot of its row
            (last axis). Every slot attends to itself and to no later slot.

    Returns:
        `[W, S, S]` float32, with the attended slots on the second axis and the others on the last.
    """
    return jnp.where(mask.swapaxes(1, 2), 0.0, HIDDEN)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, head_dim: int) -> jax.Array:
    """Computes softmax attention of every slot to its row.

    Scores and softmax are in float32. The products have the dtype of their inputs and are summed in
    float32, in the backward pass, too. Numbers that are not finite are replaced by 0, because rows
    are shared, and 0 times NaN would reach a run's neighbors.

    Args:
        q: `[T, H * d]`, the queries of H heads side by side.
        k: `[T, K * d]`, keys. K divides H, and query head h uses key head `h // (H / K)`.
        v: `[T, K * d]`, values.
        bias: `[W, S, S]` float32, from `attention_bias`.
        head_dim: d.

    Returns:
        The heads' outputs side by side, `[T, H * d]` in the dtype of `q`.
    """
    return _attend_forward(q, k, v, bias, head_dim)[0]


def _attend_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, head_dim: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    q, k, v = _finite(q), _finite(k), _finite(v)
    (mixed,) = _on_this_platform(mix, head_dim, bias, q, k, v)
    return mixed, (q, k, v, bias)


def _attend_backward(
    head_dim: int, residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array | None, ...]:
    q, k, v, bias = residuals
    gradients = _on_this_platform(mix_gradients, head_dim, bias, q, k, v, _finite(gradient))
    return *gradients, None


attend.defvjp(_attend_forward, _attend_backward)


def _finite(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(x) <= LARGEST, x, 0)


def mix(
    scale: float, bias: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array]:
    """Mixes the values of a row for n heads that share its keys.

    Args:
        scale: factor of the scores.
        bias: `[S, Z]` float32, of S keys and Z queries.
        q: `[n * Z, d]`, the queries of one head below those of another.
        k: `[S, d]`.
        v: `[S, d]`.

    Returns:
        `[n * Z, d]` float32.
    """
    weights = _weights(bias, q * scale, k)
    return (_product(weights.astype(v.dtype), v, 0, 0),)


def mix_gradients(
    scale: float, bias: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the gradients of `mix` with respect to q, k and v, in float32.

    `gradient` is `[n * Z, d]`, that with respect to the result. The other arguments are those of
    `mix`.
    """
    q = q * scale
    weights = _weights(bias, q, k)
    of_weights = _product(v, gradient, 1, 1)
    mean = (weights * of_weights).sum(axis=0, keepdims=True)
    of_scores = (weights * (of_weights - mean)).astype(q.dtype)
    return (
        _product(of_scores, k, 0, 0) * scale,
        _product(of_scores, q, 1, 0),
        _product(weights.astype(gradient.dtype), gradient, 1, 0),
    )


def _weights(bias: jax.Array, q: jax.Array, k: jax.Array) -> jax.Array:
    """Computes softmax weights, keys first: `[S, n * Z]` float32.

    Sums over keys are then sums down the registers of a TPU, not across their lanes.
    """
    heads = len(q) // bias.shape[1]
    scores = _product(k, q, 1, 1) + jnp.concatenate([bias] * heads, axis=1)
    weights = jnp.exp(scores - scores.max(axis=0, keepdims=True))
    return weights * (1 / weights.sum(axis=0, keepdims=True))


def _product(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Multiplies two matrices, summing over one axis of each, in float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    axes = (((a_axis,), (b_axis,)), ((), ()))
    return lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def _on_this_platform(
    block: Block, head_dim: int, bias: jax.Array, *inputs: jax.Array
) -> tuple[jax.Array, ...]:
    return lax.platform_dependent(
        bias,
        *inputs,
        tpu=functools.partial(_by_model_shard, functools.partial(in_kernel, block, head_dim)),
        default=functools.partial(in_plain_jax, block, head_dim),
    )


def _by_model_shard(
    kernel: Block, bias: jax.Array, q: jax.Array, k: jax.Array, *inputs: jax.Array
) -> tuple[jax.Array, ...]:
    """Gives each device of the mesh axis `model` its own heads; compilers cannot divide kernels.

    Every device computes all heads where they cannot be divided evenly.
    """
    shards = jax.sharding.get_abstract_mesh().shape.get("model")
    if shards is None:
        return kernel(bias, q, k, *inputs)
    divided = PartitionSpec(None, "model" if k.shape[1] % (shards * LANES) == 0 else None)
    return jax.shard_map(
        kernel,
        in_specs=(PartitionSpec(), *[divided] * (2 + len(inputs))),
        out_specs=divided,
        axis_names={"model"},
        check_vma=False,
    )(bias, q, k, *inputs)


def in_plain_jax(
    block: Block, head_dim: int, bias: jax.Array, *inputs: jax.Array
) -> tuple[jax.Array, ...]:
    """Applies a block to all rows and heads.

    Heads are moved before slots because CPUs multiply matrices that are contiguous in memory two to
    three times faster. Attention is causal, so the keys behind a block of queries are left out.

    Args:
        block: `mix` or `mix_gradients`.
        head_dim: d.
        bias: `[W, S, S]` float32.
        *inputs: q, k, v and, for the gradients, that of the result, as in `attend`.

    Returns:
        The block's results, in the shapes and dtypes of the first of the inputs.
    """
    rows, slots, _ = bias.shape
    kv_heads = inputs[1].shape[1] // head_dim
    each_head = jax.vmap(
        functools.partial(block, head_dim**-0.5), in_axes=(None, *[0] * len(inputs))
    )

    def by_head(x: jax.Array) -> jax.Array:
        split = x.reshape(rows, x.shape[1], kv_heads, -1, head_dim)
        return split.transpose(0, 2, 3, 1, 4).reshape(rows, kv_heads, -1, head_dim)

    def by_slot(x: jax.Array, n: int) -> jax.Array:
        split = x.reshape(rows, kv_heads, -1, n, head_dim)
        return split.transpose(0, 3, 1, 2, 4).reshape(rows, n, -1)

    q, k, v, *gradient = (x.reshape(rows, slots, -1) for x in inputs)
    of_queries, of_keys = [], [0.0, 0.0]
    for first in range(0, slots, QUERIES):
        own, seen = slice(first, min(first + QUERIES, slots)), min(first + QUERIES, slots)
        parts = (q[:, own], k[:, :seen], v[:, :seen], *(g[:, own] for g in gradient))
        result, *sums = jax.vmap(each_head)(bias[:, :seen, own], *map(by_head, parts))
        of_queries.append(by_slot(result, seen - first))
        unseen = ((0, 0), (0, slots - seen), (0, 0))
        of_keys = [
            total + jnp.pad(by_slot(x, seen), unseen)
            for total, x in zip(of_keys, sums, strict=False)
        ]
    results = [jnp.concatenate(of_queries, axis=1), *of_keys]
    return tuple(
        x.reshape(like.shape).astype(like.dtype) for x, like in zip(results, inputs, strict=False)
    )


def in_kernel(
    block: Block, head_dim: int, bias: jax.Array, *inputs: jax.Array, interpret: bool = False
) -> tuple[jax.Array, ...]:
    """Does the same as `in_plain_jax` in a Pallas kernel for TPUs, a row at a time.

    `interpret` runs the kernel on any platform.
    """
    rows, slots, _ = bias.shape
    n_results = {mix: 1, mix_gradients: 3}[block]

    def of_row(x: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec((slots, x.shape[1]), lambda row: (row, 0))

    results = pl.pallas_call(
        functools.partial(_kernel, block, head_dim, len(inputs)),
        grid=(rows,),
        in_specs=[
            pl.BlockSpec((None, slots, slots), lambda row: (row, 0, 0)),
            *map(of_row, inputs),
        ],
        out_specs=[of_row(x) for x in inputs[:n_results]],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs[:n_results]],
        interpret=interpret,
        name=block.__name__,
    )(bias, *inputs)
    return tuple(results)


def _kernel(block: Block, head_dim: int, n_inputs: int, bias_ref: jax.Ref, *refs: jax.Ref) -> None:
    """Applies a block to one row, a register of heads at a time.

    Heads of 64 share a register of 128 lanes. A product over 128 lanes takes as long as one over
    64, so each head is multiplied with the lanes of the other set to 0, and no lane ever moves.
    """
    (q_ref, *kv_refs), (out_ref, *sum_refs) = refs[:n_inputs], refs[n_inputs:]
    k_ref, v_ref, *gradient_refs = kv_refs
    group = q_ref.shape[1] // k_ref.shape[1]
    width = head_dim * max(1, LANES // head_dim)
    sums: dict[int, list[jax.Array]] = {}  # the gradients of k and v, by key head
    for first in range(0, q_ref.shape[1], width):
        own = slice(first, min(first + width, q_ref.shape[1]))
        kv_heads = [head // group for head in range(own.start // head_dim, own.stop // head_dim)]
        keys, values = (_lanes_of(ref, kv_heads, head_dim) for ref in (k_ref, v_ref))
        q, *gradient = (_one_below_other(r[:, own], head_dim) for r in (q_ref, *gradient_refs))
        result, *of_keys = block(head_dim**-0.5, bias_ref[...], q, keys, values, *gradient)
        out_ref[:, own] = _side_by_side(result, head_dim, own.stop - own.start).astype(
            out_ref.dtype
        )
        if group == 1:
            for ref, x in zip(sum_refs, of_keys, strict=True):
                ref[:, own] = x.astype(ref.dtype)
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
