"""Readings: the texts that continuous prompts are taken to say, by one method a file.

A reading of your own is an object with the methods of `Method`.
"""

from typing import Protocol

import jax
from jax.typing import ArrayLike

from wayward_jax.errors import InputError
from wayward_jax.models import LanguageModel
from wayward_jax.readings.lens import Lens
from wayward_jax.readings.nearest import (
    NearestTokens,
    Reading,
    ReadTokens,
    read_prompts,
    read_tokens,
)
from wayward_jax.readings.verbal import Verbal, default_templates, inspecting

__all__ = [
    "Lens",
    "Method",
    "NearestTokens",
    "ReadTokens",
    "Reading",
    "Verbal",
    "find_reading",
    "read_prompts",
    "read_tokens",
]


class Method(Protocol):
    """A method that reads prompts, with a measure of how far they are from reading as a target.

    Prompts are tuned to deceive it if it is hashable, as a frozen dataclass is. Its `str` is its
    name in the records of runs; a dataclass without a `__str__` has its `repr`.
    """

    def read(
        self, model: LanguageModel, prompts: ArrayLike, mask: ArrayLike | None = None
    ) -> jax.Array:
        """Reads R prompts `[R, L, D]` as tokens `[R, L]` int32.

        Args:
            model: the model that the prompts are for.
            prompts: shorter ones are padded at the end.
            mask: `[R, L]` bool, False on padding; None where there is none. What is read there does
                not matter.
        """

    def loss(
        self,
        model: LanguageModel,
        prompts: ArrayLike,
        targets: ArrayLike,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """Measures how far R prompts are from reading as targets `[R, L]`: `[R]` float32.

        The result is differentiable with respect to the prompts. The other arguments are those of
        `read`, and targets are padded as prompts are.
        """


def find_reading(
    name: str, model: LanguageModel, templates: tuple[str, ...] | None = None
) -> Method:
    """Makes the reading that `--constraint` names.

    Args:
        name: `lens` or `lens:N`, after half of the layers or after N; `verbal`; or `inspect`, the
            verbal reading in InSPEcT's form, which takes the first template alone.
        model: the model whose prompts are read.
        templates: of verbal readings; None is `verbal.default_templates`.

    Raises:
        InputError: there is no such reading, or the model has no such layer.
    """
    kind, _, layer = name.partition(":")
    depth = model.module.config.depth
    match kind:
        case "lens" if not layer:
            return Lens(depth // 2)
        case "lens":
            if not layer.isdecimal() or int(layer) > depth:
                raise InputError("constraint", name, f"give a layer from 0 to {depth}")
            return Lens(int(layer))
        case "verbal":
            return Verbal(templates or default_templates(model))
        case "inspect":
            return inspecting(model, templates or default_templates(model))
    raise InputError(
        "constraint",
        name,
        "choose one of penalty, cell and dual, or a reading: lens, verbal or inspect",
    )
