"""The cells of tokens: where prompts may go and still read as a given text.

The vectors that read as a token are its Voronoi cell among the embeddings. It is convex and holds
the token's own embedding, so a vector can be kept in it exactly: where it has left, it is pulled
back along the ray to that embedding. Nothing is weighed against the task, and whatever was tuned
reads as the target by construction.

A vector may use a share of its cell, `1 - margin`: the cell drawn smaller around the embedding.
That leaves room for rounding, and makes the reading of a prompt less of a near-tie.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from wayward_jax.projection import BLOCK, c_proj, d_proj, neighbours

# So many of a token's neighbours are told from it without cancellation; others are far enough.
NEAREST = 32

# The square of how far off the last of the nearest may be said to be by a matrix product.
ROUNDING = 1e-3


@struct.dataclass
class Cells:
    """What holds R prompts of up to L vectors in the cells of their targets' tokens.

    nearest: `[R, L, K]` int32, `neighbours` of the targets' embeddings, themselves included.
    share: `[R]` float32, `1 - margin`.
    hard: `[R]` bool, whether vectors outside are pulled back.
    dual_rate: `[R]` float32, how fast the logarithm of gamma goes up and down while it is being
        found, see `tuning.held`; 0 for a gamma that stays.
    vocab_size: rows of the embedding table that can be read; others have no cell.
    """

    nearest: jax.Array
    share: jax.Array
    hard: jax.Array
    dual_rate: jax.Array
    vocab_size: int = struct.field(pytree_node=False)


def nearest(table: jax.Array, ids: jax.Array) -> jax.Array:
    """The `nearest` of `Cells`: `[V, D]`, `[R, L]` -> `[R, L, K]`, K at most `NEAREST`."""
    all_valid = np.ones(len(table), bool)
    return neighbours(table, c_proj(table, ids), all_valid, k=min(NEAREST, len(table)))[0]


def without_cell(table: jax.Array, ids: jax.Array) -> np.ndarray:
    """Which tokens nothing reads as, since one of a lower id has the same embedding.

    Args:
        table: `[V, D]`, of the tokens that can be read.
        ids: `[L]`.

    Returns:
        `[L]` bool.
    """
    valid = np.ones(len(table), bool)
    return np.asarray(d_proj(table, c_proj(table, ids), valid) != ids)


def reach(table: jax.Array, ids: jax.Array, nearest: jax.Array, prompts: jax.Array) -> jax.Array:
    """How far the cells go: the largest s for which `e + s (p - e)` still reads as the token of e.

    The wall to a token of embedding v is where both are equally far: `s = |v - e|^2 / 2 u.(v - e)`
    on the ray `u = p - e`. A prompt is in its cells where s is 1 or more.

    Args:
        table: `[V, D]`, of the tokens that can be read.
        ids: `[R, L]`, whose cells they are.
        nearest: `[R, L, K]`, of them.
        prompts: `[R, L, D]`.

    Returns:
        `[R, L]` float32, inf on a ray that does not end.
    """
    return jax.vmap(functools.partial(_reach, table))(ids, nearest, prompts)


def pulled_back(
    prompts: jax.Array, embeddings: jax.Array, reach: jax.Array, share: jax.Array
) -> jax.Array:
    """Prompts in the given share of their cells: where they were, or on the ray at its end.

    Args:
        prompts: `[R, L, D]`.
        embeddings: `[R, L, D]` of the tokens whose cells they are.
        reach: `[R, L]`, of the prompts.
        share: `[R]`.
    """
    kept = jnp.minimum(share[:, None] * reach, 1)[..., None]
    return jnp.where(kept < 1, embeddings + kept * (prompts - embeddings), prompts)


def _reach(table: jax.Array, ids: jax.Array, nearest: jax.Array, prompt: jax.Array) -> jax.Array:
    """`reach` of one prompt `[L, D]`."""
    own = c_proj(table, ids)
    ray = prompt - own
    gaps = c_proj(table, nearest) - own[:, None]  # [L, K, D]
    apart = jnp.square(gaps).sum(axis=-1)
    least = _walls(apart, (ray[:, None] * gaps).sum(axis=-1))

    beyond = (1 - ROUNDING) * apart.max(axis=1, keepdims=True)
    precise = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    for start in range(0, len(table), BLOCK):
        rows = table[start : start + BLOCK].astype(jnp.float32)
        ahead = precise(ray, rows.T) - (ray * own).sum(axis=-1, keepdims=True)
        apart = jnp.square(rows).sum(axis=1) - 2 * precise(own, rows.T)
        apart += jnp.square(own).sum(axis=-1, keepdims=True)
        others = _walls(jnp.where(apart < beyond, jnp.inf, apart), ahead)
        least = jnp.minimum(least, others)
    return least


def _walls(apart: jax.Array, ahead: jax.Array) -> jax.Array:
    """The nearest wall: `[L, n]` squared distances of others and `u.(v - e)` -> `[L]`."""
    walls = jnp.where(ahead > 0, apart / jnp.where(ahead > 0, 2 * ahead, 1), jnp.inf)
    return walls.min(axis=1)
