"""Attention of many examples to the one prompt they share.

A *row* is a sequence of S token slots that holds one or more examples; a *run* has one prompt and
N rows. The prompt stands before every example of its run and attention is causal, so the prompt's
keys and values do not depend on the examples: they are computed once a run and every example of
the run attends to them. Tokens a run and step fall from `B * (L + T)` to `L + B * T`; nothing is
approximated, gradients included.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

LOWEST = float(jnp.finfo(jnp.float32).min)


@struct.dataclass
class Layout:
    """Where tokens stand and what they see.

    prompt_mask: `[R, L]` bool, False where a prompt shorter than L is padded (at its end).
    positions: `[R, N, S]` int32, positions of the rows' tokens, the prompt counted in.
    visible: `[R, N, S, S]` bool, whether a token (third axis) sees another of its row (last).
        Every token sees itself, padding too, so that no softmax runs over nothing.
    """

    prompt_mask: jax.Array
    positions: jax.Array
    visible: jax.Array

    def all_positions(self) -> jax.Array:
        """Positions of a run's tokens, prompt first: `[R, L + N * S]` int32."""
        runs, length = self.prompt_mask.shape
        prompt = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (runs, length))
        return jnp.concatenate([prompt, self.positions.reshape(runs, -1)], axis=1)


def text_layout(rows: int, length: int) -> Layout:
    """The layout of `rows` ordinary texts without a prompt: one run with L = 0."""
    causal = jnp.tril(jnp.ones((length, length), bool))
    return Layout(
        prompt_mask=jnp.ones((1, 0), bool),
        positions=jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (1, rows, length)),
        visible=jnp.broadcast_to(causal, (1, rows, length, length)),
    )


def join(prompts: jax.Array, rows: jax.Array) -> jax.Array:
    """`[R, L, D]` and `[R, N, S, D]` as the one token axis `[R, L + N * S, D]` of a run."""
    return jnp.concatenate([prompts, rows.reshape(rows.shape[0], -1, rows.shape[-1])], axis=1)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, layout: Layout) -> jax.Array:
    """Softmax attention of every token to its run's prompt and to what it sees of its row.

    Args:
        q: `[R, L + N * S, H, d]` queries, prompt first.
        k: `[R, L + N * S, K, d]` keys; K divides H, query head h reads key head `h // (H / K)`.
        v: `[R, L + N * S, K, d]` values.
        layout: of the same R, L, N and S.

    Returns:
        `[R, L + N * S, H * d]`, in the dtype of `q`. Scores and softmax are in float32.
    """
    runs, rows, slots = layout.positions.shape
    length, kv_heads, d = layout.prompt_mask.shape[1], k.shape[2], q.shape[3]
    q = (q * d**-0.5).reshape(*q.shape[:2], kv_heads, -1, d)

    q_prompt, k_prompt, v_prompt = q[:, :length], k[:, :length], v[:, :length]
    q_rows, k_rows, v_rows = (
        x[:, length:].reshape(runs, rows, slots, *x.shape[2:]) for x in (q, k, v)
    )

    causal = jnp.tril(jnp.ones((length, length), bool))
    scores = _scores("rikgd,rjkd->rkgij", q_prompt, k_prompt, causal)
    (weights,), total = _softmax(scores)
    out_prompt = jnp.einsum("rkgij,rjkd->rikgd", weights.astype(v.dtype), v_prompt)
    out_prompt /= jnp.moveaxis(total, 3, 1)

    to_prompt = layout.prompt_mask[:, None, None, None, None, :]
    to_row = layout.visible[:, :, None, None]
    (of_prompt, of_row), total = _softmax(
        _scores("rnikgd,rjkd->rnkgij", q_rows, k_prompt, to_prompt),
        _scores("rnikgd,rnjkd->rnkgij", q_rows, k_rows, to_row),
    )
    out_rows = jnp.einsum("rnkgij,rjkd->rnikgd", of_prompt.astype(v.dtype), v_prompt)
    out_rows += jnp.einsum("rnkgij,rnjkd->rnikgd", of_row.astype(v.dtype), v_rows)
    out_rows /= jnp.moveaxis(total, 4, 2)

    heads = kv_heads * q.shape[3] * d
    out_prompt = out_prompt.reshape(runs, length, heads)
    return join(out_prompt, out_rows.reshape(runs, rows, slots, heads)).astype(q.dtype)


def _scores(spec: str, q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
    scores = jnp.einsum(spec, q, k, preferred_element_type=jnp.float32)
    return jnp.where(mask, scores, LOWEST)


def _softmax(*parts: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """One softmax over the last axes of all parts, without its division.

    Returns the parts' numerators and the denominator, whose last axis is 1. Values are divided
    after they have been summed up, which are far fewer numbers than the weights.
    """
    highest = functools.reduce(
        jnp.maximum, [x.max(axis=-1, keepdims=True, initial=LOWEST) for x in parts]
    )
    exponentials = tuple(jnp.exp(x - jax.lax.stop_gradient(highest)) for x in parts)
    return exponentials, sum(x.sum(axis=-1, keepdims=True) for x in exponentials)
