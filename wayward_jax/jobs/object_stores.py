"""Folders of jobs on object stores: `gs://`, `s3://` and whatever else fsspec knows.

Object stores have no appends and no locks, so nothing works on them in place: a folder is copied to
this machine, and a job copies it back.
"""

import contextlib
import functools
import glob
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem

from wayward_jax.errors import InputError

# Orbax puts this into the names of checkpoints that it is writing.
TEMPORARY = ".orbax-checkpoint-tmp"


def is_url(name: str | Path) -> bool:
    """Tells whether `name` is the URL of a folder on an object store."""
    return "://" in str(name)


@contextlib.contextmanager
def local(names: Sequence[str]) -> Iterator[list[Path]]:
    """The folders of jobs to be read; what URLs name is copied to this machine for a while.

    Raises:
        InputError: a store cannot be read.
    """
    with tempfile.TemporaryDirectory() as copies:
        folders = [
            Path(copies, str(number)) if is_url(name) else Path(os.path.expanduser(name))
            for number, name in enumerate(names)
        ]
        for name, folder in zip(names, folders, strict=True):
            if is_url(name):
                _fetch("runs", name, folder, without="in_flight")
        with _named(dict(zip(map(str, folders), names, strict=True))):
            yield folders


class Mirror:
    """Keeps a copy on an object store of a folder on this machine.

    Attributes:
        folder: the folder on this machine.
    """

    def __init__(self, folder: Path, url: str) -> None:
        """`folder` is a copy of what there is under `url`."""
        self.folder = folder
        self._url = url
        self._sent = self._state()

    def send(self) -> None:
        """Copies what has changed, rows last, and removes what is gone.

        Stores take many files at once. Each object is written as a whole, so a process that ends
        meanwhile leaves some objects new and others as they were, and no row without its
        checkpoint.

        Raises:
            InputError: the store cannot be written.
        """
        state = self._state()
        changed = {name for name in state if self._sent.get(name) != state[name]}
        rows = {name for name in state if name.endswith(".jsonl")}
        system, root = _opened(self._url)
        try:
            for part in (changed - rows, changed & rows):
                names = sorted(part)
                here = [str(self.folder / name) for name in names]
                system.put(here, [f"{root}/{name}" for name in names])
            if gone := sorted(self._sent.keys() - state.keys()):
                system.rm([f"{root}/{name}" for name in gone])
        except Exception as error:  # each store raises its own
            raise InputError(
                "out_dir",
                self._url,
                f"cannot be written ({_reason(error)}): get permission or name another folder; "
                "what is finished stays, and the same command continues it",
            ) from error
        self._sent = state

    def _state(self) -> dict[str, tuple[int, int]]:
        """The times of change and the sizes of all files that are whole, by name."""
        found = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and TEMPORARY not in name and not path.name.startswith("."):
                found[name] = path.stat().st_mtime_ns, path.stat().st_size
        return found


@contextlib.contextmanager
def mirrored(out_dir: Path | str) -> Iterator[Mirror | None]:
    """A mirror of a job's folder for a while, if a URL names the folder.

    Raises:
        InputError: the store cannot be read.
    """
    if not is_url(out_dir):
        yield None
        return
    with tempfile.TemporaryDirectory() as copies:
        folder = Path(copies, "job")
        _fetch("out_dir", str(out_dir), folder)
        with _named({str(folder): str(out_dir)}):
            yield Mirror(folder, str(out_dir))


def _fetch(flag: str, url: str, folder: Path, without: str | None = None) -> None:
    """Copies what is under a flag's URL (it may be nothing), except folders called `without`."""
    try:
        system, root = _opened(url)
    except (ImportError, ValueError) as error:
        raise InputError(
            flag, url, f"cannot be read ({_reason(error)}): install .[cloud], or name a folder"
        ) from error
    try:
        names = {
            path: PurePosixPath("/", path).relative_to(PurePosixPath("/", root))
            for path in system.find(root)
        }
        wanted = [path for path, name in names.items() if without not in name.parts]
        system.get(wanted, [str(folder / names[path]) for path in wanted])
    except FileNotFoundError:
        return
    except Exception as error:  # each store raises its own
        raise InputError(
            flag,
            url,
            f"cannot be read ({_reason(error)}): get permission, or name another folder",
        ) from error


@contextlib.contextmanager
def _named(names: dict[str, str]) -> Iterator[None]:
    """Has errors name the URLs that the user gave in place of their copies on this machine."""

    def rename(text: object) -> str:
        return functools.reduce(lambda said, pair: said.replace(*pair), names.items(), str(text))

    try:
        yield
    except InputError as error:
        value = None if error.value is None else rename(error.value)
        raise InputError(error.argument, value, rename(error.remedy)) from error
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(rename(interrupt)) from interrupt


def _opened(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    if glob.has_magic(url):
        raise ValueError("it has one of *, ? and [, which stand for other characters")
    system, root = fsspec.url_to_fs(url.rstrip("/"), use_listings_cache=False)
    if isinstance(system, LocalFileSystem):
        raise ValueError("it is not on an object store")
    return system, root


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
