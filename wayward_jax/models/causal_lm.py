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

from wayward_jax.models.attention import AttentionMask
from wayward_jax.models.products import multiply, product
from wayward_jax.sharding import keep_whole, model_shards


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


class HuggingFaceNames:
    """Gives a configuration the properties of `ModelConfig` that Hugging Face's names stand for."""

    max_position_embeddings: int
    num_hidden_layers: int
    num_attention_heads: int

    @property
    def max_positions(self) -> int:
        return self.max_position_embeddings

    @property
    def depth(self) -> int:
        return self.num_hidden_layers

    @property
    def heads(self) -> int:
        return self.num_attention_heads


class CausalLM(nn.Module):
    """A language model that maps embeddings to hidden states.

    Embeddings of tokens and logits are separate calls, so that continuous prompts can stand between
    the tokens, and logits are computed only where they are needed.

    A family defines `embed_inputs` and `final_norm`, and `scale_logits` if its logits are more than
    products. Its `setup` sets `layers` and two tables of type `nn.Embed`: `embed` and `head`, which
    is `embed` again if the weights are tied.

    A layer is called with the stream `[T, D]`, the mask for `attention.attend`, the slots whose
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
            rows = attention_mask.shape[:2]
            mask = AttentionMask.of(attention_mask, positions.reshape(rows))
            x, *layer_inputs = self.embed_inputs(x, positions)
            for i, layer in enumerate(self.layers):
                apply_layer = layer if self.is_initializing() else _traced_once(layer)
                is_last = i + 1 == len(self.layers)
                x = keep_whole(x)
                x = apply_layer(x, mask, output_slots if is_last else None, *layer_inputs)
            return self.final_norm(keep_whole(x))

    def hidden_states(
        self,
        x: jax.Array,
        positions: jax.Array,
        attention_mask: jax.Array,
        layers: int,
        patch: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """Computes the hidden states after each of some layers, before the last norm.

        Args:
            x, positions, attention_mask: as for a call.
            layers: the number of layers.
            patch: hidden states `[T, D]`, and for each slot the layer `[T]` int32 whose input they
                replace there (Patchscopes, Ghandeharioun et al., 2024); -1 replaces none.

        Returns:
            `[layers + 1, T, D]`, of which the first is the input of the first layer.
        """
        with _precision_of(x):
            mask = AttentionMask.of(attention_mask, positions.reshape(attention_mask.shape[:2]))
            x, *layer_inputs = self.embed_inputs(x, positions)
            states = []
            for i in range(layers + 1):
                if patch is not None:
                    x = jnp.where((patch[1] == i)[:, None], patch[0].astype(x.dtype), x)
                states.append(x)
                if i < layers:
                    x = _traced_once(self.layers[i])(x, mask, None, *layer_inputs)
            return jnp.stack(states)

    def extend_states(
        self,
        states: jax.Array,
        x: jax.Array,
        positions: jax.Array,
        attention_mask: jax.Array,
        slots: jax.Array,
    ) -> jax.Array:
        """Computes the hidden states of some slots from the states of all slots before them.

        Hidden states serve as the cache of a text that is being continued: layers compute keys and
        values of all slots from them, and everything else for the new slots alone.

        Args:
            states: `[depth + 1, T, D]`, from `hidden_states` of all layers.
            x: `[T, D]`, with the embeddings of the new slots.
            positions, attention_mask: as for a call.
            slots: `[Q]` int32, the new slots.

        Returns:
            `[depth + 1, T, D]`, of which only the states of `slots` are new.
        """
        with _precision_of(x):
            mask = AttentionMask.of(attention_mask, positions.reshape(attention_mask.shape[:2]))
            x, *layer_inputs = self.embed_inputs(x, positions)
            states = states.at[0, slots].set(x[slots])
            for i, layer in enumerate(self.layers):
                new = _traced_once(layer)(states[i], mask, slots, *layer_inputs)
                states = states.at[i + 1, slots].set(new)
            return states

    def lens(self, states: jax.Array) -> jax.Array:
        """Computes logits `[..., V]` float32 of hidden states `[..., D]` of any layer."""
        return self.logits(self.final_norm(states))

    def embed_inputs(self, x: jax.Array, positions: jax.Array) -> tuple[Any, ...]:
        """Makes the inputs of the layers from the embeddings of the stream.

        Args:
            x: `[T, D]` embeddings.
            positions: `[T]` int32 positions.

        Returns:
            The input of the first layer `[T, D]`, and the further values that every layer is called
            with, such as a `Rotary`.
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
        return self.scale_logits(multiply(hidden, self.head.embedding, 1, product))

    def token_logits(self, hidden: jax.Array, ids: jax.Array) -> jax.Array:
        """Computes the logit of one token of each hidden state: `[..., D]`, `[...]` to `[...]`."""
        products = hidden.astype(jnp.float32) * self.head(ids).astype(jnp.float32)
        return self.scale_logits(products.sum(axis=-1))

    def log_normalizers(self, hidden: jax.Array) -> jax.Array:
        """Computes what logits exceed log-probabilities by: `[..., D]` to `[...]` float32."""
        return _log_sums(self.logits(hidden), hidden.dtype)

    def scale_logits(self, products: jax.Array) -> jax.Array:
        """Makes the products of hidden states and rows of the table to logits."""
        return products

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _log_sums(logits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Computes `log sum exp` of logits `[..., V]`: `[...]` float32.

    The backward pass has the exponentials in the dtype in which their gradient is multiplied. JAX
    would keep the logits, and compute the exponentials again.
    """
    return _log_sums_forward(logits, dtype)[0]


def _log_sums_forward(logits: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, tuple]:
    largest = logits.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(logits - largest)
    total = exponentials.sum(axis=-1, keepdims=True)
    return (jnp.log(total) + largest)[..., 0], (exponentials.astype(dtype), total)


def _log_sums_backward(dtype: jnp.dtype, residuals: tuple, gradient: jax.Array) -> tuple[jax.Array]:
    exponentials, total = residuals
    return (exponentials.astype(jnp.float32) * (gradient[..., None] / total),)


_log_sums.defvjp(_log_sums_forward, _log_sums_backward)


def _precision_of(x: jax.Array) -> Any:
    """Makes products of float32 numbers exact; the default on accelerators rounds the factors."""
    return jax.default_matmul_precision("highest" if x.dtype == jnp.float32 else None)


def _traced_once(layer: nn.Module) -> Callable[..., jax.Array]:
    """Makes a bound layer into a function that JAX traces once for all equal layers.

    Tracing thirty layers one by one takes seconds. The results are the same.
    """
    apply = _apply_in_line if model_shards() > 1 else _apply_by_call
    return functools.partial(apply, layer.clone(parent=None, name=None), layer.variables)


def _apply(layer: nn.Module, variables: dict, *inputs: Any) -> jax.Array:
    return layer.apply(variables, *inputs)


_apply_by_call = jax.jit(_apply, static_argnames="layer")

# XLA cannot divide a function among devices that is called several times where other axes of the
# mesh are divided by hand: it aborts.
_apply_in_line = jax.jit(_apply, static_argnames="layer", inline=True)
