"""Locks, also where a file system has none."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from wayward_jax.locks import locked


def test_one_holder_at_a_time_and_another_after_it(tmp_path):
    path = tmp_path / "lock"
    with locked(path) as first, pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    with locked(path, wait=False) as second:
        assert first
        assert second
    assert path.read_bytes() == b""


def test_a_process_that_is_killed_leaves_no_lock(tmp_path):
    program = (
        "import os, sys, pathlib; from wayward_jax.locks import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path / "lock"]).returncode == 9
    with locked(tmp_path / "lock", wait=False) as held:
        assert held


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EIO])
def test_without_locks_the_holder_is_told(tmp_path, monkeypatch, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "lock", wait=False) as held:
        assert not held


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
def test_every_word_for_a_lock_that_is_taken_is_understood(tmp_path, monkeypatch, number):
    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(BlockingIOError), locked(tmp_path / "lock", wait=False):
        pass
