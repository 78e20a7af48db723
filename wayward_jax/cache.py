"""Files that are made once and shared by every process of a machine."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from wayward_jax.errors import InputError


def make_once(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, which `make` writes if it is not there yet.

    Of several processes one makes it while the others wait, and nobody ever sees half of it: `make`
    is given a path beside `path`, which takes its name when all of it is on the disk.

    Args:
        path: a file or folder to be.
        make: writes that file or folder at the path it is given.

    Raises:
        InputError: the folder of `path` cannot be written.
    """
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(path.with_name(f".{path.name}.lock")),
            tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as folder,
        ):
            if not path.exists():
                made = Path(folder) / path.name
                make(made)
                for file in [made, *made.rglob("*")]:
                    _to_disk(file)
                os.replace(made, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): make room, or give a folder "
            "that can be written with --cache_dir"
        ) from error
    return path


def _to_disk(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
