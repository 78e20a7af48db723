"""Products of matrices: sums in float32, and the layer of weights that is made of them."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from wayward_jax.sharding import by_platform


def product(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Multiplies two arrays of one dtype, summing over one axis of each: float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    axes = (((a_axis,), (b_axis,)), ((), ()))
    return lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def rounded_product(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """The same, in the dtype of the arrays."""
    if a.dtype == jnp.float32:
        return product(a, b, a_axis, b_axis)

    def rounded(a: jax.Array, b: jax.Array) -> jax.Array:
        return lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())))

    return by_platform(
        a,
        b,
        # XLA turns the factors to float32 if the result is to be bfloat16. Many CPUs can multiply
        # bfloat16 numbers as they are, which is twice as fast.
        cpu=lambda a, b: product(a, b, a_axis, b_axis).astype(a.dtype),
        # XLA makes several products with the same factor one, and copies each result out of that.
        cuda=lambda a, b: rounded(*lax.optimization_barrier((a, b))),
        default=rounded,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def multiply(
    x: jax.Array, weights: jax.Array, axis: int, by: Callable[..., jax.Array]
) -> jax.Array:
    """Multiplies `[..., K]` with weights, of which an axis is K and the other N: `[..., N]`.

    The gradient is multiplied in the dtype of the weights. JAX would turn them to its own.

    Args:
        x: of the dtype of the weights.
        weights: `[K, N]` or `[N, K]`.
        axis: of the weights, 0 or 1.
        by: `product` or `rounded_product`, which decides the dtype.
    """
    return by(x, weights, x.ndim - 1, axis)


def _forward(
    x: jax.Array, weights: jax.Array, axis: int, by: Callable[..., jax.Array]
) -> tuple[jax.Array, tuple]:
    return multiply(x, weights, axis, by), (x, weights)


def _backward(
    axis: int, by: Callable[..., jax.Array], residuals: tuple, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weights = residuals
    gradient = gradient.astype(weights.dtype)
    of_x = rounded_product(gradient, weights, gradient.ndim - 1, 1 - axis)
    of_k, of_n = (each.reshape(-1, each.shape[-1]) for each in (x, gradient))
    factors = (of_k, of_n) if axis == 0 else (of_n, of_k)
    return of_x, rounded_product(*factors, 0, 0)


multiply.defvjp(_forward, _backward)


def _dot_general(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """Takes the place of `lax.dot_general` in a layer of flax."""
    return multiply(x, kernel, 0, rounded_product)


class Dense(nn.Dense):
    """A layer of weights, for inputs of their dtype."""

    dot_general: Any = _dot_general
