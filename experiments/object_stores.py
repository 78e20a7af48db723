"""Folders of jobs on object stores: `gs://`, `s3://` and whatever else fsspec knows.

There are no appends and no locks, so nothing works on them in place: a folder is copied to this
machine and, by a job, back.
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import fsspec

from wayward_jax.errors import InputError

# What Orbax calls checkpoints that are not whole yet.
TEMPORARY = ".orbax-checkpoint-tmp"


def is_url(name: str | Path) -> bool:
    """Whether it names a folder on an object store."""
    return "://" in str(name)


def fetch(url: str, folder: Path) -> None:
    """Copies what is under a URL, which may be nothing, into a local folder.

    Raises:
        InputError: the store cannot be read.
    """
    system, root = _opened(url)
    try:
        found = {path: _under(root, path) for path in system.find(root)}
        for path, name in found.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            system.get_file(path, str(folder / name))
    except FileNotFoundError:
        return
    except Exception as error:  # each store raises its own
        raise InputError(f"{url} cannot be read ({_reason(error)}): see that you may") from error


class Mirror:
    """A local folder that is kept alike on an object store."""

    def __init__(self, url: str, folder: Path) -> None:
        """`folder` is what `fetch` has made of `url`."""
        self._url, self._folder = url, folder
        self._sent = self._state()

    def send(self, last: Iterable[str] = ()) -> None:
        """Copies what has changed, the files called `last` at the end, and removes what is gone.

        Each object is written as a whole, so a process that is ended meanwhile leaves what was
        there before beside what is new.

        Raises:
            InputError: the store cannot be written.
        """
        state = self._state()
        order = {name: place for place, name in enumerate(last)}
        changed = [name for name in state if self._sent.get(name) != state[name]]
        system, root = _opened(self._url)
        try:
            for name in sorted(changed, key=lambda name: order.get(name, -1)):
                system.put_file(str(self._folder / name), f"{root}/{name}")
                self._sent[name] = state[name]
            for name in self._sent.keys() - state.keys():
                system.rm_file(f"{root}/{name}")
                del self._sent[name]
        except Exception as error:  # each store raises its own
            raise InputError(
                f"--out_dir={self._url} cannot be written ({_reason(error)}): see that you may, or "
                "name another folder; what is finished stays, and the same command continues it"
            ) from error

    def _state(self) -> dict[str, tuple[int, int]]:
        """Of all files that are whole, when they were last changed and how large they are."""
        found = {}
        for path in self._folder.rglob("*"):
            name = path.relative_to(self._folder).as_posix()
            if path.is_file() and TEMPORARY not in name and not name.startswith("."):
                found[name] = path.stat().st_mtime_ns, path.stat().st_size
        return found


def _opened(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        system, root = fsspec.url_to_fs(url.rstrip("/"), use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url}: {error}: install .[cloud], or name a folder") from error
    return system, root


def _under(root: str, path: str) -> str:
    return PurePosixPath("/", path).relative_to(PurePosixPath("/", root)).as_posix()


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
