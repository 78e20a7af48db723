"""Products of matrices: sums in float32, and the layer of weights that is made of them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def product(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Multiplies two arrays of one dtype, summing over one axis of each: float32."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    axes = (((a_axis,), (b_axis,)), ((), ()))
    return lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def rounded_product(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """The same, in the dtype of the arrays."""
    if a.dtype == jnp.float32:
        return product(a, b, a_axis, b_axis)
    # On CPUs, XLA turns the factors to float32 if the result is to be bfloat16. Many CPUs can
    # multiply bfloat16 numbers as they are, which is twice as fast.
    return lax.platform_dependent(
        a,
        b,
        cpu=lambda a, b: product(a, b, a_axis, b_axis).astype(a.dtype),
        default=lambda a, b: lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ()))),
    )


@jax.custom_vjp
def _apply(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies `[..., K]` with a kernel `[K, N]`: `[..., N]`."""
    return rounded_product(x, kernel, x.ndim - 1, 0)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return _apply(x, kernel), (x, kernel)


def _backward(residuals: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    rows = [each.reshape(-1, each.shape[-1]) for each in (x, gradient)]
    of_x = rounded_product(gradient, kernel, gradient.ndim - 1, 1)
    return of_x, rounded_product(*rows, 0, 0)


_apply.defvjp(_forward, _backward)


def _dot_general(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """Takes the place of `lax.dot_general` in a layer of flax."""
    return _apply(x, kernel)


class Dense(nn.Dense):
    """A layer of weights, for inputs of their dtype."""

    dot_general: Any = _dot_general
