"""The arithmetic of attention, which plain JAX and the kernels share."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from wayward_jax.models.products import product

Block = Callable[..., tuple[jax.Array, ...]]
"""`mix` or `mix_gradients`."""

# This number is added to the score of a hidden slot. It is far below every score of numbers that
# are at most LARGEST, so that the weight is exactly 0, and finite, so that no NaN comes of it.
HIDDEN = -1e30

# Larger numbers count as not finite. Sums of their products would overflow.
LARGEST = 1e13


class Scoring(NamedTuple):
    """How queries and keys become scores.

    Attributes:
        head_dim: d, the width of a head.
        scale: factor of the products.
        soft_cap: scores are squashed to less than this by a tanh; None leaves them as they are.
    """

    head_dim: int
    scale: float
    soft_cap: float | None


def finite(x: jax.Array) -> jax.Array:
    """Replaces numbers that are not finite by 0."""
    return jnp.where(jnp.abs(x) <= LARGEST, x, 0)


def mix(
    scoring: Scoring, bias: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array]:
    """Mixes the values of a row for n heads that share its keys.

    Args:
        scoring: of the heads.
        bias: `[S, Z]` float32, of S keys and Z queries.
        q: `[n * Z, d]`, the queries of one head below those of another.
        k: `[S, d]`.
        v: `[S, d]`.

    Returns:
        `[n * Z, d]` float32.
    """
    scores, _ = score(scoring, q * scoring.scale, k)
    return (product(_weights(bias, scores).astype(v.dtype), v, 0, 0),)


def mix_gradients(
    scoring: Scoring,
    bias: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the gradients of `mix` with respect to q, k and v, in float32.

    `gradient` is `[n * Z, d]`, that with respect to the result. The other arguments are those of
    `mix`.
    """
    q = q * scoring.scale
    scores, slope = score(scoring, q, k)
    weights = _weights(bias, scores)
    of_weights = product(v, gradient, 1, 1)
    mean = (weights * of_weights).sum(axis=0, keepdims=True)
    of_scores = (weights * (of_weights - mean) * slope).astype(q.dtype)
    return (
        product(of_scores, k, 0, 0) * scoring.scale,
        product(of_scores, q, 1, 0),
        product(weights.astype(gradient.dtype), gradient, 1, 0),
    )


def score(scoring: Scoring, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array | float]:
    """Computes scores, keys first, and their slope where they are capped: `[S, Z]` float32.

    On a TPU, sums over keys are then sums down its registers, not across their lanes. If queries
    and keys change places, queries come first.

    Args:
        scoring: of the heads.
        q: `[Z, d]`, queries times `scoring.scale`.
        k: `[S, d]`.
    """
    scores = product(k, q, 1, 1)
    if scoring.soft_cap is None:
        return scores, 1.0
    capped = jnp.tanh(scores / scoring.soft_cap)
    return scoring.soft_cap * capped, 1 - capped**2


def _weights(bias: jax.Array, scores: jax.Array) -> jax.Array:
    """Computes softmax weights `[S, n * Z]` float32; the sum over keys (first axis) is 1."""
    heads = scores.shape[1] // bias.shape[1]
    scores = scores + jnp.concatenate([bias] * heads, axis=1)
    weights = jnp.exp(scores - scores.max(axis=0, keepdims=True))
    return weights * (1 / weights.sum(axis=0, keepdims=True))


def query_blocks(slots: int, most: int, grain: int) -> Iterator[tuple[slice, int]]:
    """Cuts a row into about equal blocks of queries, each with the number of slots up to its end.

    Attention is causal, so no query of a block attends to later slots.

    Args:
        slots: S, the length of the row.
        most: the most queries of a block, a multiple of `grain`.
        grain: blocks start at multiples of it.
    """
    size = -(-slots // -(-slots // most))
    size = -(-size // grain) * grain
    for first in range(0, slots, size):
        end = min(first + size, slots)
        yield slice(first, end), end


def add_longer(
    sums: Sequence[jax.Array], arrays: Sequence[jax.Array], axis: int
) -> list[jax.Array]:
    """Adds each sum, or nothing if there are none, to the start of an array that is longer."""
    if not sums:
        return list(arrays)
    added = []
    for total, x in zip(sums, arrays, strict=True):
        start, rest = jnp.split(x, [total.shape[axis]], axis=axis)
        added.append(jnp.concatenate([total + start, rest], axis=axis))
    return added
