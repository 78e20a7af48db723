"""Norms of vectors, and of the heads that stand side by side in them."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from wayward_jax.models.products import product
from wayward_jax.sharding import by_platform, model_shards


class RMSNorm(nn.Module):
    """Divides vectors by their root mean square, and multiplies them by a factor.

    It computes in float32 and returns the dtype of its input (Zhang and Sennrich, 2019).

    Attributes:
        epsilon: is added to the mean square.
        zero_centered: the factor is `1 + scale` rather than `scale`.
        head_dim: d, if each head of `[T, H * d]` is a vector of its own. None means that each row
            is one.
    """

    epsilon: float
    zero_centered: bool = False
    head_dim: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (self.head_dim or x.shape[-1],))
        factor = scale.astype(jnp.float32) + (1.0 if self.zero_centered else 0.0)
        if self.head_dim is None:
            return _normalize(x, factor, self.epsilon)
        plainly, by_products = (
            functools.partial(function, epsilon=self.epsilon)
            for function in (_normalize_heads, _normalize_heads_by_products)
        )
        # Products with each head would move data between devices that have some heads each.
        if model_shards() > 1:
            return plainly(x, factor)
        return by_platform(x, factor, tpu=by_products, default=plainly)


def _mean(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return x.mean(axis=-1, keepdims=True)


def _normalize(
    x: jax.Array,
    factor: jax.Array,
    epsilon: float,
    mean: Callable[[jax.Array, jnp.dtype], jax.Array] = _mean,
) -> jax.Array:
    wide = x.astype(jnp.float32)
    squares = mean(jnp.square(wide), x.dtype)
    return (wide * lax.rsqrt(squares + epsilon) * factor).astype(x.dtype)


def _normalize_heads(x: jax.Array, factor: jax.Array, epsilon: float) -> jax.Array:
    heads = x.reshape(len(x), -1, len(factor))
    return _normalize(heads, factor, epsilon).reshape(x.shape)


def _normalize_heads_by_products(x: jax.Array, factor: jax.Array, epsilon: float) -> jax.Array:
    """The same. A TPU sums over the numbers of a head fastest where it multiplies matrices."""
    normalize = jax.checkpoint(_normalize, static_argnums=(2, 3), prevent_cse=False)
    heads = jnp.split(x, x.shape[1] // len(factor), axis=1)
    return jnp.concatenate(
        [normalize(head, factor, epsilon, _mean_by_product) for head in heads], axis=1
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _mean_by_product(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Replaces all numbers of a row by their mean: `[T, d]` float32, summed after rounding to a
    dtype.

    The matrix that does so is symmetric, so it makes the gradient, too.
    """
    ones = jnp.ones((x.shape[1], x.shape[1]), dtype)
    return product(x.astype(dtype), ones, 1, 0) / x.shape[1]


_mean_by_product.defvjp(
    lambda x, dtype: (_mean_by_product(x, dtype), None),
    lambda dtype, _, gradient: (_mean_by_product(gradient, dtype),),
)
