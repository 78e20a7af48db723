"""How the published weights of a family become the parameters of its module."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from wayward_jax.models.causal_lm import CausalLM

LARGEST = 10**8


@dataclasses.dataclass(frozen=True)
class Family:
    """A `model_type` of the Hugging Face layout.

    module: makes the module of one of our configurations.
    config: our configuration from the entries of their `config.json`; a ValueError refuses what
        the module does not compute.
    names: our submodules to theirs; `layers_3` is looked up as `layers`.
    prefix: what their names start with where the model was saved together with its head.
    constants: matches the names of tensors that are no weights.
    linear_out_in: whether their linear weights are `[out, in]`; ours are `[in, out]`.
    """

    module: Callable[[Any], CausalLM]
    config: Callable[[Mapping[str, Any]], Any]
    names: Mapping[str, str]
    prefix: str
    constants: re.Pattern[str]
    linear_out_in: bool

    def module_of(self, published: Mapping[str, Any]) -> CausalLM:
        """The module that a `config.json` describes; a ValueError refuses what none can have."""
        config = self.config(published)
        _check(config)
        return self.module(config)

    def published_name(self, path: tuple[str, ...]) -> str:
        """`("layers_3", "q_proj", "kernel")` to `"layers.3.self_attn.q_proj.weight"`."""
        *modules, leaf = path
        parts = []
        for module in modules:
            if module in self.names:
                parts.append(self.names[module])
            else:
                layers, _, number = module.rpartition("_")
                parts += [self.names[layers], number]
        return ".".join([*parts, "bias" if leaf == "bias" else "weight"])


def _check(config: Any) -> None:
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        kinds = int | float if field.type is float else field.type
        if dataclasses.is_dataclass(value):
            _check(value)
        elif not isinstance(value, kinds) or (field.type is not bool and value is True):
            raise ValueError(f"{name} is {value!r}, which is of the wrong kind")
        elif field.type is float and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}, only numbers above 0 are supported")
        elif type(value) is int and field.type is not float and not 0 < value <= LARGEST:
            raise ValueError(f"{name} is {value!r}, only 1 to {LARGEST} are supported")


def require(published: Mapping[str, Any], **values: Any) -> None:
    """Raises ValueError where `published` has an entry with another value than the one given."""
    for name, value in values.items():
        if published.get(name, value) != value:
            raise ValueError(f"{name} is {published[name]!r}, only {value!r} is supported")


def same_named(config_class: type, published: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `published` that `config_class` has fields for; null means left out."""
    names = [field.name for field in dataclasses.fields(config_class)]
    return {name: published[name] for name in names if published.get(name) is not None}
