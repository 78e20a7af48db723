"""Rotary embedding: queries and keys are rotated by their positions."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax


@struct.dataclass
class Rotary:
    """The rotation of queries and keys by their positions (RoFormer, Su et al., 2021, section 3.2).

    The first r channels of a head are rotated. Channel i is paired with channel i + r / 2.

    Attributes:
        cos: `[T, d]` float32, the cosine of each channel's angle; 1 where a channel is kept.
        sin: `[T, d]` float32, the sine, negated in the first r / 2 channels; 0 where a channel is
            kept.
        half: r / 2.
    """

    cos: jax.Array
    sin: jax.Array
    half: int = struct.field(pytree_node=False)

    @classmethod
    def by(cls, angles: jax.Array, head_dim: int, magnitude: float = 1.0) -> "Rotary":
        """Makes the rotation by `angles` `[T, r / 2]`, in radians.

        `magnitude` is a factor of the channels that are rotated.
        """
        half = angles.shape[1]
        kept = ((0, 0), (0, head_dim - 2 * half))
        cos, sin = magnitude * jnp.cos(angles), magnitude * jnp.sin(angles)
        return cls(
            jnp.pad(jnp.concatenate([cos, cos], axis=1), kept, constant_values=1.0),
            jnp.pad(jnp.concatenate([-sin, sin], axis=1), kept),
            half,
        )

    def apply(self, x: jax.Array) -> jax.Array:
        """Rotates every head of `x` `[T, n * d]`, in float32; returns the dtype of `x`."""
        head_dim = self.cos.shape[1]
        cos, sin = (jnp.tile(table, x.shape[1] // head_dim) for table in (self.cos, self.sin))
        return rotate(x, cos, sin, head_dim, self.half)

    def transposed(self) -> "Rotary":
        """Makes the rotation that takes gradients of what is rotated back to what was rotated."""
        return Rotary(self.cos, -self.sin, self.half)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, head_dim: int, half: int) -> jax.Array:
    """Rotates the heads of `x` in float32.

    Args:
        x: `[S, n * d]`, heads side by side.
        cos: `[S, n * d]` float32, as in `Rotary`.
        sin: `[S, n * d]` float32, as in `Rotary`.
        head_dim: d.
        half: as in `Rotary`.

    Returns:
        `[S, n * d]` in the dtype of `x`.
    """
    wide = x.astype(jnp.float32)
    is_first = lax.broadcasted_iota(jnp.int32, x.shape, 1) % head_dim < half
    partner = jnp.where(is_first, jnp.roll(wide, -half, axis=1), jnp.roll(wide, half, axis=1))
    return (wide * cos + partner * sin).astype(x.dtype)
