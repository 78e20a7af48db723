"""Signals that schedulers and people send, while a program starts and while it tunes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from wayward_jax.jobs.exit_codes import STOPPED
from wayward_jax.jobs.preemption import Interruption
from wayward_jax.jobs.signals import STOPPING, stopping_signals

PROGRAM = """
import time
from experiments import flags
from wayward_jax.jobs.settings import CalibrationSettings

def main(given):
    print("started", flush=True)
    end = time.monotonic() + float(given["seed"])
    while time.monotonic() < end:  # A signal just before one long sleep would wait for its end.
        time.sleep(0.1)

flags.run(main, CalibrationSettings)
"""

pytestmark = pytest.mark.usefixtures("no_signal_ignored")


def send(number, seconds, *launcher):
    """The exit code and errors of a program that has a signal while it starts."""
    command = [*launcher, sys.executable, "-c", PROGRAM, f"--seed={seconds}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.slow
@pytest.mark.parametrize("number", STOPPING)
def test_a_program_that_starts_ends_with_one_line(number):
    assert send(number, 60) == (STOPPED, "stopped\n")


@pytest.mark.slow
def test_nohup_keeps_a_program_from_the_signal_of_its_terminal():
    ignoring = ("sh", "-c", "trap '' HUP; exec \"$@\"", "sh")
    assert send(signal.SIGHUP, 1, *ignoring) == (0, "")


@pytest.mark.parametrize("number", STOPPING)
def test_a_job_that_tunes_is_asked_to_stop(number):
    before = {each: signal.getsignal(each) for each in STOPPING}
    interruption = Interruption()
    with interruption.heed():
        assert not interruption.asked()
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 60
        while not interruption.asked():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert {each: signal.getsignal(each) for each in STOPPING} == before


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interruption = Interruption()
        with interruption.heed():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
            assert not interruption.asked()
        assert signal.SIGHUP not in stopping_signals()
    finally:
        signal.signal(signal.SIGHUP, before)
