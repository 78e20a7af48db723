"""The facts about a model family that are not mathematics: names, configuration, layer roles."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, get_args, get_origin

import numpy as np
from jax.sharding import PartitionSpec

from wayward_jax.models.causal_lm import CausalLM

# No published model has a size above this; larger values are typing errors.
LARGEST_SIZE = 10**8

# Entries from which families compute others.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim")


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
        fused: for a linear layer that is published together with others as one layer, a function
            from our configuration and the published kernel `[in, out]` or bias `[out]` to its part
            of the outputs. In `names`, these layers have one published name.
        lookup_scale: the factor by which transformers multiplies embeddings when it looks tokens
            up, from our configuration. Vectors of PEFT stand beside the products.
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
    fused: Mapping[str, Callable[[Any, np.ndarray], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    lookup_scale: Callable[[Any], float] = lambda config: 1.0

    def module_of(self, entries: Mapping[str, Any]) -> CausalLM:
        """Makes the module that the entries of a published `config.json` describe.

        Raises:
            ValueError: an entry is missing, of the wrong kind, out of range or not supported.
        """
        for name in SIZES:
            size = entries.get(name)
            if size is not None and not (type(size) is int and 0 < size <= LARGEST_SIZE):
                raise ValueError(f"{name} is {size!r}, only 1 to {LARGEST_SIZE} are supported")
        try:
            config = self.config(entries)
        except KeyError as error:
            raise ValueError(f"the configuration lacks {error.args[0]}") from error
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

    def own_part(self, path: tuple[str, ...], array: np.ndarray, config: Any) -> np.ndarray:
        """Takes the part of a published parameter that the one at `path` in our module is.

        Args:
            path: as for `published_name`.
            array: the published parameter, a kernel as `[in, out]`.
            config: our configuration.

        Raises:
            ValueError: the array cannot be divided into such parts.
        """
        part = self.fused.get(path[-2])
        return array if part is None else part(config, array)

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


def equal_part(i: int, n: int) -> Callable[[Any, np.ndarray], np.ndarray]:
    """Makes the function that takes the outputs of the i-th of n equally wide layers."""
    return lambda config, array: np.split(array, n, axis=-1)[i]


def _check(config: Any) -> None:
    """Raises a ValueError if a field of `config` has a value of the wrong kind or out of range."""
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        kinds = _kinds(field.type)
        if dataclasses.is_dataclass(value):
            _check(value)
        elif not isinstance(value, kinds) or (value is True and bool not in kinds):
            raise ValueError(f"{name} is {value!r}, which is of the wrong kind")
        elif isinstance(value, int | float) and float in kinds and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}, only numbers above 0 are supported")
        elif type(value) is int and float not in kinds and not 0 < value <= LARGEST_SIZE:
            raise ValueError(f"{name} is {value!r}, only 1 to {LARGEST_SIZE} are supported")


def _kinds(annotation: Any) -> tuple[type, ...]:
    """The types of values that an annotation allows. An int may stand for a float."""
    alternatives = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    kinds = tuple(get_origin(each) or each for each in alternatives)
    return (*kinds, int) if float in kinds else kinds


def require(entries: Mapping[str, Any], **values: Any) -> None:
    """Raises a ValueError if one of `entries` is neither null nor the one in `values`."""
    for name, value in values.items():
        if entries.get(name) not in (value, None):
            raise ValueError(f"{name} is {entries[name]!r}, only {value!r} is supported")


def same_named(config_class: type, entries: Mapping[str, Any]) -> dict[str, Any]:
    """Picks the entries for which `config_class` has a field. An entry that is null is left out."""
    names = [field.name for field in dataclasses.fields(config_class)]
    return {name: entries[name] for name in names if entries.get(name) is not None}
