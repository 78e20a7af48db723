"""Llama (Touvron et al., 2023) as a Flax module whose input may be embeddings.

Most open models are Llamas with a few switches: `LlamaConfig` has those of Mistral, Qwen, Phi-3,
SmolLM3, Granite, OLMo 2 and Gemma.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from wayward_jax.models.activations import activate_gate
from wayward_jax.models.attention import AttentionMask, attend, select_slots
from wayward_jax.models.causal_lm import CausalLM, HuggingFaceNames
from wayward_jax.models.norms import RMSNorm
from wayward_jax.models.products import Dense
from wayward_jax.models.rope import Rope
from wayward_jax.models.rotary import Rotary
from wayward_jax.sharding import keep_whole


@dataclasses.dataclass(frozen=True)
class LlamaConfig(HuggingFaceNames):
    """The sizes and switches of a Llama, named as in the Hugging Face configuration if it has them.

    Attributes:
        rope: rotary embedding of the layers that see all positions before them.
        local_rope: rotary embedding of the layers that see a window. None means the same.
        qkv_bias: queries, keys and values have a bias.
        output_bias: the attention's output has a bias.
        norms: where a layer has norms: `before` attention and MLP, `after` them, or on `both`
            sides.
        zero_centered_norm: the weights of norms are published less 1.
        qk_norm: queries and keys are normed as a whole (`width`) or head by head (`head`).
        attention_multiplier: factor of the scores. None means `1 / sqrt(head_dim)`.
        attn_logit_softcapping: bound of the scores, `cap * tanh(score / cap)`. None means no bound.
        final_logit_softcapping: the same of the logits.
        embedding_multiplier: factor of the embeddings before the first layer. Prompts, `c_proj` and
            distances are in the space of the table, before this factor.
        residual_multiplier: factor of what attention and MLP add to the stream.
        logits_scaling: divisor of the logits.
        sliding_window: the number of positions, its own included, that a token sees in a layer with
            a window.
        layer_kinds: `global`, `local` (with a window) or `unrotated` (without a rotary embedding)
            for each layer. Empty means that all are global.
    """

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope: Rope
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    norms: str = "before"
    zero_centered_norm: bool = False
    qk_norm: str | None = None
    attention_multiplier: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    local_rope: Rope | None = None
    sliding_window: int | None = None
    layer_kinds: tuple[str, ...] = ()

    @property
    def attention_width(self) -> int:
        return self.num_attention_heads * self.head_dim


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Keeps numbers between `-cap` and `cap` (Gemma 2, 2024, section 2). None means no bound."""
    return x if cap is None else cap * jnp.tanh(x / cap)


class Block(nn.Module):
    """One layer: attention and a gated MLP.

    It is called as `CausalLM` says: the stream `[T, hidden_size]` becomes `[Q, hidden_size]` at
    `output_slots` (None means all).

    Attributes:
        config: of the model.
        kind: an entry of `LlamaConfig.layer_kinds`.
    """

    config: LlamaConfig
    kind: str

    def setup(self) -> None:
        c = self.config
        if c.norms in ("before", "both"):
            self.attention_norm, self.mlp_norm = _norm(c), _norm(c)
        if c.norms in ("after", "both"):
            self.attention_post_norm, self.mlp_post_norm = _norm(c), _norm(c)
        if c.qk_norm:
            head_dim = c.head_dim if c.qk_norm == "head" else None
            self.q_norm, self.k_norm = _norm(c, head_dim), _norm(c, head_dim)
        self.q_proj = Dense(c.num_attention_heads * c.head_dim, use_bias=c.qkv_bias)
        self.k_proj = Dense(c.num_key_value_heads * c.head_dim, use_bias=c.qkv_bias)
        self.v_proj = Dense(c.num_key_value_heads * c.head_dim, use_bias=c.qkv_bias)
        self.o_proj = Dense(c.hidden_size, use_bias=c.output_bias)
        self.gate_proj = Dense(c.intermediate_size, use_bias=c.mlp_bias)
        self.up_proj = Dense(c.intermediate_size, use_bias=c.mlp_bias)
        self.down_proj = Dense(c.hidden_size, use_bias=c.mlp_bias)

    def __call__(
        self,
        x: jax.Array,
        mask: AttentionMask,
        output_slots: jax.Array | None,
        rotary: dict[str, Rotary],
    ) -> jax.Array:
        c = self.config
        normed = self.attention_norm(x) if c.norms != "after" else x
        q, k, v = self.q_proj(normed), self.k_proj(normed), self.v_proj(normed)
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        mixed = attend(
            *(q, k, v, mask, c.head_dim),
            rotary=rotary.get(self.kind),
            scale=c.attention_multiplier,
            soft_cap=c.attn_logit_softcapping,
            window=c.sliding_window if self.kind == "local" else None,
        )
        x, mixed = select_slots(x, mixed, output_slots)
        mixed = self.o_proj(mixed)
        if c.norms != "before":
            mixed = self.attention_post_norm(mixed)
        x = keep_whole(x + c.residual_multiplier * mixed)
        normed = self.mlp_norm(x) if c.norms != "after" else x
        inner = activate_gate(c.hidden_act, self.gate_proj(normed), self.up_proj(normed))
        added = self.down_proj(inner)
        if c.norms != "before":
            added = self.mlp_post_norm(added)
        return x + c.residual_multiplier * added


class Llama(CausalLM):
    """Llama: rotary positions, RMS norms, grouped key and value heads, a gated MLP."""

    config: LlamaConfig

    def setup(self) -> None:
        c = self.config
        self.embed = nn.Embed(c.vocab_size, c.hidden_size)
        tied = c.tie_word_embeddings
        self.head = self.embed if tied else nn.Embed(c.vocab_size, c.hidden_size)
        kinds = c.layer_kinds or ("global",) * c.num_hidden_layers
        self.layers = [Block(c, kind) for kind in kinds]
        self.norm = _norm(c)

    def embed_inputs(
        self, x: jax.Array, positions: jax.Array
    ) -> tuple[jax.Array, dict[str, Rotary]]:
        c = self.config
        ropes = {"global": c.rope, "local": c.local_rope or c.rope}
        rotary = {
            kind: rope.rotary(positions, c.head_dim)
            for kind, rope in ropes.items()
            if kind == "global" or kind in c.layer_kinds
        }
        return x * c.embedding_multiplier, rotary

    def final_norm(self, x: jax.Array) -> jax.Array:
        return self.norm(x)

    def scale_logits(self, products: jax.Array) -> jax.Array:
        c = self.config
        return soft_cap(products / c.logits_scaling, c.final_logit_softcapping)


def _norm(config: LlamaConfig, head_dim: int | None = None) -> RMSNorm:
    return RMSNorm(config.rms_norm_eps, config.zero_centered_norm, head_dim)
