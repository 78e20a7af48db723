"""Requests to stop a job: signals, and the preemption notices of clusters."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from wayward_jax.jobs.exit_codes import STOPPED


class Interruption:
    """Knows whether a job was asked to stop; the job asks after each chunk of steps.

    Python runs handlers of signals only once the main thread returns from waiting for the devices.
    So a separate thread listens here, to the socket that Python writes the signals' numbers to.
    """

    def __init__(self) -> None:
        self._asked = False
        self._questions = 0

    def asked(self) -> bool:
        """Tells whether to stop; all processes of a job ask as often and get the same answer."""
        self._questions += 1
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(self._questions)
        return self._asked

    @contextlib.contextmanager
    def heed(self) -> Iterator[None]:
        """Has SIGTERM and SIGINT only ask to stop for a while; a second SIGINT ends the process."""
        if jax.distributed.is_initialized():  # JAX itself listens for SIGTERM
            yield
            return
        ours, pythons = socket.socketpair()
        pythons.setblocking(False)
        with ours, pythons:
            listener = threading.Thread(target=self._listen, args=(ours,), daemon=True)
            listener.start()
            handlers = {
                number: signal.signal(number, lambda *_: None)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
            fd = signal.set_wakeup_fd(pythons.fileno())
            try:
                yield
            finally:
                signal.set_wakeup_fd(fd)
                for number, handler in handlers.items():
                    signal.signal(number, handler)
                pythons.shutdown(socket.SHUT_WR)
                listener.join()

    def _listen(self, ours: socket.socket) -> None:
        while number := ours.recv(1):
            if self._asked and number[0] == signal.SIGINT:
                os._exit(STOPPED)
            self._asked = True
