"""Llama (Touvron et al., 2023; also SmolLM2, TinyLlama, ...) as a Flax module.

Its input may be embeddings.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from wayward_jax.models.attention import attend
from wayward_jax.models.causal_lm import CausalLM


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """A change of the rotary frequencies that makes the context longer than in pretraining.

    Attributes:
        rope_type: `linear` divides all frequencies by `factor`; `llama3` divides the low ones.
        factor: the divisor.
        low_freq_factor: of `llama3`: frequencies that turn fewer times than this within the
            original context are divided.
        high_freq_factor: of `llama3`: frequencies that turn more times than this are kept.
        original_max_position_embeddings: of `llama3`: the original context, in tokens.
    """

    rope_type: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The sizes and variants of a Llama, named as in the Hugging Face configuration."""

    vocab_size: int = 32000
    max_position_embeddings: int = 2048
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    @property
    def max_positions(self) -> int:
        return self.max_position_embeddings

    @property
    def depth(self) -> int:
        return self.num_hidden_layers

    @property
    def heads(self) -> int:
        return self.num_attention_heads

    @property
    def attention_width(self) -> int:
        return self.num_attention_heads * self.head_dim


def rope_frequencies(config: LlamaConfig) -> np.ndarray:
    """Computes the radians per position for each pair of channels: `[head_dim / 2]` float32.

    Raises:
        ValueError: the kind of scaling is not supported, or a frequency is not finite.
    """
    half = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequencies = config.rope_theta**-half
    scaling = config.rope_scaling
    if scaling is None:
        pass
    elif scaling.rope_type == "linear":
        frequencies = frequencies / scaling.factor
    elif scaling.rope_type == "llama3":
        # A frequency is kept if it turns often within the original context, divided by the factor
        # if it hardly turns, and interpolated between the two otherwise.
        turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequencies = keep * frequencies + (1 - keep) * frequencies / scaling.factor
    else:
        raise ValueError(f"rope scaling {scaling.rope_type!r} is not one of linear, llama3")
    if not np.isfinite(frequencies).all():
        raise ValueError(f"{scaling} gives frequencies that are not finite")
    return frequencies.astype(np.float32)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotates the heads of `x` `[T, H * d]` by `angles` `[T, d / 2]` in radians.

    Channel i of a head is paired with its channel i + d / 2. The product is computed in float32 and
    returned in the dtype of `x` (rotary embedding: RoFormer, Su et al., 2021, section 3.2).
    """
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    heads = x.astype(jnp.float32).reshape(len(x), -1, 2 * angles.shape[1])
    a, b = jnp.split(heads, 2, axis=-1)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return rotated.astype(x.dtype).reshape(x.shape)


class Block(nn.Module):
    """One layer: attention and a gated MLP, each with a norm before it.

    It is called as `CausalLM` says: the stream `[T, hidden_size]` becomes `[Q, hidden_size]` at
    `output_slots` (None means all). `angles` are those of `rotate`.
    """

    config: LlamaConfig

    def setup(self) -> None:
        c = self.config
        self.input_layernorm = nn.RMSNorm(epsilon=c.rms_norm_eps)
        self.q_proj = nn.Dense(c.num_attention_heads * c.head_dim, use_bias=c.attention_bias)
        self.k_proj = nn.Dense(c.num_key_value_heads * c.head_dim, use_bias=c.attention_bias)
        self.v_proj = nn.Dense(c.num_key_value_heads * c.head_dim, use_bias=c.attention_bias)
        self.o_proj = nn.Dense(c.hidden_size, use_bias=c.attention_bias)
        self.post_attention_layernorm = nn.RMSNorm(epsilon=c.rms_norm_eps)
        self.gate_proj = nn.Dense(c.intermediate_size, use_bias=c.mlp_bias)
        self.up_proj = nn.Dense(c.intermediate_size, use_bias=c.mlp_bias)
        self.down_proj = nn.Dense(c.hidden_size, use_bias=c.mlp_bias)

    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array,
        output_slots: jax.Array | None,
        angles: jax.Array,
    ) -> jax.Array:
        normed = self.input_layernorm(x)
        q, k = rotate(self.q_proj(normed), angles), rotate(self.k_proj(normed), angles)
        mixed = attend(q, k, self.v_proj(normed), bias, self.config.head_dim)
        if output_slots is not None:
            x, mixed = x[output_slots], mixed[output_slots]
        x = x + self.o_proj(mixed)
        normed = self.post_attention_layernorm(x)
        return x + self.down_proj(nn.silu(self.gate_proj(normed)) * self.up_proj(normed))


class Llama(CausalLM):
    """Llama: rotary positions, RMS norms, grouped key and value heads, a gated MLP."""

    config: LlamaConfig

    def setup(self) -> None:
        c = self.config
        self.embed = nn.Embed(c.vocab_size, c.hidden_size)
        tied = c.tie_word_embeddings
        self.head = self.embed if tied else nn.Embed(c.vocab_size, c.hidden_size)
        self.layers = [Block(c) for _ in range(c.num_hidden_layers)]
        self.norm = nn.RMSNorm(epsilon=c.rms_norm_eps)

    def embed_inputs(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, ...]:
        return x, positions[:, None] * rope_frequencies(self.config)

    def final_norm(self, x: jax.Array) -> jax.Array:
        return self.norm(x)
