"""Locks between the processes that share a file system."""

import contextlib
import errno
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of a file, which is made if need be, and gives it back with the process.

    Args:
        path: the file. Nothing is written to it.
        wait: whether to wait for another process that holds the lock.

    Yields:
        Whether the lock is held: not every file system has locks.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file cannot be made.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno == errno.EACCES:  # which some file systems say for EAGAIN
                raise BlockingIOError(error.errno, error.strerror) from error
            yield False
        else:
            yield True
