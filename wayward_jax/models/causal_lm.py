"""What every frozen language model here can do, whatever its layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from wayward_jax.models.attention import Layout, text_layout


class CausalLM(nn.Module):
    """A language model that reads embeddings and gives hidden states; logits are a separate call.

    A family defines `__call__` and sets two tables in `setup`: `embed`, and `head`, which is
    `embed` again where the weights are tied.
    """

    def __call__(self, prompts: jax.Array, rows: jax.Array, layout: Layout) -> jax.Array:
        """Hidden states of the rows' tokens, after the last norm.

        Args:
            prompts: `[R, L, D]` continuous prompts.
            rows: `[R, N, S, D]` token embeddings.
            layout: of the same R, L, N and S.

        Returns:
            `[R, N, S, D]` in the weights' dtype.
        """
        raise NotImplementedError

    def table(self) -> jax.Array:
        """The embedding table `[V, D]`, in the weights' dtype."""
        return self.embed.embedding

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits `[..., V]` float32 of hidden states `[..., D]`."""
        return jnp.matmul(hidden, self.head.embedding.T, preferred_element_type=jnp.float32)

    def text_logits(self, ids: jax.Array) -> jax.Array:
        """The plain language model: token ids `[N, T]` to logits `[N, T, V]` float32."""
        rows = self.embed(ids)[None]
        return self.logits(self(rows[:, 0, :0], rows, text_layout(*ids.shape)))[0]
