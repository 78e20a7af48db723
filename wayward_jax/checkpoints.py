"""Prompts on disk: one Orbax checkpoint a run."""

from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from wayward_jax.errors import InputError


def save_prompt(path: Path, prompt: np.ndarray) -> None:
    """Writes a prompt `[L, D]` as the checkpoint `path`, which must not exist yet."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), {"prompt": prompt})


def load_prompt(path: Path) -> np.ndarray:
    """The prompt `[L, D]` float32 that `save_prompt` wrote.

    Raises:
        InputError: there is no checkpoint, or it is broken.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a checkpoint: give the path of a run's checkpoint folder")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return np.asarray(checkpointer.restore(path.absolute())["prompt"], np.float32)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a readable checkpoint of a prompt: {reason}") from error
