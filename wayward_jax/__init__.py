"""Continuous prompts that read as any text, and how far their reading can be trusted.

The names below are the library's face; they are loaded when they are first used. Everything else is
in the modules that they come from.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from wayward_jax import constraints, readings
    from wayward_jax.api import (
        evaluate,
        load_model,
        load_prompt,
        load_targets,
        load_task,
        losses,
        pack,
        read,
    )
    from wayward_jax.errors import InputError
    from wayward_jax.prompt_files import save_prompt
    from wayward_jax.runs import Run, RunRecord
    from wayward_jax.tuning import tune

_HOMES = {
    **dict.fromkeys(("load_model", "load_task", "load_targets"), "wayward_jax.api"),
    **dict.fromkeys(("load_prompt", "read", "evaluate", "losses", "pack"), "wayward_jax.api"),
    **dict.fromkeys(("Run", "RunRecord"), "wayward_jax.runs"),
    "save_prompt": "wayward_jax.prompt_files",
    "tune": "wayward_jax.tuning",
    "InputError": "wayward_jax.errors",
}

__all__ = [
    "InputError",
    "Run",
    "RunRecord",
    "constraints",
    "evaluate",
    "load_model",
    "load_prompt",
    "load_targets",
    "load_task",
    "losses",
    "pack",
    "read",
    "readings",
    "save_prompt",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in ("constraints", "readings"):
        return importlib.import_module(f"wayward_jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
