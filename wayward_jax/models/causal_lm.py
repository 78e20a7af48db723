"""The interface of all frozen language models here, whatever their layers compute.

Sizes in the docstrings: R runs with prompts of L vectors, D the embedding width, T tokens of
examples, Q of them whose output is needed, V rows in the embedding table.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from wayward_jax.models.attention import AttentionLayout, LayerKVCache, prompt_layout, text_layout

KVCache = tuple[LayerKVCache, ...]
"""The prompts' keys and values in every layer, with which the prompts need no second pass."""


class ModelConfig(Protocol):
    """The properties that the configuration of every family has beside its own fields."""

    @property
    def max_positions(self) -> int:
        """The number of positions that the model was made for."""

    @property
    def depth(self) -> int:
        """The number of layers."""

    @property
    def attention_width(self) -> int:
        """The width of all query heads of a layer together, `H * d`."""


class CausalLM(nn.Module):
    """A language model that maps prompts and tokens to hidden states.

    Logits are a separate call, so that they are computed only where they are needed.

    A family defines `embed_inputs` and `final_norm`. Its `setup` sets `layers` and two tables of
    type `nn.Embed`: `embed` and `head`, which is `embed` again if the weights are tied.

    A layer is called with the stream `[R * L + T, D]`, its `AttentionLayout`, the layer's part of
    the KV cache (or None), the positions in the stream whose output is needed (`[Q]` int32, or None
    for all), and the further values that `embed_inputs` returned. It returns its output `[Q, D]`
    and the prompts' keys and values.
    """

    config: ModelConfig

    def __call__(
        self,
        prompts: jax.Array,
        ids: jax.Array,
        layout: AttentionLayout,
        output_positions: jax.Array,
        kv_cache: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Computes the hidden states of some tokens, after the last norm.

        The last layer computes keys and values for all tokens, and everything else only for the
        tokens whose output is needed.

        Args:
            prompts: `[R, L, D]` continuous prompts; `[R, 0, D]` if `kv_cache` is given.
            ids: `[T]` int32 token ids.
            layout: the layout of the stream of prompts and tokens.
            output_positions: `[Q]` int32, indices of the tokens in `ids` whose output is needed.
            kv_cache: the prompts' keys and values, from `prefill`.

        Returns:
            Hidden states `[Q, D]` in the weights' dtype, and the prompts' keys and values in every
            layer.
        """
        tokens = self.embed(ids)
        flat_prompts = prompts.reshape(-1, prompts.shape[-1]).astype(tokens.dtype)
        x, *layer_inputs = self.embed_inputs(
            jnp.concatenate([flat_prompts, tokens]), layout.stream_positions(prompts)
        )
        output_positions = output_positions + len(flat_prompts)
        caches = []
        for i, layer in enumerate(self.layers):
            apply_layer = layer if self.is_initializing() else _traced_once(layer)
            is_last = i + 1 == len(self.layers)
            x, layer_cache = apply_layer(
                x,
                layout,
                kv_cache[i] if kv_cache else None,
                output_positions if is_last else None,
                *layer_inputs,
            )
            caches.append(layer_cache)
        return self.final_norm(x), tuple(caches)

    def embed_inputs(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, ...]:
        """Makes the inputs of the layers from the embeddings of the stream.

        Args:
            x: `[R * L + T, D]` prompts and embeddings of tokens.
            positions: `[R * L + T]` int32 positions.

        Returns:
            The input of the first layer `[R * L + T, D]`, and the further values that every layer
            is called with, such as rotary angles.
        """
        raise NotImplementedError

    def final_norm(self, x: jax.Array) -> jax.Array:
        """Applies the last norm: `[Q, D] -> [Q, D]`."""
        raise NotImplementedError

    def embedding_table(self) -> jax.Array:
        """Returns the embedding table `[V, D]`, in the weights' dtype."""
        return self.embed.embedding

    def prefill(self, prompts: jax.Array, prompt_mask: jax.Array) -> KVCache:
        """Computes the keys and values of prompts `[R, L, D]` in every layer.

        `prompt_mask` is `[R, L]` bool, False where a prompt is padded.
        """
        no_tokens = jnp.zeros(0, jnp.int32)
        _, kv_cache = self(prompts, no_tokens, prompt_layout(prompt_mask), no_tokens)
        return kv_cache

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Computes logits `[..., V]` float32 from hidden states `[..., D]`."""
        return jnp.matmul(hidden, self.head.embedding.T, preferred_element_type=jnp.float32)

    def text_logits(self, ids: jax.Array) -> jax.Array:
        """Computes the plain language model: token ids `[N, T]` to logits `[N, T, V]` float32."""
        no_prompt = jnp.zeros((1, 0, self.embedding_table().shape[1]))
        all_positions = jnp.arange(ids.size)
        hidden, _ = self(no_prompt, ids.ravel(), text_layout(*ids.shape), all_positions)
        return self.logits(hidden).reshape(*ids.shape, -1)


def _traced_once(layer: nn.Module) -> Callable[..., tuple[jax.Array, LayerKVCache]]:
    """Makes a bound layer into a function that JAX traces once for all equal layers.

    Tracing thirty layers one by one takes seconds. The results are the same.
    """
    return functools.partial(_apply, layer.clone(parent=None, name=None), layer.variables)


@functools.partial(jax.jit, static_argnames="layer")
def _apply(layer: nn.Module, variables: dict, *inputs: Any) -> tuple[jax.Array, LayerKVCache]:
    return layer.apply(variables, *inputs)
