"""Where the vectors of a prompt lie, beside where tokens lie."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from wayward_jax.models import LanguageModel
from wayward_jax.projection import neighbors
from wayward_jax.sharding import on_host

# The number of tokens whose distance to the nearest other token is measured.
SAMPLE = 1024

# Vectors nearer to each other than this part of the median distance between tokens are duplicates,
# and vectors shorter than this part of the median norm of tokens are dead.
SMALL = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Anatomy:
    """The L vectors of a prompt among the tokens of its model; distances are Euclidean.

    Attributes:
        to_token: `[L]` float32, the distance from each vector to its nearest token.
        between_tokens: `[S]` float32, the distance from each of a sample of tokens to the nearest
            other token.
        norms: `[L]` float32, of the vectors.
        token_norms: `[V]` float32, of the tokens that can be read.
        duplicates: pairs of positions whose vectors are nearly the same.
        dead: positions of vectors that are nearly 0.
    """

    to_token: np.ndarray
    between_tokens: np.ndarray
    norms: np.ndarray
    token_norms: np.ndarray
    duplicates: tuple[tuple[int, int], ...]
    dead: tuple[int, ...]

    @property
    def is_text(self) -> bool:
        """True if each vector is exactly the embedding of a token."""
        return not self.to_token.any()

    @property
    def usual(self) -> float:
        """The distance to the nearest other token that 95 % of tokens do not exceed."""
        return float(np.quantile(self.between_tokens, 0.95))

    @property
    def far(self) -> int:
        """The number of vectors that are farther than `usual` from every token."""
        return int((self.to_token > self.usual).sum())


def dissect(model: LanguageModel, prompt: np.ndarray) -> Anatomy:
    """Measures a prompt `[L, D]`.

    The sample of tokens is the same every time.
    """
    table, valid = model.embedding_table(), model.valid_tokens()
    tokens = np.flatnonzero(valid)
    chosen = np.random.default_rng(0).permutation(tokens)[:SAMPLE]
    _, to_token = neighbors(table, jnp.asarray(prompt), valid, k=1)
    # The nearest of a token's neighbors is the token, or another with the same embedding.
    _, between = neighbors(table, table[chosen].astype(jnp.float32), valid, k=min(2, len(tokens)))
    between_tokens = np.sqrt(on_host(between)[:, -1])
    norms, token_norms = (
        np.linalg.norm(vectors, axis=1)
        for vectors in (prompt, on_host(table.astype(jnp.float32))[tokens])
    )
    apart = np.stack([np.linalg.norm(prompt - vector, axis=1) for vector in prompt])
    near = np.triu(apart <= SMALL * np.median(between_tokens), 1)
    return Anatomy(
        np.sqrt(on_host(to_token)[:, 0]),
        between_tokens,
        norms,
        token_norms,
        tuple((int(i), int(j)) for i, j in np.argwhere(near)),
        tuple(np.flatnonzero(norms <= SMALL * np.median(token_norms)).tolist()),
    )
