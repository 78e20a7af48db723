"""The facts about a model family that are not mathematics: names, configuration, layer roles."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.sharding import PartitionSpec

from wayward_jax.models.causal_lm import CausalLM

# No published model has a size above this; larger values are typing errors.
LARGEST_SIZE = 10**8


@dataclasses.dataclass(frozen=True)
class Family:
    """All models with the same `model_type` in the Hugging Face layout.

    Submodules are named as in the family's `modeling.py`. Every family calls its embedding table
    `embed` and its output table `head`, see `CausalLM`.

    Attributes:
        module: makes the module for one of our configurations.
        config: makes our configuration from the entries of a published `config.json`. It raises a
            ValueError if the module does not compute what the entries ask for.
        names: the published name of each of our submodules. `layers_3` is looked up as `layers`.
        prefix: the start of published tensor names if the model was saved together with its head.
        constants: a pattern that matches the names of published tensors that are no weights.
        linear_out_in: True if published linear weights are `[out, in]`. Ours are `[in, out]`.
        split_outputs: linear layers whose outputs are split over the mesh axis `model`.
        split_inputs: linear layers whose inputs are split over the mesh axis `model`. They follow
            the layers in `split_outputs`, so that only their sum crosses devices (Megatron-LM,
            Shoeybi et al., 2019, section 3).
        attention_inputs: linear layers that make queries, keys and values. In the last layer, they
            are the only linear layers that are computed for tokens without a prediction.
        fused: groups of linear layers that are published as one layer, whose outputs are theirs
            side by side in equal parts. In `names`, all layers of a group have one published name.
    """

    module: Callable[[Any], CausalLM]
    config: Callable[[Mapping[str, Any]], Any]
    names: Mapping[str, str]
    prefix: str
    constants: re.Pattern[str]
    linear_out_in: bool
    split_outputs: frozenset[str]
    split_inputs: frozenset[str]
    attention_inputs: frozenset[str]
    fused: tuple[tuple[str, ...], ...] = ()

    def module_of(self, entries: Mapping[str, Any]) -> CausalLM:
        """Makes the module that the entries of a published `config.json` describe.

        Raises:
            ValueError: an entry is of the wrong kind or out of range, or is not supported.
        """
        config = self.config(entries)
        _check(config)
        return self.module(config)

    def published_name(self, path: tuple[str, ...]) -> str:
        """Gives the published name, without prefix, of the parameter at `path` in our module.

        `("layers_3", "q_proj", "kernel")` becomes `"layers.3.self_attn.q_proj.weight"`.
        """
        *modules, leaf = path
        parts = []
        for module in modules:
            if module in self.names:
                parts.append(self.names[module])
            else:
                layers, _, number = module.rpartition("_")
                parts += [self.names[layers], number]
        return ".".join([*parts, "bias" if leaf == "bias" else "weight"])

    def own_part(self, path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
        """Takes the part of a published parameter that the one at `path` in our module is.

        Args:
            path: as for `published_name`.
            array: the published parameter, a kernel as `[in, out]`.

        Raises:
            ValueError: the array cannot be divided into equal parts.
        """
        for group in self.fused:
            if path[-2] in group:
                return np.split(array, len(group), axis=-1)[group.index(path[-2])]
        return array

    def partition_spec(self, path: tuple[str, ...]) -> PartitionSpec:
        """Gives the sharding of the parameter at `path`, for `sharding.place_params`.

        Embedding tables are split by tokens. Parameters that are named nowhere are copied.
        """
        *_, module, leaf = path
        if leaf == "embedding" and module in ("embed", "head"):
            return PartitionSpec("model", None)
        if leaf == "kernel" and module in self.split_outputs:
            return PartitionSpec(None, "model")
        if leaf == "kernel" and module in self.split_inputs:
            return PartitionSpec("model", None)
        return PartitionSpec()


def _check(config: Any) -> None:
    """Raises a ValueError if a field of `config` has a value of the wrong kind or out of range."""
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        kinds = int | float if field.type is float else field.type
        if dataclasses.is_dataclass(value):
            _check(value)
        elif not isinstance(value, kinds) or (field.type is not bool and value is True):
            raise ValueError(f"{name} is {value!r}, which is of the wrong kind")
        elif field.type is float and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}, only numbers above 0 are supported")
        elif type(value) is int and field.type is not float and not 0 < value <= LARGEST_SIZE:
            raise ValueError(f"{name} is {value!r}, only 1 to {LARGEST_SIZE} are supported")


def require(entries: Mapping[str, Any], **values: Any) -> None:
    """Raises a ValueError if one of `entries` has another value than the one in `values`."""
    for name, value in values.items():
        if entries.get(name, value) != value:
            raise ValueError(f"{name} is {entries[name]!r}, only {value!r} is supported")


def same_named(config_class: type, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Picks the entries for which `config_class` has a field. An entry that is null is left out."""
    names = [field.name for field in dataclasses.fields(config_class)]
    return {name: entries[name] for name in names if entries.get(name) is not None}
