"""What every frozen language model here can do, whatever its layers."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from wayward_jax.models.attention import AttentionLayout, LayerKVCache, prompt_layout, text_layout

KVCache = tuple[LayerKVCache, ...]
"""What the layers keep of prompts, so that the prompts need not be computed again."""


class CausalLM(nn.Module):
    """A language model that reads prompts and tokens and gives hidden states.

    Logits are a separate call, so that they are computed only where they are needed. A family
    defines `embed_inputs` and `final_norm`; its `setup` sets `layers` and two tables, `embed`
    and `head`; the latter is `embed` again where the weights are tied. A layer takes the stream
    `[T, D]`, the layout, its own part of the KV cache, the positions whose output is needed (None
    means all), and what else `embed_inputs` returned. It returns its output `[Q, D]` and the
    prompts' keys and values.
    """

    def __call__(
        self,
        prompts: jax.Array,
        ids: jax.Array,
        layout: AttentionLayout,
        at: jax.Array,
        kv_cache: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Hidden states of some tokens, after the last norm.

        The last layer needs all tokens for its keys and values alone; the rest of it is computed
        for the tokens that are asked for.

        Args:
            prompts: `[R, L, D]` continuous prompts; `[R, 0, D]` if `kv_cache` is given.
            ids: `[T]` int32 tokens.
            layout: of the stream of prompts and tokens.
            at: `[Q]` int32, which of the T tokens.
            kv_cache: of the prompts, from `prefill`.

        Returns:
            `[Q, D]` in the weights' dtype, and the prompts' keys and values in every layer.
        """
        tokens = self.embed(ids)
        flat = prompts.reshape(-1, prompts.shape[-1]).astype(tokens.dtype)
        x, *more = self.embed_inputs(
            jnp.concatenate([flat, tokens]), layout.stream_positions(prompts)
        )
        at = at + len(flat)
        new_kv_cache = []
        for i, layer in enumerate(self.layers):
            run = layer if self.is_initializing() else _alike(layer)
            where = at if i + 1 == len(self.layers) else None
            x, left = run(x, layout, kv_cache[i] if kv_cache else None, where, *more)
            new_kv_cache.append(left)
        return self.final_norm(x), tuple(new_kv_cache)

    def embed_inputs(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, ...]:
        """What the first layer is given of embeddings `[T, D]`, and what else all layers are given.

        `positions` are `[T]` int32.
        """
        raise NotImplementedError

    def final_norm(self, x: jax.Array) -> jax.Array:
        """The last norm, of `[Q, D]`."""
        raise NotImplementedError

    def embedding_table(self) -> jax.Array:
        """The embedding table `[V, D]`, in the weights' dtype."""
        return self.embed.embedding

    def prefill(self, prompts: jax.Array, prompt_mask: jax.Array) -> KVCache:
        """Keys and values of prompts `[R, L, D]` with mask `[R, L]` in every layer."""
        nothing = jnp.zeros(0, jnp.int32)
        return self(prompts, nothing, prompt_layout(prompt_mask), nothing)[1]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits `[..., V]` float32 of hidden states `[..., D]`."""
        return jnp.matmul(hidden, self.head.embedding.T, preferred_element_type=jnp.float32)

    def text_logits(self, ids: jax.Array) -> jax.Array:
        """The plain language model: token ids `[N, T]` to logits `[N, T, V]` float32."""
        no_prompt = jnp.zeros((1, 0, self.embedding_table().shape[1]))
        every = jnp.arange(ids.size)
        hidden, _ = self(no_prompt, ids.ravel(), text_layout(*ids.shape), every)
        return self.logits(hidden).reshape(*ids.shape, -1)


def _alike(layer: nn.Module) -> Callable[..., tuple[jax.Array, LayerKVCache]]:
    """A bound layer as a function that JAX traces once for all layers of equal configuration.

    Tracing a program of thirty layers takes seconds otherwise. What is computed is the same.
    """
    return functools.partial(_apply, layer.clone(parent=None, name=None), layer.variables)


@functools.partial(jax.jit, static_argnames="layer")
def _apply(layer: nn.Module, variables: dict, *inputs: Any) -> tuple[jax.Array, LayerKVCache]:
    return layer.apply(variables, *inputs)
