"""The activations of the supported models, by their names in `config.json`."""

import functools
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


@functools.partial(jax.checkpoint, static_argnums=0)
def activate(name: str, x: jax.Array) -> jax.Array:
    """Applies an activation. The backward pass keeps nothing but `x` and computes it again.

    What else it would keep is larger than anything but logits, and takes longer to write and to
    read than to compute.
    """
    return ACTIVATIONS[name](x)


@functools.partial(jax.checkpoint, static_argnums=0)
def activate_gate(name: str, gate: jax.Array, x: jax.Array) -> jax.Array:
    """Multiplies `x` with the activation of a gate. The backward pass keeps nothing but the two."""
    return ACTIVATIONS[name](gate) * x


def check_activation(entries: Mapping[str, Any], *names: str) -> None:
    """Raises a ValueError if one of these entries names an activation that is not supported."""
    for name in names:
        if entries.get(name, "silu") not in ACTIVATIONS:
            raise ValueError(
                f"{name} is {entries[name]!r}, only {', '.join(ACTIVATIONS)} are supported"
            )
