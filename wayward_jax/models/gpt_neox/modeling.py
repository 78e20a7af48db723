"""GPT-NeoX (Black et al., 2022; also Pythia) as a Flax module whose input may be embeddings."""

import dataclasses

import flax.linen as nn
import jax

from wayward_jax.models.activations import activate
from wayward_jax.models.attention import AttentionMask, attend, select_slots
from wayward_jax.models.causal_lm import CausalLM, HuggingFaceNames
from wayward_jax.models.products import Dense
from wayward_jax.models.rope import Rope
from wayward_jax.models.rotary import Rotary
from wayward_jax.sharding import keep_whole


@dataclasses.dataclass(frozen=True)
class GPTNeoXConfig(HuggingFaceNames):
    """The sizes and variants of a GPT-NeoX, named as in the Hugging Face configuration.

    Attributes:
        rope: rotary embedding, in general of a part of each head's channels.
        use_parallel_residual: attention and MLP have the same input, and both are added to it.
    """

    rope: Rope
    vocab_size: int = 50432
    max_position_embeddings: int = 2048
    hidden_size: int = 6144
    intermediate_size: int = 24576
    num_hidden_layers: int = 44
    num_attention_heads: int = 64
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    attention_bias: bool = True
    use_parallel_residual: bool = True
    tie_word_embeddings: bool = False

    @property
    def attention_width(self) -> int:
        return self.hidden_size

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


def _norm(config: GPTNeoXConfig) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.layer_norm_eps, use_fast_variance=False)


class Block(nn.Module):
    """One layer: attention and an MLP, each with a norm before it, one after or beside the other.

    It is called as `CausalLM` says: the stream `[T, hidden_size]` becomes `[Q, hidden_size]` at
    `output_slots` (None means all).
    """

    config: GPTNeoXConfig

    def setup(self) -> None:
        c = self.config
        self.attention_norm, self.mlp_norm = _norm(c), _norm(c)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            Dense(c.hidden_size, use_bias=c.attention_bias) for _ in range(4)
        )
        self.widen = Dense(c.intermediate_size)
        self.narrow = Dense(c.hidden_size)

    def __call__(
        self,
        x: jax.Array,
        mask: AttentionMask,
        output_slots: jax.Array | None,
        rotary: Rotary,
    ) -> jax.Array:
        c = self.config
        normed = self.attention_norm(x)
        q, k, v = self.q_proj(normed), self.k_proj(normed), self.v_proj(normed)
        mixed = attend(q, k, v, mask, c.head_dim, rotary=rotary)
        x, mixed = select_slots(x, mixed, output_slots)
        attended = keep_whole(x + self.o_proj(mixed))
        normed = self.mlp_norm(x if c.use_parallel_residual else attended)
        return attended + self.narrow(activate(c.hidden_act, self.widen(normed)))


class GPTNeoX(CausalLM):
    """GPT-NeoX: partly rotary positions, layer norms with bias, an MLP beside the attention."""

    config: GPTNeoXConfig

    def setup(self) -> None:
        c = self.config
        self.embed = nn.Embed(c.vocab_size, c.hidden_size)
        tied = c.tie_word_embeddings
        self.head = self.embed if tied else nn.Embed(c.vocab_size, c.hidden_size)
        self.layers = [Block(c) for _ in range(c.num_hidden_layers)]
        self.norm = _norm(c)

    def embed_inputs(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, Rotary]:
        return x, self.config.rope.rotary(positions, self.config.head_dim)

    def final_norm(self, x: jax.Array) -> jax.Array:
        return self.norm(x)
