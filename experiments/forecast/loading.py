"""A job's models as shapes, without weights."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.forecast.machines import Machine
from experiments.forecast.programs import abstract_params
from experiments.forecast.shapes import SHAPES, module_of
from wayward_jax import models
from wayward_jax.errors import InputError
from wayward_jax.jobs.loader import Loader
from wayward_jax.jobs.settings import ForecastSettings
from wayward_jax.models import LanguageModel

# The model whose tokenizer stands for that of a model of which only the shape is known.
TOKENIZER_OF = "smollm2-135m"


class ShapeLoader(Loader):
    """Gives a job's models without their weights, for devices that are not there."""

    def __init__(
        self, settings: ForecastSettings, machine: Machine, devices: Sequence[jax.Device]
    ) -> None:
        """Loads nothing yet.

        Raises:
            InputError: a shape has no such name; see also `Loader`.
        """
        for name in settings.model_shape:
            if name not in SHAPES:
                raise InputError("model_shape", name, f"choose from {', '.join(SHAPES)}")
        named = settings.model_shape or settings.model
        super().__init__(dataclasses.replace(settings, model=named), devices, int(machine.memory))
        self._from_shape = bool(settings.model_shape)

    def open(self, name: str) -> LanguageModel:
        """See `Loader.open`; the weights of a shape are `jax.ShapeDtypeStruct`s."""
        if not self._from_shape:
            return super().open(name)
        if name not in self._opened:
            settings = self._settings
            model = models.open_model(
                TOKENIZER_OF,
                cache_dir=settings.cache_dir,
                assets_dir=settings.assets_dir,
                dtype=self.dtype,
                readable=settings.readable,
                bos=settings.bos,
            )
            self._opened[name] = _in_shape(model, name, self.dtype)
        return self._opened[name]

    def place(self, model: LanguageModel, mesh: Mesh) -> LanguageModel:
        """See `Loader.place`; the weights are `jax.ShapeDtypeStruct`s."""
        params = abstract_params(model.params, model.family, self.dtype, mesh)
        return dataclasses.replace(model, params=params)


def _in_shape(model: LanguageModel, name: str, dtype: jnp.dtype) -> LanguageModel:
    """A model of a published shape with the tokenizer of another."""
    family, module = module_of(name)
    ids = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), ids, method="text_logits"))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)
    return dataclasses.replace(model, name=name, family=family, module=module, params=params)
