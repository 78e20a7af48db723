"""GPT-2 (Radford et al., 2019) as a Flax module whose input may be embeddings."""

import dataclasses

import flax.linen as nn
import jax

from wayward_jax.models.activations import activate
from wayward_jax.models.attention import AttentionMask, attend, select_slots
from wayward_jax.models.causal_lm import CausalLM
from wayward_jax.models.products import Dense
from wayward_jax.sharding import keep_whole


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """The sizes and variants of a GPT-2, named as in the Hugging Face configuration."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True

    @property
    def max_positions(self) -> int:
        return self.n_positions

    @property
    def depth(self) -> int:
        return self.n_layer

    @property
    def heads(self) -> int:
        return self.n_head

    @property
    def attention_width(self) -> int:
        return self.n_embd


def _norm(config: GPT2Config) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.layer_norm_epsilon, use_fast_variance=False)


class Block(nn.Module):
    """One layer: attention and an MLP, each with a norm before it.

    It is called as `CausalLM` says: the stream `[T, n_embd]` becomes `[Q, n_embd]` at
    `output_slots` (None means all).
    """

    config: GPT2Config

    def setup(self) -> None:
        c = self.config
        self.ln_1, self.ln_2 = _norm(c), _norm(c)
        self.q_proj, self.k_proj, self.v_proj = (Dense(c.n_embd) for _ in range(3))
        self.attn_proj = Dense(c.n_embd)
        self.c_fc = Dense(c.n_inner or 4 * c.n_embd)
        self.mlp_proj = Dense(c.n_embd)

    def __call__(
        self, x: jax.Array, mask: AttentionMask, output_slots: jax.Array | None
    ) -> jax.Array:
        normed = self.ln_1(x)
        q, k, v = self.q_proj(normed), self.k_proj(normed), self.v_proj(normed)
        mixed = attend(q, k, v, mask, self.config.n_embd // self.config.n_head)
        x, mixed = select_slots(x, mixed, output_slots)
        x = keep_whole(x + self.attn_proj(mixed))
        wide = activate(self.config.activation_function, self.c_fc(self.ln_2(x)))
        return x + self.mlp_proj(wide)


class GPT2(CausalLM):
    """GPT-2: learned positions, layer norms with bias, an MLP without gates."""

    config: GPT2Config

    def setup(self) -> None:
        c = self.config
        self.embed = nn.Embed(c.vocab_size, c.n_embd)
        tied = c.tie_word_embeddings
        self.head = self.embed if tied else nn.Embed(c.vocab_size, c.n_embd)
        self.wpe = nn.Embed(c.n_positions, c.n_embd)
        self.layers = [Block(c) for _ in range(c.n_layer)]
        self.ln_f = _norm(c)

    def embed_inputs(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, ...]:
        return (x + self.wpe(positions),)

    def final_norm(self, x: jax.Array) -> jax.Array:
        return self.ln_f(x)
