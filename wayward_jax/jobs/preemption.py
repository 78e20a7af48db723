"""Requests to stop a job: signals, and the preemption notices of clusters."""

import contextlib
import os
import signal
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from wayward_jax.jobs.exit_codes import STOPPED
from wayward_jax.jobs.signals import listening, stopping_signals


class Interruption:
    """Knows whether a job was asked to stop; the job asks after each chunk of steps."""

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
        """Has signals only ask to stop for a while; a second SIGINT ends the process.

        Of several processes, each has its signals `passed_on` anyway.
        """
        if jax.distributed.is_initialized():
            yield
            return
        with listening(stopping_signals(), self._note):
            yield

    def _note(self, number: int) -> None:
        if self._asked and number == signal.SIGINT:
            os._exit(STOPPED)
        self._asked = True


@contextlib.contextmanager
def passed_on() -> Iterator[None]:
    """Has all processes of a job know of signals to any of them; a second SIGINT ends this one.

    JAX itself listens for SIGTERM, and tells the other processes. The other signals become SIGTERM.
    """
    passed: list[int] = []

    def pass_on(number: int) -> None:
        if passed and number == signal.SIGINT:
            os._exit(STOPPED)
        passed.append(number)
        os.kill(os.getpid(), signal.SIGTERM)

    with listening([each for each in stopping_signals() if each != signal.SIGTERM], pass_on):
        yield
