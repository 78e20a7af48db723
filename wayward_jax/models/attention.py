"""Attention of many examples to the one prompt that they share.

A *run* has one prompt and some examples. The prompt comes before every example of its run, and
attention is causal, so the prompt's keys and values do not depend on the examples. They are
computed once per run, and every example of the run attends to them. A run with a prompt of L tokens
and B examples of T tokens then has `L + B * T` tokens per step instead of `B * (L + T)`. Nothing is
approximated, gradients included.

The tokens of R runs form one *stream*: first the prompts, then the examples one after another. All
layers except attention compute on the stream, which has almost no padding. Attention computes on W
*rows* of S *slots*. A row holds whole examples of one run.
"""

import jax
import jax.numpy as jnp
from flax import struct

LayerKVCache = tuple[jax.Array, jax.Array]
"""The prompts' keys and values in one layer: two arrays `[R, L, K, d]`."""

LOWEST = float(jnp.finfo(jnp.float32).min)


@struct.dataclass
class AttentionLayout:
    """The places of the tokens of a stream, and which tokens each of them attends to.

    The stream is R prompts of L tokens, then T tokens of examples. If the prompts' keys and values
    are given, it is the T tokens alone. An index of -1 marks an empty token, slot or row.

    Attributes:
        prompt_mask: `[R, L]` bool, False where a prompt shorter than L is padded at its end.
        positions: `[T]` int32, positions of the examples' tokens, counted from the prompt's start.
        slot: `[T]` int32, the slot of each token, an index into the `W * S` slots of all rows.
        token: `[W, S]` int32, the token in each slot, an index into the T tokens.
        run: `[W]` int32, the run whose prompt the tokens of a row attend to.
        rows: `[R, n]` int32, the rows of each run.
        attention_mask: `[W, S, S]` bool, True where a slot (second axis) attends to another slot of
            its row (last axis). Every slot attends to itself, also an empty one, so that every
            softmax has at least one term.
    """

    prompt_mask: jax.Array
    positions: jax.Array
    slot: jax.Array
    token: jax.Array
    run: jax.Array
    rows: jax.Array
    attention_mask: jax.Array

    def stream_positions(self, prompts: jax.Array) -> jax.Array:
        """Computes the positions of the whole stream.

        Args:
            prompts: `[R, L, D]`, or `[R, 0, D]` if the stream has no prompts.

        Returns:
            `[R * L + T]` int32, or `[T]`.
        """
        runs, length = prompts.shape[:2]
        return jnp.concatenate([jnp.tile(jnp.arange(length), runs), self.positions])


def text_layout(texts: int, length: int) -> AttentionLayout:
    """Makes the layout of ordinary texts without a prompt: one run with L = 0, a row per text."""
    tokens = jnp.arange(texts * length)
    causal = jnp.tril(jnp.ones((length, length), bool))
    return AttentionLayout(
        prompt_mask=jnp.ones((1, 0), bool),
        positions=tokens % length,
        slot=tokens,
        token=tokens.reshape(texts, length),
        run=jnp.zeros(texts, jnp.int32),
        rows=jnp.arange(texts)[None],
        attention_mask=jnp.broadcast_to(causal, (texts, length, length)),
    )


def prompt_layout(prompt_mask: jax.Array) -> AttentionLayout:
    """Makes the layout of prompts with mask `[R, L]` and no examples."""
    no_tokens = jnp.zeros(0, jnp.int32)
    return AttentionLayout(
        prompt_mask=prompt_mask,
        positions=no_tokens,
        slot=no_tokens,
        token=no_tokens.reshape(0, 0),
        run=no_tokens,
        rows=jnp.zeros((len(prompt_mask), 0), jnp.int32),
        attention_mask=jnp.zeros((0, 0, 0), bool),
    )


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, layout: AttentionLayout, kv_cache: LayerKVCache | None
) -> tuple[jax.Array, LayerKVCache]:
    """Computes softmax attention of every token to its run's prompt and to its row.

    Scores and softmax are in float32.

    Args:
        q: `[R * L + T, H, d]` queries of the stream; `[T, H, d]` if `kv_cache` is given.
        k: `[R * L + T, K, d]` keys. K divides H, and query head h uses key head `h // (H / K)`.
        v: `[R * L + T, K, d]` values.
        layout: the layout of the stream. Its `attention_mask` says which slots of its row a token
            attends to.
        kv_cache: the prompts' keys and values if the stream has no prompts, else None.

    Returns:
        The heads' outputs side by side, `[R * L + T, H * d]` in the dtype of `v`, and the prompts'
        keys and values.
    """
    runs, length = layout.prompt_mask.shape
    rows, slots = layout.token.shape
    width = q.shape[1] * q.shape[2]
    prompt_tokens = 0 if kv_cache else runs * length
    out = []

    if kv_cache is None:
        q_prompt, k_prompt, v_prompt = (
            x[:prompt_tokens].reshape(runs, length, *x.shape[1:]) for x in (q, k, v)
        )
        kv_cache = k_prompt, v_prompt
        causal = jnp.tril(jnp.ones((length, length), bool))
        out.append(_mix(q_prompt, k_prompt, v_prompt, causal).reshape(prompt_tokens, width))

    if rows:
        token = layout.token.ravel()
        q, k, v = (
            _take(x[prompt_tokens:], token, layout.slot[:, None]).reshape(rows, slots, *x.shape[1:])
            for x in (q, k, v)
        )
        k, v = (
            jnp.concatenate([_take(prompt, layout.run, layout.rows), x], axis=1)
            for prompt, x in zip(kv_cache, (k, v), strict=True)
        )
        prompt_mask = layout.prompt_mask[layout.run] & (layout.run >= 0)[:, None]
        prompt_mask = jnp.broadcast_to(prompt_mask[:, None], (rows, slots, length))
        attention_mask = jnp.concatenate([prompt_mask, layout.attention_mask], axis=2)
        mixed = _mix(q, k, v, attention_mask[:, None, None]).reshape(rows * slots, width)
        out.append(_take(mixed, layout.slot, token[:, None]))

    return jnp.concatenate(out), kv_cache


def _mix(q: jax.Array, k: jax.Array, v: jax.Array, attention_mask: jax.Array) -> jax.Array:
    """Computes softmax attention of N batches: S queries of H heads to Z keys of K heads.

    Heads are moved before tokens because CPUs multiply matrices that are contiguous in memory two
    to three times faster.

    Args:
        q: `[N, S, H, d]`.
        k: `[N, Z, K, d]`.
        v: `[N, Z, K, d]`.
        attention_mask: bool, broadcasts to `[N, K, H / K, S, Z]`.

    Returns:
        `[N, S, H, d]` in the dtype of `v`.
    """
    batch, slots, heads, d = q.shape
    keys, kv_heads = k.shape[1:3]
    group = heads // kv_heads
    q = (q * d**-0.5).swapaxes(1, 2).reshape(batch, kv_heads, group * slots, d)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)

    scores = jnp.matmul(q, k.swapaxes(2, 3), preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, group, slots, keys)
    scores = jnp.where(attention_mask, scores, LOWEST).reshape(batch, kv_heads, group * slots, keys)
    highest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True, initial=LOWEST))
    weights = jnp.exp(scores - highest)
    # The mixed values are divided, not the weights, because they are far fewer numbers.
    mixed = jnp.matmul(weights.astype(v.dtype), v) / weights.sum(axis=-1, keepdims=True)
    return mixed.astype(v.dtype).reshape(batch, heads, slots, d).swapaxes(1, 2)


@jax.custom_vjp
def _take(x: jax.Array, source: jax.Array, inverse: jax.Array) -> jax.Array:
    """Gathers `x[source]`, with zeros where `source` is -1: `[A, ...] -> [B, ...]`.

    The gradient is a gather, too. JAX would make a scatter of it, which is slow and sums in no
    fixed order.

    Args:
        x: `[A, ...]`.
        source: `[B]` int32, indices into `x`.
        inverse: `[A, n]` int32, the up to n indices in the result of each element of `x`, padded
            with -1.
    """
    taken = (source >= 0).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(taken, x[source], 0)


def _take_forward(x: jax.Array, source: jax.Array, inverse: jax.Array) -> tuple:
    return _take(x, source, inverse), inverse


def _take_backward(inverse: jax.Array, gradient: jax.Array) -> tuple:
    places = [_take(gradient, inverse[:, i], inverse) for i in range(inverse.shape[1])]
    return sum(places), None, None


_take.defvjp(_take_forward, _take_backward)
