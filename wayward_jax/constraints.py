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

from wayward_jax.projection import BLOCK, TINY, c_proj, d_proj, neighbors

# So many of a token's neighbors are told from it without cancellation; others are far enough.
NEAREST = 32

# By what share the last of the nearest may be said to be too far off by a matrix product.
IMPRECISION = 1e-3

# By what share distances to points that are nearly the same may be wrong: they are differences of
# sums of D squares.
ROUNDING = 4 * float(jnp.finfo(jnp.float32).eps)


@struct.dataclass
class Cells:
    """What holds R prompts of up to L vectors in the cells of their targets' tokens.

    nearest: `[R, L, K]` int32, `neighbors` of the targets' embeddings, themselves included.
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
    return neighbors(table, c_proj(table, ids), all_valid, k=min(NEAREST, len(table)))[0]


def has_empty_cell(table: jax.Array, ids: jax.Array) -> np.ndarray:
    """Which tokens nothing reads as, since one of a lower id has the same embedding.

    Args:
        table: `[V, D]`, of the tokens that can be read.
        ids: `[L]`.

    Returns:
        `[L]` bool.
    """
    valid = np.ones(len(table), bool)
    return np.asarray(d_proj(table, c_proj(table, ids), valid) != ids)


def cell_exit(
    table: jax.Array, ids: jax.Array, nearest: jax.Array, prompts: jax.Array
) -> jax.Array:
    """How far the cells go: the largest s for which `e + s (p - e)` still reads as the token of e.

    The wall to a token of embedding v is where both are equally far: `s = |v - e|^2 / 2 u.(v - e)`
    on the ray `u = p - e`. A prompt is in its cells where s is 1 or more. Where it takes more than
    float32 to tell which of two tokens is nearer, the wall is taken to be as near as it might be.

    Args:
        table: `[V, D]`, of the tokens that can be read.
        ids: `[R, L]`, whose cells they are.
        nearest: `[R, L, K]`, of them.
        prompts: `[R, L, D]`.

    Returns:
        `[R, L]` float32.
    """
    return jax.vmap(functools.partial(_cell_exit, table))(ids, nearest, prompts)


def retract(
    prompts: jax.Array, embeddings: jax.Array, cell_exit: jax.Array, share: jax.Array
) -> jax.Array:
    """Prompts in the given share of their cells: where they were, or on the ray at its end.

    Args:
        prompts: `[R, L, D]`.
        embeddings: `[R, L, D]` of the tokens whose cells they are.
        cell_exit: `[R, L]`, of the prompts.
        share: `[R]`.
    """
    kept = jnp.minimum(share[:, None] * cell_exit, 1)[..., None]
    return jnp.where(kept < 1, embeddings + kept * (prompts - embeddings), prompts)


def _cell_exit(
    table: jax.Array, ids: jax.Array, nearest: jax.Array, prompt: jax.Array
) -> jax.Array:
    """`cell_exit` of one prompt `[L, D]`."""
    own = c_proj(table, ids)
    ray = prompt - own
    gaps = c_proj(table, nearest) - own[:, None]  # [L, K, D]
    lengths = [jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (own, ray)]
    apart = jnp.square(gaps).sum(axis=-1)
    # Equal embeddings are never told apart, and share a cell.
    others = jnp.where(apart > 0, apart, jnp.inf)
    least = _walls(others, (ray[:, None] * gaps).sum(axis=-1), *lengths)

    beyond = (1 - IMPRECISION) * apart.max(axis=1, keepdims=True)
    precise = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    for start in range(0, len(table), BLOCK):
        rows = table[start : start + BLOCK].astype(jnp.float32)
        ahead = precise(ray, rows.T) - (ray * own).sum(axis=-1, keepdims=True)
        apart = jnp.square(rows).sum(axis=1) - 2 * precise(own, rows.T)
        apart += jnp.square(own).sum(axis=-1, keepdims=True)
        others = jnp.where(apart < beyond, jnp.inf, apart)
        least = jnp.minimum(least, _walls(others, ahead, *lengths))
    return least


def _walls(apart: jax.Array, ahead: jax.Array, own: jax.Array, ray: jax.Array) -> jax.Array:
    """The nearest wall of each vector: `[L]`.

    At s another embedding is farther by `apart - 2 s ahead`, in squares, and float32 tells so as
    long as that is more than the rounding of what is compared, `ROUNDING (s^2 ray^2 + own
    sqrt(apart))`. So s is the root of a quadratic equation.

    Args:
        apart: `[L, n]`, squared distances of other embeddings from the vectors' tokens'; inf for
            those that do not count.
        ahead: `[L, n]`, `u.(v - e)`.
        own: `[L, 1]`, the length of e.
        ray: `[L, 1]`, the length of u.
    """
    counts = jnp.isfinite(apart)
    apart = jnp.where(counts, apart, 1)
    certain = jnp.maximum(apart - ROUNDING * own * jnp.sqrt(jnp.maximum(apart, 0)), 0)
    growth = ROUNDING * jnp.square(ray)
    root = jnp.sqrt(jnp.square(ahead) + growth * certain)
    # The same root in two forms, of which one cancels where the other does not.
    behind = jnp.where(growth > TINY, (root - ahead) / jnp.maximum(growth, TINY), jnp.inf)
    wall = jnp.where(ahead > 0, certain / jnp.maximum(ahead + root, TINY), behind)
    return jnp.where(counts, jnp.where(certain > 0, wall, 0), jnp.inf).min(axis=1)
