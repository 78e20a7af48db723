"""Readings: the texts that continuous prompts are taken to say, by one method a file.

A reading of your own is an object with the methods of `Method`.
"""

from typing import Protocol

import jax
from jax.typing import ArrayLike

from wayward_jax.models import LanguageModel
from wayward_jax.readings.lens import Lens
from wayward_jax.readings.nearest import (
    NearestTokens,
    Reading,
    ReadTokens,
    read_prompts,
    read_tokens,
)

__all__ = [
    "Lens",
    "Method",
    "NearestTokens",
    "ReadTokens",
    "Reading",
    "read_prompts",
    "read_tokens",
]


class Method(Protocol):
    """A method that reads prompts, with a measure of how far they are from reading as a target."""

    def read(self, model: LanguageModel, prompts: ArrayLike) -> jax.Array:
        """Reads R prompts `[R, L, D]` as tokens `[R, L]` int32."""

    def loss(self, model: LanguageModel, prompts: ArrayLike, targets: ArrayLike) -> jax.Array:
        """Measures how far R prompts are from reading as targets `[R, L]`: `[R]` float32.

        The result is differentiable with respect to the prompts.
        """
