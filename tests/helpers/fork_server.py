"""Programs in processes forked from one that has everything imported, so that each starts at once.

JAX can be forked as long as it has not started its devices, which the process that is forked from
never does.
"""

import gc
import multiprocessing
import os
import resource
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

# The modules that take the programs long to import.
IMPORTED = (
    *("wayward_jax.analysis.report", "wayward_jax.analysis.summary", "wayward_jax.analysis.tables"),
    *("wayward_jax.jobs.preemption", "wayward_jax.jobs.folder", "wayward_jax.jobs.progress_bar"),
    *("wayward_jax.jobs.processes", "wayward_jax.jobs.object_stores", "wayward_jax.checkpoints"),
    *("wayward_jax.training.memory", "wayward_jax.models", "wayward_jax.tasks"),
    *("wayward_jax.jobs.job", "wayward_jax.analysis.analyze", "wayward_jax.analysis.terminal"),
)
MEMORY = 16 * 2**30
"""Bytes of address space, so that runaway memory is an error of the program alone."""


class Ended(NamedTuple):
    """The end of a program: its exit code (minus the signal that killed it) and its output."""

    code: int
    out: str
    err: str


class Program(NamedTuple):
    """A program that runs.

    Attributes:
        process: its process.
        folder: has its output.
        limit: the seconds of the processor after which it is killed.
    """

    process: multiprocessing.process.BaseProcess
    folder: Path
    limit: int

    def send_signal(self, number: int) -> None:
        """Sends it a signal."""
        os.kill(self.process.pid, number)

    def finish(self) -> Ended:
        """Waits for its end; it is killed after ten times its limit, as machines may be busy."""
        self.process.join(10 * self.limit)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        out, err = ((self.folder / name).read_text() for name in ("stdout", "stderr"))
        return Ended(self.process.exitcode, out, err)


def serve() -> multiprocessing.context.ForkServerContext:
    """Starts the server that processes are forked from, which then has everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    first = context.Process()
    first.start()
    first.join()
    return context


def start(
    context: multiprocessing.context.ForkServerContext,
    module: str,
    arguments: list[str],
    folder: Path,
    limit: int,
    environ: Mapping[str, str] | None = None,
) -> Program:
    """Starts `python -m MODULE ARGUMENTS`.

    Args:
        context: of the server.
        module: the program.
        arguments: its flags.
        folder: for its output.
        limit: it is killed after so many seconds of the processor.
        environ: variables that it has beside those of the server.
    """
    given = (module, arguments, str(folder), limit, environ or {})
    process = context.Process(target=_program, args=given)
    process.start()
    return Program(process, folder, limit)


def _program(
    module: str, arguments: list[str], folder: str, limit: int, environ: Mapping[str, str]
) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    os.environ.update(environ)
    gc.freeze()  # the collector need not look through what was imported
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
