"""Between continuous prompts and tokens: `c_proj`, `d_proj`, neighbors and margins.

Nearness is squared Euclidean distance as in the paper, or `cosine` (1 - cosine) or `dot` (minus
the dot product); less is nearer in each. Among equally near tokens the lowest id wins.
"""

import functools

import jax
import jax.numpy as jnp

METRICS = ("euclidean", "cosine", "dot")

# Rows of the table looked at together, and how many of the nearest are compared exactly.
BLOCK = 8192
SHORTLIST = 32

# Norms are at least this, so that a vector of zeros has cosine 0 with all others.
TINY = float(jnp.finfo(jnp.float32).tiny)


def c_proj(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Tokens to their embeddings: `[V, D]`, `[...]` -> `[..., D]` float32."""
    return table[ids].astype(jnp.float32)


def d_proj(
    table: jax.Array, prompts: jax.Array, valid: jax.Array, metric: str = "euclidean"
) -> jax.Array:
    """Prompts to their nearest tokens: `[..., L, D]` -> `[..., L]` int32. See `neighbors`."""
    return neighbors(table, prompts, valid, k=1, metric=metric)[0][..., 0]


@functools.partial(jax.jit, static_argnames=("k", "metric"))
def neighbors(
    table: jax.Array,
    prompts: jax.Array,
    valid: jax.Array,
    k: int = 10,
    metric: str = "euclidean",
) -> tuple[jax.Array, jax.Array]:
    """The k nearest tokens of every prompt vector, nearest first.

    One matrix product over blocks of the table makes a shortlist, without ever holding
    `[..., L, V]`. Its distances suffer from cancellation, so the shortlist is then ordered by
    distances that do not, and equal rows of the table are exactly equally near. (The product
    itself may tell equal rows apart by rounding, so of more than `SHORTLIST` equal rows another
    than the first may be answered.)

    Args:
        table: `[V, D]` embeddings.
        prompts: `[..., L, D]`.
        valid: `[V]` bool, tokens that may be answered (padded rows of the table are none).
        k: how many.
        metric: one of `METRICS`.

    Returns:
        ids `[..., L, k]` int32, and distances `[..., L, k]` float32.
    """
    length, dim = prompts.shape[-2:]
    one_run = functools.partial(_neighbors, table, valid, k, metric)
    ids, distances = jax.vmap(one_run)(prompts.reshape(-1, length, dim))
    shape = (*prompts.shape[:-1], k)
    return ids.reshape(shape), distances.reshape(shape)


def margins(distances: jax.Array) -> jax.Array:
    """How much farther the runner-up is than the nearest: `[..., k >= 2]` -> `[...]`."""
    return distances[..., 1] - distances[..., 0]


def _neighbors(
    table: jax.Array, valid: jax.Array, k: int, metric: str, prompt: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`neighbors` of one prompt `[L, D]`."""
    prompt = prompt.astype(jnp.float32)
    best = jnp.zeros((len(prompt), 0), jnp.float32)
    best_ids = jnp.zeros((len(prompt), 0), jnp.int32)
    for start in range(0, len(table), BLOCK):
        rows = table[start : start + BLOCK].astype(jnp.float32)
        found = jnp.where(valid[start : start + BLOCK], _by_product(prompt, rows, metric), jnp.inf)
        ids = jnp.arange(start, start + len(rows), dtype=jnp.int32)
        best = jnp.concatenate([best, found], axis=1)
        best_ids = jnp.concatenate([best_ids, jnp.broadcast_to(ids, found.shape)], axis=1)
        best, at = jax.lax.top_k(-best, min(k + SHORTLIST, best.shape[1]))
        best, best_ids = -best, jnp.take_along_axis(best_ids, at, axis=1)
    exact = _exact(prompt[:, None], table[best_ids].astype(jnp.float32), metric)
    exact = jnp.where(valid[best_ids], exact, jnp.inf)
    order = jnp.lexsort((best_ids, exact))[:, :k]
    return tuple(jnp.take_along_axis(x, order, axis=1) for x in (best_ids, exact))


def _by_product(prompt: jax.Array, rows: jax.Array, metric: str) -> jax.Array:
    """`[L, D]`, `[V, D]` -> `[L, V]`, ordered as the distances are; one matrix product."""
    dots = jnp.matmul(prompt, rows.T, precision=jax.lax.Precision.HIGHEST)
    if metric == "dot":
        return -dots
    if metric == "cosine":
        return -dots / jnp.maximum(jnp.linalg.norm(rows, axis=1), TINY)
    return jnp.square(rows).sum(axis=1) - 2 * dots


def _exact(prompt: jax.Array, rows: jax.Array, metric: str) -> jax.Array:
    """`[L, 1, D]`, `[L, n, D]` -> distances `[L, n]`, without cancellation."""
    if metric == "dot":
        return -(prompt * rows).sum(axis=-1)
    if metric == "cosine":
        norms = jnp.linalg.norm(prompt, axis=-1) * jnp.linalg.norm(rows, axis=-1)
        return 1 - (prompt * rows).sum(axis=-1) / jnp.maximum(norms, TINY)
    return jnp.square(prompt - rows).sum(axis=-1)
