"""TEMPORARY: reads the flags of a job; goes away with `jobs.settings`, which owns the settings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wayward_jax.errors import InputError

# Flags that are called otherwise where they are kept, and flags that do not decide a run.
RENAMED = {
    "models": "model",
    "tasks": "task",
    "constraints": "constraint",
    "gammas": "gamma",
    "inits": "init",
    "prompt_lengths": "prompt_length",
    "data_seeds": "data_seed",
}
INDIFFERENT = (
    *("out_dir", "cache_dir", "assets_dir", "reuse"),
    *("population", "mesh", "only", "shard", "checkpoint_every"),
    *("select", "tensorboard", "profile"),
)


def read_flags(folder: Path) -> dict[str, Any]:
    """The flags of a job by their names, but for those that do not decide its runs.

    Raises:
        InputError: they are not there, or broken.
    """
    path = folder / "flags.json"
    try:
        return deciding(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            None, path, f"cannot be read ({error}): give the --out_dir of a finished job"
        ) from error


def deciding(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Of flags as they are kept, those that decide a job's runs, by their names."""
    flags = {RENAMED.get(name, name): value for name, value in kept.items()}
    return {name: value for name, value in flags.items() if name not in INDIFFERENT}
