"""Attention of many examples to the one prompt they share.

A *run* has one prompt and some examples. The prompt stands before every example of its run and
attention is causal, so the prompt's keys and values do not depend on the examples: they are
computed once a run and every example of the run attends to them. Tokens a run and step fall from
`B * (L + T)` to `L + B * T`; nothing is approximated, gradients included.

The tokens of R runs form one *stream*: the prompts, then the examples end to end. All layers but
attention see only the stream, which has next to no padding. Attention sees W *rows* of S slots,
each of which holds whole examples of one run.
"""

import jax
import jax.numpy as jnp
from flax import struct

LayerKVCache = tuple[jax.Array, jax.Array]
"""What a layer's attention keeps of the prompts: `[R, L, K, d]` keys and values."""

LOWEST = float(jnp.finfo(jnp.float32).min)


@struct.dataclass
class AttentionLayout:
    """Where the tokens of a stream stand and what they see.

    The stream is R prompts of L tokens, or none of them where their keys and values are given,
    and then T tokens of examples. A -1 stands for nothing: an empty token, slot or row.

    prompt_mask: `[R, L]` bool, False where a prompt shorter than L is padded (at its end).
    positions: `[T]` int32, positions of the examples' tokens, the prompt counted in.
    slot: `[T]` int32, which of the `W * S` slots a token stands in.
    token: `[W, S]` int32, which of the T tokens stands in a slot.
    run: `[W]` int32, the run whose prompt a row's tokens see.
    rows: `[R, n]` int32, the rows of each run.
    attention_mask: `[W, S, S]` bool, whether a slot (second axis) sees another of its row (last).
        Every slot sees itself, an empty one too, so that no softmax runs over nothing.
    """

    prompt_mask: jax.Array
    positions: jax.Array
    slot: jax.Array
    token: jax.Array
    run: jax.Array
    rows: jax.Array
    attention_mask: jax.Array

    def stream_positions(self, prompts: jax.Array) -> jax.Array:
        """Positions of the whole stream that begins with `prompts` `[R, L or 0, D]`."""
        runs, length = prompts.shape[:2]
        return jnp.concatenate([jnp.tile(jnp.arange(length), runs), self.positions])


def text_layout(texts: int, length: int) -> AttentionLayout:
    """The layout of ordinary texts without a prompt: one run with L = 0, a row for each."""
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
    """The layout of prompts alone, with mask `[R, L]` and without any example."""
    nothing = jnp.zeros(0, jnp.int32)
    return AttentionLayout(
        prompt_mask=prompt_mask,
        positions=nothing,
        slot=nothing,
        token=nothing.reshape(0, 0),
        run=nothing,
        rows=jnp.zeros((len(prompt_mask), 0), jnp.int32),
        attention_mask=jnp.zeros((0, 0, 0), bool),
    )


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, layout: AttentionLayout, kv_cache: LayerKVCache | None
) -> tuple[jax.Array, LayerKVCache]:
    """Softmax attention of every token to its run's prompt and to what it sees of its row.

    Args:
        q: `[R * L + T, H, d]` queries of the stream; `[T, H, d]` if `kv_cache` is given.
        k: `[R * L + T, K, d]` keys; K divides H, query head h reads key head `h // (H / K)`.
        v: `[R * L + T, K, d]` values.
        layout: of the stream.
        kv_cache: the prompts' keys and values, if the prompts are no part of the stream.

    Returns:
        `[R * L + T, H * d]` in the dtype of `v`, and the prompts' keys and values. Scores and
        softmax are in float32.
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
            jnp.concatenate([_take(of_prompt, layout.run, layout.rows), x], axis=1)
            for of_prompt, x in zip(kv_cache, (k, v), strict=True)
        )
        to_prompt = layout.prompt_mask[layout.run] & (layout.run >= 0)[:, None]
        to_prompt = jnp.broadcast_to(to_prompt[:, None], (rows, slots, length))
        attention_mask = jnp.concatenate([to_prompt, layout.attention_mask], axis=2)
        mixed = _mix(q, k, v, attention_mask[:, None, None]).reshape(rows * slots, width)
        out.append(_take(mixed, layout.slot, token[:, None]))

    return jnp.concatenate(out), kv_cache


def _mix(q: jax.Array, k: jax.Array, v: jax.Array, attention_mask: jax.Array) -> jax.Array:
    """Softmax attention: `[N, S, H, d]`, `[N, Z, K, d]` twice -> `[N, S, H, d]`.

    `attention_mask` broadcasts to `[N, K, H / K, S, Z]`. Heads are moved to the front because CPUs
    multiply matrices that lie next to each other in memory two to three times faster.
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
    # Divided after they have been mixed: those are far fewer numbers than the weights.
    mixed = jnp.matmul(weights.astype(v.dtype), v) / weights.sum(axis=-1, keepdims=True)
    return mixed.astype(v.dtype).reshape(batch, heads, slots, d).swapaxes(1, 2)


@jax.custom_vjp
def _take(x: jax.Array, source: jax.Array, inverse: jax.Array) -> jax.Array:
    """`x[source]`, `[A, ...]` -> `[B, ...]`, with zeros where `source` `[B]` is -1.

    `inverse` `[A, n]` says where each element of `x` went, up to n places, so that the gradient is
    a gather as well: the scatter that JAX would make of it is slow, and in no certain order.
    """
    taken = (source >= 0).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(taken, x[source], 0)


def _take_forward(x: jax.Array, source: jax.Array, inverse: jax.Array) -> tuple:
    return _take(x, source, inverse), inverse


def _take_backward(inverse: jax.Array, gradient: jax.Array) -> tuple:
    places = [_take(gradient, inverse[:, i], inverse) for i in range(inverse.shape[1])]
    return sum(places), None, None


_take.defvjp(_take_forward, _take_backward)
