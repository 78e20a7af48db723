"""Attention within rows of slots: plain JAX, and the same arithmetic in kernels for TPUs and GPUs.

The tokens of a batch stand in W *rows* of S *slots*, and a mask says which slots of its row each
slot attends to. All layers except attention compute on the flat stream of `T = W * S` slots.

`attend` keeps only queries, keys and values for the backward pass and computes the softmax weights
again there, because they are by far the largest arrays (FlashAttention, Dao et al., 2022, section
3.1). The scores of a block of queries are computed as a whole.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.sharding import PartitionSpec

from wayward_jax.models import attention_gpu, attention_tpu
from wayward_jax.models.attention_blocks import (
    HIDDEN,
    Block,
    Scoring,
    add_longer,
    finite,
    mix,
    mix_gradients,
    query_blocks,
)
from wayward_jax.models.rotary import Rotary
from wayward_jax.sharding import by_platform, model_shards

# The most queries that plain JAX computes at once, with all keys before the last of them.
QUERIES = 128


@struct.dataclass
class AttentionMask:
    """Says which slots of its row each slot attends to.

    Attributes:
        bias: `[W, S, S]` float32, added to the scores: 0 where a slot (last axis) attends to
            another slot (second axis), and HIDDEN elsewhere.
        positions: `[W, S]` int32, the slots' positions, by which sliding windows are measured.
    """

    bias: jax.Array
    positions: jax.Array

    @classmethod
    def of(cls, attended: jax.Array, positions: jax.Array) -> "AttentionMask":
        """Makes the mask of rows.

        Args:
            attended: `[W, S, S]` bool, True where a slot (second axis) attends to another slot of
                its row (last axis). Every slot attends to itself and to no later slot.
            positions: `[W, S]` int32.
        """
        return cls(jnp.where(attended.swapaxes(1, 2), 0.0, HIDDEN), positions)

    def bias_within(self, window: int | None) -> jax.Array:
        """Hides all slots but those of the last `window` positions, the own one among them."""
        if window is None:
            return self.bias
        distance = self.positions[:, None, :] - self.positions[:, :, None]
        return jnp.where(distance < window, self.bias, HIDDEN)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: AttentionMask,
    head_dim: int,
    *,
    rotary: Rotary | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    window: int | None = None,
) -> jax.Array:
    """Computes softmax attention of every slot to its row.

    Scores and softmax are in float32. The products have the dtype of their inputs and are summed in
    float32, in the backward pass, too. Numbers that are not finite are replaced by 0, because rows
    are shared, and 0 times NaN would reach a run's neighbors.

    A family that normalizes queries and keys does so before it calls this function. The rotation
    comes after such norms, and here.

    Args:
        q: `[T, H * d]`, the queries of H heads side by side.
        k: `[T, K * d]`, keys. K divides H, and query head h uses key head `h // (H / K)`.
        v: `[T, K * d]`, values.
        mask: of W rows of S slots, `W * S = T`.
        head_dim: d.
        rotary: rotates queries and keys.
        scale: factor of the products of queries and keys; None is `d ** -0.5`.
        soft_cap: scores s become `soft_cap * tanh(s / soft_cap)` (Gemma 2, 2024, section 2).
        window: a slot attends to its last `window` positions alone, its own among them; None is all
            (Mistral 7B, Jiang et al., 2023, section 2).

    Returns:
        The heads' outputs side by side, `[T, H * d]` in the dtype of `q`.
    """
    scoring = Scoring(head_dim, head_dim**-0.5 if scale is None else scale, soft_cap)
    return _attend(q, k, v, mask.bias_within(window), rotary, scoring)


def select_slots(
    x: jax.Array, mixed: jax.Array, slots: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Selects some slots of the stream and of what `attend` returned: `[T, n] -> [Q, n]`.

    None means all. Each device of the mesh axis `model` selects from its own heads. XLA would make
    the zeros of both gradients one array, and divide the stream as it divides the heads.
    """
    if slots is None:
        return x, mixed
    if model_shards() <= 1 or mixed.shape[1] % model_shards():
        return x[slots], mixed[slots]
    heads = PartitionSpec(None, "model")
    select = jax.shard_map(
        lambda mixed, slots: mixed[slots],
        in_specs=(heads, PartitionSpec()),
        out_specs=heads,
        axis_names={"model"},
        check_vma=False,
    )
    return x[slots], select(mixed, slots)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    rotary: Rotary | None,
    scoring: Scoring,
) -> jax.Array:
    return _attend_forward(q, k, v, bias, rotary, scoring)[0]


def _attend_forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    rotary: Rotary | None,
    scoring: Scoring,
) -> tuple[jax.Array, tuple]:
    def forward(bias: jax.Array, rotary: Rotary | None, *inputs: jax.Array) -> tuple:
        inputs = tuple(map(_finite_outside, inputs))
        return *_on_this_platform(mix, scoring, bias, rotary, *inputs), *inputs

    mixed, *inputs = _by_model_shard(forward, scoring.head_dim, bias, rotary, q, k, v)
    return mixed, (*inputs, bias, rotary)


def _attend_backward(scoring: Scoring, residuals: tuple, gradient: jax.Array) -> tuple:
    def backward(
        bias: jax.Array, rotary: Rotary | None, *inputs: jax.Array
    ) -> tuple[jax.Array, ...]:
        *kept, gradient = inputs
        return _on_this_platform(
            mix_gradients, scoring, bias, rotary, *kept, _finite_outside(gradient)
        )

    *inputs, bias, rotary = residuals
    gradients = _by_model_shard(backward, scoring.head_dim, bias, rotary, *inputs, gradient)
    return *gradients, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _finite_outside(x: jax.Array) -> jax.Array:
    """Replaces numbers that are not finite by 0, except on GPUs, where kernels do it."""
    return by_platform(x, cuda=lambda x: x, default=finite)


def _by_model_shard(
    function: Callable[..., tuple[jax.Array, ...]],
    head_dim: int,
    bias: jax.Array,
    rotary: Rotary | None,
    *inputs: jax.Array,
) -> tuple[jax.Array, ...]:
    """Calls a function of queries, keys and values on each device of the mesh axis `model`.

    Each device has its own heads, or all if the key heads cannot be divided evenly. Compilers
    cannot divide kernels, not even by 1, and divide plain attention badly.
    """
    if (shards := model_shards()) == 0:
        return function(bias, rotary, *inputs)
    kv_heads = inputs[1].shape[1] // head_dim
    heads = PartitionSpec(None, "model" if kv_heads % shards == 0 else None)
    return jax.shard_map(
        function,
        in_specs=(PartitionSpec(), PartitionSpec(), *[heads] * len(inputs)),
        out_specs=heads,
        axis_names={"model"},
        check_vma=False,
    )(bias, rotary, *inputs)


def _on_this_platform(
    block: Block, scoring: Scoring, bias: jax.Array, rotary: Rotary | None, *inputs: jax.Array
) -> tuple[jax.Array, ...]:
    plain = functools.partial(in_plain_jax, block, scoring)

    def without_kernel(*arguments: Any) -> tuple[jax.Array, ...]:
        # The barrier keeps the compiler from keeping the forward pass's weights for the backward
        # pass. CPUs have the memory for them.
        bias, rotary, *inputs = lax.optimization_barrier(arguments)
        return plain(bias, rotary, *map(finite, inputs))

    fits_gpu = attention_gpu.fits(bias.shape[1], inputs[0].dtype)
    return by_platform(
        bias,
        rotary,
        *inputs,
        tpu=functools.partial(attention_tpu.in_kernel, block, scoring),
        cuda=functools.partial(attention_gpu.in_kernel, block, scoring)
        if fits_gpu
        else without_kernel,
        cpu=plain,
        default=without_kernel,
    )


def in_plain_jax(
    block: Block, scoring: Scoring, bias: jax.Array, rotary: Rotary | None, *inputs: jax.Array
) -> tuple[jax.Array, ...]:
    """Applies a block to all rows and heads.

    Heads are moved before slots because CPUs multiply matrices that are contiguous in memory two to
    three times faster. Attention is causal, so the keys behind a block of queries are left out.

    Args:
        block: `mix` or `mix_gradients`.
        scoring: of the heads.
        bias: `[W, S, S]` float32.
        rotary: as in `attend`.
        *inputs: q, k, v and, for the gradients, that of the result, as in `attend`.

    Returns:
        The block's results, in the shapes and dtypes of the first of the inputs.
    """
    rows, slots, _ = bias.shape
    head_dim, kv_heads = scoring.head_dim, inputs[1].shape[1] // scoring.head_dim
    each_head = jax.vmap(functools.partial(block, scoring), in_axes=(None, *[0] * len(inputs)))

    def by_head(x: jax.Array) -> jax.Array:
        """Moves heads before slots: `[T, K * n * d] -> [W, K, n, S, d]`."""
        return x.reshape(rows, slots, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)

    if rotary is not None:
        inputs = (*map(rotary.apply, inputs[:2]), *inputs[2:])
    q, k, v, *gradient = map(by_head, inputs)
    of_queries: list[jax.Array] = []
    of_keys: list[jax.Array] = []
    for own, seen in query_blocks(slots, QUERIES, grain=8):
        queries, *of_result = (
            x[..., own, :].reshape(rows, kv_heads, -1, head_dim) for x in (q, *gradient)
        )
        keys, values = k[:, :, 0, :seen], v[:, :, 0, :seen]
        result, *sums = jax.vmap(each_head)(bias[:, :seen, own], queries, keys, values, *of_result)
        of_queries.append(result.reshape(*q.shape[:3], -1, head_dim))
        of_keys = add_longer(of_keys, sums, axis=2)
    results = [jnp.concatenate(of_queries, axis=3), *(x[:, :, None] for x in of_keys)]
    results = [
        x.transpose(0, 3, 1, 2, 4).reshape(like.shape)
        for x, like in zip(results, inputs, strict=False)
    ]
    if rotary is not None and gradient:
        results = [*map(rotary.transposed().apply, results[:2]), results[2]]
    return tuple(x.astype(like.dtype) for x, like in zip(results, inputs, strict=False))
