"""The interface of all frozen language models here, whatever their layers compute.

Sizes in the docstrings: W rows of S slots make a stream of `T = W * S` slots, Q of which need an
output; D is the embedding width, and V the number of rows in the embedding table.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from wayward_jax.models.attention import attention_bias


class ModelConfig(Protocol):
    """The properties that the configuration of every family has beside its own fields."""

    @property
    def max_positions(self) -> int:
        """The number of positions that the model was made for."""

    @property
    def depth(self) -> int:
        """The number of layers."""

    @property
    def heads(self) -> int:
        """The number of query heads, H."""

    @property
    def attention_width(self) -> int:
        """The width of all query heads of a layer together, `H * d`."""


class CausalLM(nn.Module):
    """A language model that maps embeddings to hidden states.

    Embeddings of tokens and logits are separate calls, so that continuous prompts can stand between
    the tokens, and logits are computed only where they are needed.

    A family defines `embed_inputs` and `final_norm`. Its `setup` sets `layers` and two tables of
    type `nn.Embed`: `embed` and `head`, which is `embed` again if the weights are tied.

    A layer is called with the stream `[T, D]`, the bias for `attention.attend`, the slots whose
    output is needed (`[Q]` int32, or None for all), and the further values that `embed_inputs`
    returned. It returns its output `[Q, D]`.
    """

    config: ModelConfig

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        attention_mask: jax.Array,
        output_slots: jax.Array | None = None,
    ) -> jax.Array:
        """Computes the hidden states of some slots, after the last norm.

        The last layer computes keys and values for all slots, and everything else only for the
        slots whose output is needed.

        Args:
            x: `[T, D]`, embeddings of tokens and vectors of prompts.
            positions: `[T]` int32, their positions.
            attention_mask: `[W, S, S]` bool, True where a slot (second axis) attends to another
                slot of its row (last axis). Every slot attends to itself at least.
            output_slots: `[Q]` int32, the slots whose output is needed; None means all.

        Returns:
            Hidden states `[Q, D]` in the weights' dtype.
        """
        with _precision_of(x):
            bias = attention_bias(attention_mask)
            x, *layer_inputs = self.embed_inputs(x, positions)
            for i, layer in enumerate(self.layers):
                apply_layer = layer if self.is_initializing() else _traced_once(layer)
                is_last = i + 1 == len(self.layers)
                x = apply_layer(x, bias, output_slots if is_last else None, *layer_inputs)
            return self.final_norm(x)

    def embed_inputs(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, ...]:
        """Makes the inputs of the layers from the embeddings of the stream.

        Args:
            x: `[T, D]` embeddings.
            positions: `[T]` int32 positions.

        Returns:
            The input of the first layer `[T, D]`, and the further values that every layer is called
            with, such as rotary angles.
        """
        raise NotImplementedError

    def final_norm(self, x: jax.Array) -> jax.Array:
        """Applies the last norm: `[Q, D] -> [Q, D]`."""
        raise NotImplementedError

    def embedding_table(self) -> jax.Array:
        """Returns the embedding table `[V, D]`, in the weights' dtype."""
        return self.embed.embedding

    def embed_tokens(self, ids: jax.Array) -> jax.Array:
        """Looks tokens up in the embedding table: `[...]` int32 to `[..., D]`."""
        return self.embed(ids)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Computes logits `[..., V]` float32 from hidden states `[..., D]`."""
        with _precision_of(hidden):
            return jnp.matmul(hidden, self.head.embedding.T, preferred_element_type=jnp.float32)

    def text_logits(self, ids: jax.Array) -> jax.Array:
        """Computes the plain language model: token ids `[N, T]` to logits `[N, T, V]` float32."""
        texts, length = ids.shape
        causal = jnp.tril(jnp.ones((length, length), bool))
        hidden = self(
            self.embed_tokens(ids.ravel()),
            jnp.tile(jnp.arange(length), texts),
            jnp.broadcast_to(causal, (texts, length, length)),
        )
        return self.logits(hidden).reshape(texts, length, -1)


def _precision_of(x: jax.Array) -> Any:
    """Makes products of float32 numbers exact; the default on accelerators rounds the factors."""
    return jax.default_matmul_precision("highest" if x.dtype == jnp.float32 else None)


def _traced_once(layer: nn.Module) -> Callable[..., jax.Array]:
    """Makes a bound layer into a function that JAX traces once for all equal layers.

    Tracing thirty layers one by one takes seconds. The results are the same.
    """
    return functools.partial(_apply, layer.clone(parent=None, name=None), layer.variables)


@functools.partial(jax.jit, static_argnames="layer")
def _apply(layer: nn.Module, variables: dict, *inputs: Any) -> jax.Array:
    return layer.apply(variables, *inputs)
