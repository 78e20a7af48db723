"""OPT (Zhang et al., 2022) as a Flax module whose input may be embeddings."""

import dataclasses

import flax.linen as nn
import jax

from wayward_jax.models.activations import activate
from wayward_jax.models.attention import AttentionMask, attend, select_slots
from wayward_jax.models.causal_lm import CausalLM, HuggingFaceNames
from wayward_jax.models.products import Dense
from wayward_jax.sharding import keep_whole

# The table of positions begins with this many rows that no position uses.
UNUSED_POSITIONS = 2


@dataclasses.dataclass(frozen=True)
class OPTConfig(HuggingFaceNames):
    """The sizes and variants of an OPT, named as in the Hugging Face configuration.

    Attributes:
        word_embed_proj_dim: D, the width of embeddings and prompts. Where it is not `hidden_size`,
            linear layers lead from one to the other before the first layer and after the last.
        do_layer_norm_before: norms are before attention and MLP; else they are after them, and the
            model has no last norm.
        enable_bias: linear layers have a bias.
        layer_norm_elementwise_affine: norms have weights.
    """

    word_embed_proj_dim: int
    vocab_size: int = 50272
    max_position_embeddings: int = 2048
    hidden_size: int = 768
    ffn_dim: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    activation_function: str = "relu"
    do_layer_norm_before: bool = True
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True
    tie_word_embeddings: bool = True

    @property
    def attention_width(self) -> int:
        return self.hidden_size


def _norm(config: OPTConfig) -> nn.LayerNorm:
    affine = config.layer_norm_elementwise_affine
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, use_scale=affine, use_bias=affine)


class Block(nn.Module):
    """One layer: attention and an MLP, each with a norm before or after it.

    It is called as `CausalLM` says: the stream `[T, hidden_size]` becomes `[Q, hidden_size]` at
    `output_slots` (None means all).
    """

    config: OPTConfig

    def setup(self) -> None:
        c = self.config
        self.attention_norm, self.mlp_norm = _norm(c), _norm(c)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            Dense(c.hidden_size, use_bias=c.enable_bias) for _ in range(4)
        )
        self.widen = Dense(c.ffn_dim, use_bias=c.enable_bias)
        self.narrow = Dense(c.hidden_size, use_bias=c.enable_bias)

    def __call__(
        self, x: jax.Array, mask: AttentionMask, output_slots: jax.Array | None
    ) -> jax.Array:
        c = self.config
        before = c.do_layer_norm_before
        normed = self.attention_norm(x) if before else x
        q, k, v = self.q_proj(normed), self.k_proj(normed), self.v_proj(normed)
        mixed = attend(q, k, v, mask, c.hidden_size // c.num_attention_heads)
        x, mixed = select_slots(x, mixed, output_slots)
        x = keep_whole(x + self.o_proj(mixed))
        x = x if before else self.attention_norm(x)
        normed = self.mlp_norm(x) if before else x
        x = x + self.narrow(activate(c.activation_function, self.widen(normed)))
        return x if before else self.mlp_norm(x)


class OPT(CausalLM):
    """OPT: learned positions, layer norms with bias, an MLP without gates."""

    config: OPTConfig

    def setup(self) -> None:
        c = self.config
        self.embed = nn.Embed(c.vocab_size, c.word_embed_proj_dim)
        tied = c.tie_word_embeddings
        self.head = self.embed if tied else nn.Embed(c.vocab_size, c.word_embed_proj_dim)
        self.positions = nn.Embed(UNUSED_POSITIONS + c.max_position_embeddings, c.hidden_size)
        self.layers = [Block(c) for _ in range(c.num_hidden_layers)]
        if c.do_layer_norm_before:
            self.norm = _norm(c)
        if c.word_embed_proj_dim != c.hidden_size:
            self.project_in = Dense(c.hidden_size, use_bias=False)
            self.project_out = Dense(c.word_embed_proj_dim, use_bias=False)

    def embed_inputs(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array]:
        if self.config.word_embed_proj_dim != self.config.hidden_size:
            x = self.project_in(x)
        return (x + self.positions(UNUSED_POSITIONS + positions),)

    def final_norm(self, x: jax.Array) -> jax.Array:
        if self.config.do_layer_norm_before:
            x = self.norm(x)
        if self.config.word_embed_proj_dim != self.config.hidden_size:
            x = self.project_out(x)
        return x
