"""Rotary embedding: queries and keys are rotated by their positions."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax


@struct.dataclass
class Rotary:
    """The rotation of queries and keys by their positions (RoFormer, Su et al., 2021, section 3.2).

    Channel i of a head of width d is paired with its channel i + d / 2.

    Attributes:
        cos: `[T, d]` float32, the cosine of each channel's angle.
        sin: `[T, d]` float32, the sine, negated in the first half of the channels.
    """

    cos: jax.Array
    sin: jax.Array

    @classmethod
    def by(cls, angles: jax.Array) -> "Rotary":
        """Makes the rotation by `angles` `[T, d / 2]`, in radians."""
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        return cls(jnp.concatenate([cos, cos], axis=1), jnp.concatenate([-sin, sin], axis=1))

    def apply(self, x: jax.Array) -> jax.Array:
        """Rotates every head of `x` `[T, n * d]`, in float32; returns the dtype of `x`."""
        head_dim = self.cos.shape[1]
        cos, sin = (jnp.tile(table, x.shape[1] // head_dim) for table in (self.cos, self.sin))
        return rotate(x, cos, sin, head_dim)

    def inverse(self) -> "Rotary":
        """Makes the rotation that undoes this one."""
        return Rotary(self.cos, -self.sin)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, head_dim: int) -> jax.Array:
    """Rotates the heads of `x` in float32.

    Args:
        x: `[S, n * d]`, heads side by side.
        cos: `[S, n * d]` float32, the cosine of each channel's angle.
        sin: `[S, n * d]` float32, the sine, negated in the first half of each head.
        head_dim: d.

    Returns:
        `[S, n * d]` in the dtype of `x`.
    """
    half, wide = head_dim // 2, x.astype(jnp.float32)
    in_first_half = lax.broadcasted_iota(jnp.int32, x.shape, 1) % head_dim < half
    partner = jnp.where(in_first_half, jnp.roll(wide, -half, axis=1), jnp.roll(wide, half, axis=1))
    return (wide * cos + partner * sin).astype(x.dtype)
