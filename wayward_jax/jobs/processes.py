"""The processes of one job on several hosts: how they find each other, agree and end together.

All run the same program on the same flags, and take the same steps on devices that they share. The
first alone reads and writes the job's folder, and tells the others what they need of it, so they
need no common file system.
"""

import contextlib
import ctypes
import importlib.util
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from wayward_jax.errors import InputError

T = TypeVar("T")

LOST = 76
"""The exit code of a process that has lost the others of its job, as when one has died."""

# Seconds in which processes must give signs of life, and in which they must all come to their end.
HEARTBEAT = 60
ENDING = 120


@contextlib.contextmanager
def joined(place: Mapping[str, Any], *, independent: bool) -> Iterator[None]:
    """Joins the other processes of this job, if there are any, before JAX is used otherwise.

    Then the others notice at once when this process fails, and this one when another is gone.

    Args:
        place: of this process among the others, as `jax.distributed` takes it; empty if that is to
            be found out.
        independent: jobs beside this one, such as other shards, are no parts of it.

    Raises:
        InputError: the others cannot be found.
    """
    _join(place, independent)
    try:
        yield
    except (InputError, KeyboardInterrupt):  # of which the others know
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if "Gloo" in str(error):  # what CPUs communicate by
            _lost()
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def is_primary() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def first(make: Callable[[], T]) -> T:
    """What `make` gives on the first process, on each; all call this together.

    Raises:
        InputError: that of `make`, on each.
    """
    if jax.process_count() == 1:
        return make()
    made, error = None, None
    if is_primary():
        try:
            made = make()
        except InputError as raised:
            error = raised
    made, error = _told((made, error))
    if error is not None:
        raise error
    return made


@contextlib.contextmanager
def primary_context(context: contextlib.AbstractContextManager[T]) -> Iterator[T | None]:
    """Enters a context on the first process alone; the others get None.

    Raises:
        InputError: that of entering or leaving it, on each.
    """
    with contextlib.ExitStack() as stack:
        entered = []
        first(lambda: entered.append(stack.enter_context(context)))
        yield entered[0] if entered else None
        first(stack.close)


@contextlib.contextmanager
def all_or_error() -> Iterator[None]:
    """Ends with an `InputError` on each process if it does on one."""
    error = None
    try:
        yield
    except InputError as raised:
        error = raised
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(error is not None))
        if error is None and failed.any():
            error = InputError(f"process {failed.argmax()} cannot use what it was given: see there")
    if error is not None:
        raise error


def _join(place: Mapping[str, Any], independent: bool) -> None:
    on_tpu = importlib.util.find_spec("libtpu") is not None
    if not place and not on_tpu and not _in_cluster(independent):
        return
    try:
        jax.distributed.initialize(
            **place,
            cluster_detection_method="deactivate" if place else None,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=ENDING,
        )
    except (ValueError, RuntimeError) as error:
        if on_tpu and isinstance(error, ValueError):  # it is not a slice's
            return
        raise InputError(
            f"--coordinator: the processes of this job cannot find each other "
            f"({str(error).splitlines()[0]}): start all of them, and give --coordinator, "
            "--num_processes and --process_id"
        ) from error
    # JAX aborts a process that has lost the others, and no handler of Python's runs in abort.
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _ON_ABORT)


def _in_cluster(independent: bool) -> bool:
    """Whether the environment is that of one of several processes which JAX can find."""
    for tasks in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if tasks in os.environ:
            return int(os.environ[tasks]) > 1
    # How many pods there are is not said; with an index of its own each may be a shard.
    return "JOB_COMPLETION_INDEX" in os.environ and not independent


def _told(value: T) -> T:
    """What the first process gives, on each."""
    data = np.frombuffer(pickle.dumps(value) if is_primary() else b"", np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(data))))
    data = data if is_primary() else np.zeros(size, np.uint8)
    return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(data)).tobytes())


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _ON_ABORT(_: int) -> None:
    _lost()


def _lost() -> None:
    message = "error: the processes of this job have lost each other: start all again to go on\n"
    os.write(sys.stderr.fileno(), message.encode())
    os._exit(LOST)
