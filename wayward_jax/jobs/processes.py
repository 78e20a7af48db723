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
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from wayward_jax.errors import InputError, reason
from wayward_jax.jobs.exit_codes import LOST
from wayward_jax.jobs.preemption import passed_on
from wayward_jax.jobs.schedulers import find_rank, own_gpus, port_of_step

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
    another is gone. A signal that asks one to stop stops them all.

    Args:
        place: of this process among the others, as `jax.distributed.initialize` takes it; empty, or
            the coordinator's address alone, if the scheduler says the rest.
        independent: whether the processes that the scheduler started with this one do other jobs,
            such as other shards.

    Raises:
        InputError: the others cannot be found.
    """
    _join(place, independent)
    try:
        with passed_on() if jax.distributed.is_initialized() else contextlib.nullcontext():
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


def check_alike(texts: Mapping[str, str | None]) -> None:
    """Checks that all processes of a job were given the same, by the names of the flags.

    Raises:
        InputError: this or another process was given something else than the primary one.
    """
    if jax.process_count() == 1:
        return
    first = _broadcast(dict(texts))
    with all_or_error():
        for name, text in texts.items():
            if text != first[name]:
                raise InputError(
                    name,
                    text,
                    f"the first process of this job has {first[name]}: give all the same",
                )


def _join(place: Mapping[str, Any], independent: bool) -> None:
    if "process_id" in place:
        _initialize(cluster_detection_method="deactivate", **place)
        return
    rank = find_rank(os.environ)
    if rank is None:
        if place:
            raise InputError(
                "coordinator",
                place["coordinator_address"],
                "neither Slurm nor Open MPI says which of how many processes this is: give "
                "--num_processes and --process_id, too",
            )
        if _on_tpu() or (_on_kubernetes() and not independent):
            _initialize()
    elif rank.count > 1:
        if place or not independent:
            if rank.scheduler == "slurm" and not place:
                os.environ.setdefault("JAX_COORDINATOR_PORT", str(port_of_step(os.environ)))
            _initialize(
                cluster_detection_method="deactivate" if place else rank.scheduler,
                num_processes=rank.count,
                process_id=rank.number,
                **place,
            )
        # JAX gives each of several processes one GPU, though there may be more or only its own.
        jax.config.update("jax_cuda_visible_devices", own_gpus(rank, os.environ))


def _initialize(**place: Any) -> None:
    """Finds the others, for which JAX waits for minutes.

    Raises:
        InputError: they cannot be found.
        KeyboardInterrupt: this process was asked to stop meanwhile.
    """
    try:
        _interruptibly(
            jax.distributed.initialize,
            **place,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=ENDING,
        )
    except Exception as error:  # each kind of cluster raises its own, also those of the network
        # A TPU may be no part of a slice, and the server that knows the slice may be out of reach.
        if not place and _on_tpu() and isinstance(error, ValueError | OSError):
            return
        raise InputError(
            "coordinator",
            place.get("coordinator_address"),
            f"the processes of this job cannot find each other ({reason(error)}): start all of "
            "them, and give --coordinator, and where neither Slurm nor Open MPI says them "
            "--num_processes and --process_id",
        ) from error
    # JAX aborts a process that has lost the others, and no handler of Python's runs in abort.
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _ON_ABORT)


def _interruptibly(function: Callable[..., Any], **given: Any) -> None:
    """Calls a function in a thread of its own, since no handler of signals runs while C waits."""
    ended: Future[Any] = Future()

    def call() -> None:
        try:
            ended.set_result(function(**given))
        except Exception as error:
            ended.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    while not wait([ended], timeout=0.2).done:
        pass  # A signal that comes just before a wait is heeded after it.
    ended.result()


def _on_tpu() -> bool:
    """Tells whether this host may be part of a TPU slice.

    JAX sets `TPU_SKIP_MDS_QUERY` when it is imported and finds no TPU.
    """
    without_server = "TPU_SKIP_MDS_QUERY" in os.environ
    named = {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"} & os.environ.keys()
    return importlib.util.find_spec("libtpu") is not None and (bool(named) or not without_server)


def _on_kubernetes() -> bool:
    """Tells whether this is a pod of an Indexed Job. Kubernetes does not say of how many."""
    return "JOB_COMPLETION_INDEX" in os.environ


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
