"""A job's models as shapes, without weights."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from experiments.forecast.machines import Machine
from experiments.forecast.programs import abstract_params
from experiments.forecast.shapes import SHAPES, module_of
from wayward_jax import models
from wayward_jax.errors import InputError
from wayward_jax.jobs.inputs import Loader
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
        super().__init__(dataclasses.replace(settings, model=named), devices)
        self._from_shape = bool(settings.model_shape)
        self._memory = machine.memory

    def model(self, name: str) -> LanguageModel:
        """See `Loader.model`; the parameters are `jax.ShapeDtypeStruct`s."""
        if self._loaded is None or self._loaded.name != name:
            self._loaded = None
            settings = self._settings
            model = models.load(
                TOKENIZER_OF if self._from_shape else self.names[name],
                cache_dir=settings.cache_dir,
                assets_dir=settings.assets_dir,
                dtype=self.dtype,
                readable=settings.readable,
                bos=settings.bos,
            )
            if self._from_shape:
                model = _in_shape(model, name)
            params = abstract_params(model.params, model.family, self.dtype, self.mesh)
            self._loaded = dataclasses.replace(model, params=params)
            weights = sum(
                math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
                for x in jax.tree.leaves(params)
            )
            self.free_bytes = int(self._memory) - weights
        return self._loaded


def _in_shape(model: LanguageModel, name: str) -> LanguageModel:
    """A model of a published shape with the tokenizer of another."""
    family, module = module_of(name)
    ids = jnp.zeros((1, 1), jnp.int32)
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), ids, method="text_logits"))
    return dataclasses.replace(model, name=name, family=family, module=module, params=params)
