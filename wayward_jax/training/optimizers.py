"""Optimizers of prompts by name, and the schedule of the learning rate."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import optax

from wayward_jax.errors import InputError

# The gradient's norm is clipped to this (the paper's code).
MAX_GRADIENT_NORM = 1.0

Optimizer: TypeAlias = optax.GradientTransformation | Callable[[int], optax.GradientTransformation]
"""An optax transformation, or a function that makes one for a number of steps."""

OPTIMIZERS: dict[str, Callable[[optax.Schedule, float], optax.GradientTransformation]] = {
    "adamw": lambda schedule, decay: optax.adamw(schedule, weight_decay=decay),
    "adam": lambda schedule, decay: optax.adam(schedule),
    "sgd": lambda schedule, decay: optax.sgd(schedule),
    "adafactor": lambda schedule, decay: optax.adafactor(
        schedule, multiply_by_parameter_scale=False
    ),
}
"""Named optimizers: functions of the schedule and the weight decay, which is AdamW's alone."""


@functools.cache
def named_optimizer(
    name: str, steps: int, warmup: int = 0, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """One of `OPTIMIZERS` with optax's defaults, on gradients of a norm of at most 1.

    The learning rate rises linearly from 0 to 1 over `warmup` steps, then falls linearly to 0. (The
    trainer multiplies updates by each run's own learning rate.) Equal arguments give the same
    object, so that a program is compiled once.

    Raises:
        InputError: there is no such optimizer, or the arguments do not go together.
    """
    if name not in OPTIMIZERS:
        raise InputError("optimizer", name, f"choose one of {', '.join(OPTIMIZERS)}")
    if not 0 <= warmup < steps:
        raise InputError("warmup", warmup, f"give 0 to {steps - 1}, for there are {steps} --steps")
    if weight_decay and name != "adamw":
        raise InputError("weight_decay", weight_decay, "only --optimizer=adamw has weight decay")
    schedule = optax.linear_schedule(1.0, 0.0, steps - warmup)
    if warmup:
        rise = optax.linear_schedule(0.0, 1.0, warmup)
        schedule = optax.join_schedules([rise, schedule], [warmup])
    return optax.chain(
        optax.clip_by_global_norm(MAX_GRADIENT_NORM), OPTIMIZERS[name](schedule, weight_decay)
    )


def resolve_optimizer(optimizer: Optimizer, steps: int) -> optax.GradientTransformation:
    """The transformation that a user's optimizer is, or makes for so many steps."""
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer
    return optimizer(steps)
