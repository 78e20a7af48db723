"""The processes of one job on several hosts: how they find each other, agree and end together.

All of them run the same program with the same flags, and take the same steps on devices that they
share. The primary process alone reads and writes the job's folder, and shares what the others need
of it, so they need no common file system.
"""

import contextlib
import ctypes
import functools
import importlib.util
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from wayward_jax.errors import InputError
from wayward_jax.jobs.exit_codes import LOST

P = ParamSpec("P")
T = TypeVar("T")

# Seconds after which a process that gives no sign of life counts as lost.
HEARTBEAT = 60

# Seconds that processes wait for each other at the end.
ENDING = 120


@contextlib.contextmanager
def joined(place: Mapping[str, Any], *, independent: bool) -> Iterator[None]:
    """Joins the other processes of this job, if there are any, before JAX is used otherwise.

    From then on the others notice at once when this process fails, and this process notices when
    another is gone.

    Args:
        place: of this process among the others, as `jax.distributed.initialize` takes it; empty if
            JAX is to find it.
        independent: whether jobs beside this one, such as other shards, are not parts of it.

    Raises:
        InputError: the others cannot be found.
    """
    _join(place, independent)
    try:
        yield
    except (InputError, KeyboardInterrupt):  # the others raise it, too
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if "Gloo" in str(error):  # CPUs communicate by Gloo
            _end_as_lost()
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def is_primary() -> bool:
    """Tells whether this process is the one that writes and reports."""
    return jax.process_index() == 0


def on_primary(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a function that runs on the primary process alone, with a result for all.

    All processes call it together and return what the primary process returned; an `InputError` is
    raised on each. Such functions must not call each other: the other processes do not run them.
    """

    @functools.wraps(function)
    def shared(*args: P.args, **kwargs: P.kwargs) -> T:
        if jax.process_count() == 1:
            return function(*args, **kwargs)
        result: Any = None
        error: InputError | None = None
        if is_primary():
            try:
                result = function(*args, **kwargs)
            except InputError as raised:
                error = raised
        result, error = _broadcast((result, error))
        if error is not None:
            raise error
        return result

    return shared


@contextlib.contextmanager
def primary_context(context: contextlib.AbstractContextManager[T]) -> Iterator[T | None]:
    """Enters a context on the primary process alone; the others get None.

    Raises:
        InputError: what entering or leaving it raised, on each process.
    """
    with contextlib.ExitStack() as stack:
        entered = []

        @on_primary
        def enter() -> None:
            entered.append(stack.enter_context(context))

        enter()
        yield entered[0] if entered else None
        on_primary(stack.close)()


@contextlib.contextmanager
def all_or_error() -> Iterator[None]:
    """Raises an `InputError` on each process if there is one on any."""
    error = None
    try:
        yield
    except InputError as raised:
        error = raised
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(error is not None))
        if error is None and failed.any():
            error = InputError(
                "process_id",
                int(failed.argmax()),
                "this process cannot use what it was given: see its message",
            )
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
        if on_tpu and isinstance(error, ValueError):  # the TPU is not part of a slice
            return
        raise InputError(
            "coordinator",
            place.get("coordinator_address"),
            f"the processes of this job cannot find each other "
            f"({str(error).splitlines()[0]}): start all of "
            "them, and give --coordinator, --num_processes and --process_id",
        ) from error
    # JAX aborts a process that has lost the others, and no handler of Python's runs in abort.
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _ON_ABORT)


def _in_cluster(independent: bool) -> bool:
    """Tells whether the environment belongs to one of several processes that JAX can find."""
    for tasks in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if tasks in os.environ:
            return int(os.environ[tasks]) > 1
    # Kubernetes does not say how many pods there are; each index may also be a shard.
    return "JOB_COMPLETION_INDEX" in os.environ and not independent


def _broadcast(value: T) -> T:
    """The primary process's value, on each process."""
    data = np.frombuffer(pickle.dumps(value) if is_primary() else b"", np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(data))))
    data = data if is_primary() else np.zeros(size, np.uint8)
    return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(data)).tobytes())


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _ON_ABORT(_: int) -> None:
    _end_as_lost()


def _end_as_lost() -> None:
    message = (
        "error: the processes of this job have lost each other: start all of them again to "
        "continue\n"
    )
    os.write(sys.stderr.fileno(), message.encode())
    os._exit(LOST)
