"""The activations of the supported models, by their names in `config.json`."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_new": lambda x: nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
}


def check_activation(entries: Mapping[str, Any], *names: str) -> None:
    """Raises a ValueError if one of these entries names an activation that is not supported."""
    for name in names:
        if entries.get(name, "silu") not in ACTIVATIONS:
            raise ValueError(
                f"{name} is {entries[name]!r}, only {', '.join(ACTIVATIONS)} are supported"
            )
