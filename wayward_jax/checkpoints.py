"""What is on disk as Orbax checkpoints: the prompt of each run, and populations on their way."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from wayward_jax.errors import InputError
from wayward_jax.training.step import Losses, start
from wayward_jax.training.trainer import TrainProgress

# Of a population on its way; the one before the last is for when the last turns out broken.
KEPT = 2


def save_prompt(path: Path, prompt: np.ndarray) -> None:
    """Writes a prompt `[L, D]` as the checkpoint `path`, in place of what was there.

    Raises:
        OSError: it cannot be written.
    """
    with _os_errors(), _checkpointer() as checkpointer:
        checkpointer.save(path.absolute(), {"prompt": prompt}, force=True)


def load_prompt(path: Path) -> np.ndarray:
    """The prompt `[L, D]` float32 that `save_prompt` wrote.

    Raises:
        InputError: there is no checkpoint, or it is broken.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a checkpoint: give the path of a run's checkpoint folder")
    try:
        with _checkpointer() as checkpointer:
            prompt = np.asarray(checkpointer.restore(path.absolute())["prompt"], np.float32)
    except Exception as error:  # Orbax raises all kinds of exceptions on what is broken
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is not a readable checkpoint of a prompt: {said}") from error
    if prompt.ndim != 2 or not np.isfinite(prompt).all():
        raise InputError(
            f"{path} does not hold a prompt of finite numbers: give another checkpoint"
        )
    return prompt


class ProgressCheckpoints:
    """The last checkpoints of a population on its way, written in the background.

    Each has a digest of its numbers, since Orbax does not notice every change of its files.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` is made if need be, and half-written checkpoints in it are removed.

        Raises:
            OSError: it cannot be written.
        """
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            cleanup_tmp_directories=True,
            create=False,
            multiprocessing_options=_alone(),
        )
        folder.mkdir(parents=True, exist_ok=True)
        with _os_errors():
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, progress: TrainProgress) -> None:
        """Copies the progress, which may change then, and sets about writing it.

        Of several processes one does so, with what `mesh.on_host` made of the progress.

        Raises:
            OSError: this one, or the one before, cannot be written.
        """
        tree = _as_tree(progress)
        item = ocp.args.PyTreeSave({"tree": tree, "digest": _digest(tree)})
        with _os_errors():
            self._manager.save(progress.step, args=ocp.args.Composite(progress=item))

    def restore(self, on_broken: Callable[[int], None] = lambda step: None) -> TrainProgress | None:
        """The last progress that can be read, None without any; the broken ones are removed.

        Args:
            on_broken: is told the step of each.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            # Orbax raises all kinds of exceptions on what is broken.
            with contextlib.suppress(Exception):
                item = ocp.args.Composite(progress=ocp.args.PyTreeRestore())
                saved = self._manager.restore(step, args=item).progress
                if (saved["digest"] == _digest(saved["tree"])).all():
                    return _from_tree(saved["tree"])
            on_broken(step)
            self._manager.delete(step)
        return None

    def wait(self) -> None:
        """Returns once everything is written.

        Raises:
            OSError: it cannot be.
        """
        with _os_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and gives up; raises as `wait` does."""
        try:
            self.wait()
        finally:
            with _os_errors():
                self._manager.close()


def _checkpointer() -> ocp.StandardCheckpointer:
    return ocp.StandardCheckpointer(multiprocessing_options=_alone())


def _alone() -> ocp.options.MultiprocessingOptions:
    """For a process that reads and writes without waiting for others of its job."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )


def _as_tree(progress: TrainProgress) -> dict[str, Any]:
    """Copies of all arrays, in dicts and lists alone: those are what Orbax gives back."""
    task, distance = (
        np.concatenate([getattr(chunk, part) for chunk in progress.losses])
        for part in ("task", "distance")
    )
    tree = {
        "state": jax.tree.leaves(progress.state),
        "losses": [task, distance],
        "scored": list(progress.scored),
        "nearest": list(progress.nearest),
    }
    return jax.tree.map(np.array, tree)


def _from_tree(tree: dict[str, Any]) -> TrainProgress:
    """What `_as_tree` was given."""
    like = jax.eval_shape(lambda: start(jnp.zeros((1, 1, 1)), jnp.zeros(1), steps=1))
    return TrainProgress(
        state=jax.tree.unflatten(jax.tree.structure(like), tree["state"]),
        losses=(Losses(*tree["losses"]),),
        scored=tuple(tree["scored"]),
        nearest=tuple(tree["nearest"]),
    )


def _digest(tree: dict[str, Any]) -> np.ndarray:
    """`[32]` uint8, which any change of any leaf changes."""
    digest = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        digest.update(f"{leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf))
    return np.frombuffer(digest.digest(), np.uint8)


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Makes `OSError`s of what Orbax raises when a disk is full: a `ValueError` of many lines."""
    try:
        yield
    except ValueError as error:
        full = "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else error from error
