"""Attention of many examples to the one prompt they share.

A *run* has one prompt and some examples. The prompt stands before every example of its run and
attention is causal, so the prompt's keys and values do not depend on the examples: they are
computed once a run and every example of the run attends to them. Tokens a run and step fall from
`B * (L + T)` to `L + B * T`; nothing is approximated, gradients included.

The tokens of R runs form one *stream*: the prompts, then the examples end to end. All layers but
attention see only the stream, which has next to no padding. Attention sees *windows* of S slots,
each of which holds whole examples of one run.
"""

import jax
import jax.numpy as jnp
from flax import struct

KeysValues = tuple[jax.Array, jax.Array]
"""What a layer's attention keeps of the prompts: `[R, L, K, d]` keys and values."""


@struct.dataclass
class Layout:
    """Where the tokens of a stream stand and what they see.

    The stream is R prompts of L tokens, or none of them where their keys and values are given,
    and then T tokens of examples. A run has N windows of S slots.

    prompt_mask: `[R, L]` bool, False where a prompt shorter than L is padded (at its end).
    positions: `[T]` int32, positions of the examples' tokens, the prompt counted in.
    slot: `[T]` int32, which of the `R * N * S` slots a token stands in; -1 for empty tokens.
    token: `[R, N, S]` int32, which of the T tokens stands in a slot; -1 for empty slots.
    visible: `[R, N, S, S]` bool, whether a slot (third axis) sees another of its window (last).
        Every slot sees itself, an empty one too, so that no softmax runs over nothing.
    """

    prompt_mask: jax.Array
    positions: jax.Array
    slot: jax.Array
    token: jax.Array
    visible: jax.Array

    def stream_positions(self, prompts: jax.Array) -> jax.Array:
        """Positions of the whole stream that begins with `prompts` `[R, L or 0, D]`."""
        runs, length = prompts.shape[:2]
        return jnp.concatenate([jnp.tile(jnp.arange(length), runs), self.positions])


def text_layout(texts: int, length: int) -> Layout:
    """The layout of ordinary texts without a prompt: one run with L = 0, a window for each."""
    tokens = jnp.arange(texts * length)
    causal = jnp.tril(jnp.ones((length, length), bool))
    return Layout(
        prompt_mask=jnp.ones((1, 0), bool),
        positions=tokens % length,
        slot=tokens,
        token=tokens.reshape(1, texts, length),
        visible=jnp.broadcast_to(causal, (1, texts, length, length)),
    )


def prompt_layout(prompt_mask: jax.Array) -> Layout:
    """The layout of prompts alone, with mask `[R, L]` and without any example."""
    nothing = jnp.zeros(0, jnp.int32)
    return Layout(
        prompt_mask=prompt_mask,
        positions=nothing,
        slot=nothing,
        token=nothing.reshape(len(prompt_mask), 0, 0),
        visible=jnp.zeros((len(prompt_mask), 0, 0, 0), bool),
    )


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, layout: Layout, past: KeysValues | None
) -> tuple[jax.Array, KeysValues]:
    """Softmax attention of every token to its run's prompt and to what it sees of its window.

    Args:
        q: `[R * L + T, H, d]` queries of the stream; `[T, H, d]` if `past` is given.
        k: `[R * L + T, K, d]` keys; K divides H, query head h reads key head `h // (H / K)`.
        v: `[R * L + T, K, d]` values.
        layout: of the stream.
        past: the prompts' keys and values, if the prompts are no part of the stream.

    Returns:
        `[R * L + T, H * d]` in the dtype of `v`, and the prompts' keys and values. Scores and
        softmax are in float32.
    """
    runs, windows, slots = layout.token.shape
    length = layout.prompt_mask.shape[1]
    prompt_tokens = 0 if past else runs * length
    out = []

    if past is None:
        q_prompt, k_prompt, v_prompt = (
            x[:prompt_tokens].reshape(runs, length, *x.shape[1:]) for x in (q, k, v)
        )
        past = k_prompt, v_prompt
        if prompt_tokens:
            mixed = jax.nn.dot_product_attention(q_prompt, k_prompt, v_prompt, is_causal=True)
            out.append(mixed.reshape(prompt_tokens, -1))

    if layout.token.size:
        token = layout.token.ravel()
        q, k, v = (
            _rearrange(x[prompt_tokens:], token, layout.slot).reshape(
                runs, windows, slots, *x.shape[1:]
            )
            for x in (q, k, v)
        )
        k, v = (
            jnp.concatenate([_to_windows(of_prompt, windows), x], axis=2)
            for of_prompt, x in zip(past, (k, v), strict=True)
        )
        to_prompt = jnp.broadcast_to(
            layout.prompt_mask[:, None, None], (runs, windows, slots, length)
        )
        visible = jnp.concatenate([to_prompt, layout.visible], axis=3)
        q, k, v, visible = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v, visible))
        mixed = jax.nn.dot_product_attention(q, k, v, mask=visible[:, None])
        out.append(_rearrange(mixed.reshape(len(token), -1), layout.slot, token))

    return jnp.concatenate(out), past


def _to_windows(of_prompt: jax.Array, windows: int) -> jax.Array:
    """`[R, L, K, d]` -> `[R, N, L, K, d]`, the same for every window of a run."""
    runs, *rest = of_prompt.shape
    return jnp.broadcast_to(of_prompt[:, None], (runs, windows, *rest))


@jax.custom_vjp
def _rearrange(x: jax.Array, source: jax.Array, inverse: jax.Array) -> jax.Array:
    """`x[source]`, `[A, ...]` -> `[B, ...]`, with zeros where `source` `[B]` is -1.

    `inverse` `[A]` says where each element of `x` went, so that the gradient is a gather as well:
    the scatter that JAX would make of it is slow.
    """
    kept = (source >= 0).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(kept, x[source], 0)


def _rearrange_forward(x: jax.Array, source: jax.Array, inverse: jax.Array) -> tuple:
    return _rearrange(x, source, inverse), (source, inverse)


def _rearrange_backward(residuals: tuple, gradient: jax.Array) -> tuple:
    source, inverse = residuals
    return _rearrange(gradient, inverse, source), None, None


_rearrange.defvjp(_rearrange_forward, _rearrange_backward)
