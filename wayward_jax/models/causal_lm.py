"""What every frozen language model here can do, whatever its layers."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from wayward_jax.models.attention import KeysValues, Layout, prompt_layout, text_layout

Past = tuple[KeysValues, ...]
"""What the layers keep of prompts, so that the prompts need not be computed again."""


class CausalLM(nn.Module):
    """A language model that reads prompts and tokens and gives hidden states.

    Logits are a separate call, so that they are computed only where they are needed. A family
    defines `enter` and `leave`, and sets in `setup` two tables, `embed` and `head`, which is
    `embed` again where the weights are tied, and its `layers`. A layer is given the stream
    `[T, D]`, the layout, its own past, where its answer is wanted (None is everywhere), and what
    else `enter` gave; it returns its answer `[Q, D]` and the prompts' keys and values.
    """

    def __call__(
        self,
        prompts: jax.Array,
        ids: jax.Array,
        layout: Layout,
        at: jax.Array,
        past: Past | None = None,
    ) -> tuple[jax.Array, Past]:
        """Hidden states of some tokens, after the last norm.

        The last layer needs all tokens for its keys and values alone; the rest of it is computed
        for the tokens that are asked for.

        Args:
            prompts: `[R, L, D]` continuous prompts; `[R, 0, D]` if `past` is given.
            ids: `[T]` int32 tokens.
            layout: of the stream of prompts and tokens.
            at: `[Q]` int32, which of the T tokens.
            past: of the prompts, from `read_prompts`.

        Returns:
            `[Q, D]` in the weights' dtype, and the prompts' keys and values in every layer.
        """
        tokens = self.embed(ids)
        flat = prompts.reshape(-1, prompts.shape[-1]).astype(tokens.dtype)
        x, *more = self.enter(jnp.concatenate([flat, tokens]), layout.stream_positions(prompts))
        at = at + len(flat)
        new_past = []
        for i, layer in enumerate(self.layers):
            run = layer if self.is_initializing() else _alike(layer)
            where = at if i + 1 == len(self.layers) else None
            x, left = run(x, layout, past[i] if past else None, where, *more)
            new_past.append(left)
        return self.leave(x), tuple(new_past)

    def enter(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, ...]:
        """What the first layer is given of embeddings `[T, D]`, and what else all layers are given.

        `positions` are `[T]` int32.
        """
        raise NotImplementedError

    def leave(self, x: jax.Array) -> jax.Array:
        """The last norm, of `[Q, D]`."""
        raise NotImplementedError

    def table(self) -> jax.Array:
        """The embedding table `[V, D]`, in the weights' dtype."""
        return self.embed.embedding

    def read_prompts(self, prompts: jax.Array, prompt_mask: jax.Array) -> Past:
        """Keys and values of prompts `[R, L, D]` with mask `[R, L]` in every layer."""
        nothing = jnp.zeros(0, jnp.int32)
        return self(prompts, nothing, prompt_layout(prompt_mask), nothing)[1]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits `[..., V]` float32 of hidden states `[..., D]`."""
        return jnp.matmul(hidden, self.head.embedding.T, preferred_element_type=jnp.float32)

    def text_logits(self, ids: jax.Array) -> jax.Array:
        """The plain language model: token ids `[N, T]` to logits `[N, T, V]` float32."""
        no_prompt = jnp.zeros((1, 0, self.table().shape[1]))
        every = jnp.arange(ids.size)
        hidden, _ = self(no_prompt, ids.ravel(), text_layout(*ids.shape), every)
        return self.logits(hidden).reshape(*ids.shape, -1)


def _alike(layer: nn.Module) -> Callable[..., tuple[jax.Array, KeysValues]]:
    """A bound layer as a function that JAX traces once for all layers of equal configuration.

    Tracing a program of thirty layers takes seconds otherwise. What is computed is the same.
    """
    return functools.partial(_apply, layer.clone(parent=None, name=None), layer.variables)


@functools.partial(jax.jit, static_argnames="layer")
def _apply(layer: nn.Module, variables: dict, *inputs: Any) -> tuple[jax.Array, KeysValues]:
    return layer.apply(variables, *inputs)
