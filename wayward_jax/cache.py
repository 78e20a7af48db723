"""Files that are made once and shared by all processes of a machine."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from wayward_jax.errors import InputError, reason
from wayward_jax.locks import locked


def make_once(path: Path, make: Callable[[Path], None]) -> Path:
    """Makes a file or folder if it does not exist yet, and returns its path.

    If several processes call this at once, one of them makes `path` and the others wait, or each
    makes it if the file system has no locks. No process ever sees half of it: `make` writes to
    another path, which is renamed to `path` when everything is on the disk.

    Args:
        path: the file or folder.
        make: writes the file or folder to the path that it is called with.

    Raises:
        InputError: the folder of `path` cannot be written.
    """
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            locked(path.with_name(f".{path.name}.lock")),
            tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as folder,
        ):
            if not path.exists():
                made = Path(folder) / path.name
                make(made)
                for file in [made, *made.rglob("*")]:
                    _sync(file)
                _rename(made, path)
    except OSError as error:
        raise InputError(
            None,
            path,
            f"it cannot be written ({error.strerror or reason(error)}): make room, or give a "
            "folder that can be written with --cache_dir",
        ) from error
    return path


def _rename(made: Path, path: Path) -> None:
    """Renames what was made, unless another process was faster."""
    try:
        os.replace(made, path)
    except OSError:
        if not path.exists():
            raise


def _sync(file: Path) -> None:
    """Waits until a file or folder is on the disk; not every file system can do so for folders."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        with contextlib.suppress(*((OSError,) if file.is_dir() else ())):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
