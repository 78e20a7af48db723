"""The paper's two projections between continuous prompts and tokens, neighbors, and margins.

`c_proj` embeds tokens, and `d_proj` gives the nearest tokens of a prompt (paper, section 3).
Distances are squared Euclidean ones as in the paper, `cosine` (1 - cosine), or `dot` (minus the dot
product). Among equally near tokens, the lowest id is the nearest.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray

METRICS = ("euclidean", "cosine", "dot")

# Rows of the table whose distances are computed together.
BLOCK = 8192

# Candidates beyond the k nearest whose distances are computed again without cancellation.
SHORTLIST = 32

# Lower bound of norms, which gives a vector of zeros a cosine of 0 with all others.
TINY = float(jnp.finfo(jnp.float32).tiny)


def c_proj(table: jax.Array, ids: Array) -> jax.Array:
    """Embeds tokens.

    Args:
        table: `[V, D]` embeddings.
        ids: `[...]` token ids.

    Returns:
        `[..., D]` float32.
    """
    return table[ids].astype(jnp.float32)


def d_proj(table: jax.Array, prompts: Array, valid: Array, metric: str = "euclidean") -> jax.Array:
    """Finds the nearest token of every prompt vector.

    Args:
        table, prompts, valid, metric: as for `neighbors`.

    Returns:
        ids `[..., L]` int32.
    """
    return neighbors(table, prompts, valid, k=1, metric=metric)[0][..., 0]


@functools.partial(jax.jit, static_argnames=("k", "metric"))
def neighbors(
    table: jax.Array,
    prompts: Array,
    valid: Array,
    k: int = 10,
    metric: str = "euclidean",
) -> tuple[jax.Array, jax.Array]:
    """Finds the k nearest tokens of every prompt vector, nearest first.

    Matrix products over blocks of the table select a shortlist, so that no array has the shape
    `[..., L, V]`. Distances from these products suffer from cancellation. The shortlist is
    therefore ordered by distances that do not, so that equal rows of the table are exactly equally
    near. (Rounding in the products may tell equal rows apart: if there are more than `SHORTLIST`
    of them, the nearest may be another than the first.) Euclidean distances do not change if
    everything is moved, and the products are then of differences from the mean embedding, because
    what all embeddings have in common would only be rounded.

    Args:
        table: `[V, D]` embeddings.
        prompts: `[..., L, D]`.
        valid: `[V]` bool, the tokens that may be neighbors; padding rows of the table may not.
        k: number of neighbors.
        metric: one of `METRICS`.

    Returns:
        ids `[..., L, k]` int32, and distances `[..., L, k]` float32.
    """
    length, dim = prompts.shape[-2:]
    one_run = functools.partial(_neighbors, table, valid, k, metric)
    ids, distances = jax.vmap(one_run)(jnp.reshape(prompts, (-1, length, dim)))
    shape = (*prompts.shape[:-1], k)
    return ids.reshape(shape), distances.reshape(shape)


def margins(distances: Array) -> Array:
    """Computes how much farther the second nearest token is than the nearest.

    Args:
        distances: `[..., k]` with k of at least 2, nearest first.

    Returns:
        `[...]`.
    """
    return distances[..., 1] - distances[..., 0]


def _neighbors(
    table: jax.Array, valid: Array, k: int, metric: str, prompt: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes `neighbors` of one prompt `[L, D]`."""
    prompt = prompt.astype(jnp.float32)
    center = table.mean(axis=0, dtype=jnp.float32) if metric == "euclidean" else 0.0
    best = jnp.zeros((len(prompt), 0), jnp.float32)
    best_ids = jnp.zeros((len(prompt), 0), jnp.int32)
    for start in range(0, len(table), BLOCK):
        rows = table[start : start + BLOCK].astype(jnp.float32) - center
        block = _rough_distances(prompt - center, rows, metric)
        block = jnp.where(valid[start : start + BLOCK], block, jnp.inf)
        ids = jnp.arange(start, start + len(rows), dtype=jnp.int32)
        best = jnp.concatenate([best, block], axis=1)
        best_ids = jnp.concatenate([best_ids, jnp.broadcast_to(ids, block.shape)], axis=1)
        best, at = jax.lax.top_k(-best, min(k + SHORTLIST, best.shape[1]))
        best, best_ids = -best, jnp.take_along_axis(best_ids, at, axis=1)
    exact = distances_between(prompt[:, None], table[best_ids].astype(jnp.float32), metric)
    exact = jnp.where(valid[best_ids], exact, jnp.inf)
    order = jnp.lexsort((best_ids, exact))[:, :k]
    return jnp.take_along_axis(best_ids, order, axis=1), jnp.take_along_axis(exact, order, axis=1)


def _rough_distances(prompt: jax.Array, rows: jax.Array, metric: str) -> jax.Array:
    """Orders `rows` `[V, D]` for each vector of `prompt` `[L, D]` by one matrix product.

    Returns:
        `[L, V]`, which increases with the distance but differs from it by terms of the prompt.
    """
    dots = jnp.matmul(prompt, rows.T, precision=jax.lax.Precision.HIGHEST)
    if metric == "dot":
        return -dots
    if metric == "cosine":
        return -dots / jnp.maximum(jnp.linalg.norm(rows, axis=1), TINY)
    return jnp.square(rows).sum(axis=1) - 2 * dots


def distances_between(prompt: jax.Array, rows: jax.Array, metric: str) -> jax.Array:
    """Computes distances under a metric without cancellation.

    Args:
        prompt: `[..., D]`.
        rows: `[..., D]` of a shape that fits.
        metric: one of `METRICS`.

    Returns:
        `[...]` float32.
    """
    if metric == "dot":
        return -(prompt * rows).sum(axis=-1)
    if metric == "cosine":
        norms = jnp.linalg.norm(prompt, axis=-1) * jnp.linalg.norm(rows, axis=-1)
        return 1 - (prompt * rows).sum(axis=-1) / jnp.maximum(norms, TINY)
    return jnp.square(prompt - rows).sum(axis=-1)
