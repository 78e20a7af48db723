"""Orbax checkpoints: prompts of finished runs, and the progress of populations in training."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from wayward_jax import __version__
from wayward_jax.errors import InputError

# Checkpoints of a population's progress that are kept. The older one is for when the newer one
# turns out to be broken.
KEPT = 2


def save_prompts(path: Path, prompts: Mapping[str, np.ndarray]) -> None:
    """Writes prompts `[L, D]` by name as the checkpoint `path`, and replaces what was there.

    Raises:
        OSError: it cannot be written.
    """
    with _os_errors(), _checkpointer() as checkpointer:
        checkpointer.save(
            path.absolute(),
            dict(prompts),
            force=True,
            custom_metadata={"wayward_jax": __version__},
        )


def load_prompts(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Some of the prompts `[L, D]` float32 that `save_prompts` wrote, or all of them, by name.

    Raises:
        InputError: there is no checkpoint, it is broken, or it lacks one of the names.
    """
    if not path.is_dir():
        raise InputError(None, path, "is not a checkpoint: give a job's checkpoint of prompts")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_alone())
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as checkpointer:
            found = dict(checkpointer.metadata(path.absolute()).item_metadata.tree)
            wanted = found if names is None else names
            chosen = {name: found[name] for name in wanted if name in found}
            arguments = ocp.args.PyTreeRestore(chosen, partial_restore=True)
            restored = checkpointer.restore(path.absolute(), arguments) if chosen else {}
            prompts = {name: np.asarray(restored[name], np.float32) for name in chosen}
    except Exception as error:  # Orbax raises all kinds of exceptions on what is broken
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            None, path, f"is not a readable checkpoint of prompts ({said}): give another"
        ) from error
    if lacking := sorted(set(names or ()) - prompts.keys()):
        raise InputError(
            None, path, f"lacks the prompt of run {lacking[0]}: bring the checkpoint of its job"
        )
    for name, prompt in prompts.items():
        if prompt.ndim != 2 or not np.isfinite(prompt).all():
            raise InputError(
                None, path, f"{name} is not a prompt of finite numbers: give another prompt"
            )
    return prompts


def prompt_digest(prompt: np.ndarray) -> str:
    """Twelve hexadecimal digits that the numbers and the shape of a prompt `[L, D]` decide."""
    numbers = np.ascontiguousarray(prompt, np.float32)
    return hashlib.sha256(f"{numbers.shape}".encode() + numbers.tobytes()).hexdigest()[:12]


class ProgressCheckpoints:
    """The last checkpoints of a population in training, written in the background.

    A checkpoint is a tree of arrays in dicts and lists. Each has a digest of its names and numbers,
    because Orbax does not notice every change of its files, and the version that wrote it, because
    another version may continue otherwise.

    Attributes:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        """Makes `folder` if need be, and removes half-written checkpoints from it.

        Raises:
            OSError: it cannot be written.
        """
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            cleanup_tmp_directories=True,
            create=False,
            multiprocessing_options=_alone(),
        )
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with _os_errors():
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, tree: dict[str, Any]) -> None:
        """Starts to write a tree, which must not change from now on.

        Of several processes one does this.

        Raises:
            OSError: this checkpoint, or the one before, cannot be written.
        """
        saved = {"tree": tree, "version": np.frombuffer(__version__.encode(), np.uint8)}
        item = ocp.args.PyTreeSave({**saved, "digest": _digest(saved)})
        with _os_errors():
            self._manager.save(step, args=ocp.args.Composite(progress=item))

    def restore(
        self, on_broken: Callable[[int], None] = lambda step: None
    ) -> dict[str, Any] | None:
        """The last tree that is not broken; None if there is none. Broken ones are removed.

        Args:
            on_broken: is called with the step of each broken one.

        Raises:
            InputError: another version wrote it, which may continue it.
            OSError: the disk does not let one be read, which may be sound.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            saved = self._read(step)
            if saved is not None:
                if (version := bytes(saved["version"]).decode()) != __version__:
                    raise InputError(
                        None,
                        self.folder,
                        f"was written by version {version} of wayward_jax: continue with that "
                        "version, or remove this folder to begin its prompts again",
                    )
                return saved["tree"]
            on_broken(step)
            self._manager.delete(step)
        return None

    def _read(self, step: int) -> dict[str, Any] | None:
        """What was saved at a step; None if it is broken. Raises an OSError if the disk fails."""
        for file in (self.folder / str(step)).rglob("*"):
            if file.is_file():
                file.read_bytes()  # because Orbax does not tell a disk's errors from others
        # Orbax raises all kinds of exceptions on what is broken.
        with contextlib.suppress(Exception):
            item = ocp.args.Composite(progress=ocp.args.PyTreeRestore())
            saved = self._manager.restore(step, args=item).progress
            digest = saved.pop("digest")
            if saved.keys() == {"tree", "version"} and (digest == _digest(saved)).all():
                return saved
        return None

    def wait(self) -> None:
        """Returns once everything is written.

        Raises:
            OSError: it cannot be written.
        """
        with _os_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and ends; raises as `wait` does."""
        try:
            self.wait()
        finally:
            with _os_errors():
                self._manager.close()


def _checkpointer() -> ocp.StandardCheckpointer:
    return ocp.StandardCheckpointer(multiprocessing_options=_alone())


def _alone() -> ocp.options.MultiprocessingOptions:
    """Options of a process that reads and writes without waiting for the others of its job."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )


def _digest(tree: dict[str, Any]) -> np.ndarray:
    """A digest `[32]` uint8 that any change of a leaf or of its name changes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        leaf = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return np.frombuffer(digest.digest(), np.uint8)


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Turns the `ValueError` that Orbax raises when a disk or quota is full into an `OSError`."""
    try:
        yield
    except ValueError as error:
        for number in (errno.EDQUOT, errno.ENOSPC):
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number)) from error
        full = "RESOURCE_EXHAUSTED" in str(error)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else error from error
