"""Programs in processes forked from one that has everything imported, so that each starts at once.

JAX can be forked as long as it has not started its devices, which the process that is forked from
never does.
"""

import multiprocessing
import os
import resource
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

# The modules that take the programs long to import.
IMPORTED = (
    *("wayward_jax.analysis.report", "wayward_jax.analysis.summary", "wayward_jax.analysis.tables"),
    *("wayward_jax.jobs.preemption", "wayward_jax.jobs.folder", "wayward_jax.jobs.progress_bar"),
    *("wayward_jax.jobs.processes", "wayward_jax.jobs.object_stores", "wayward_jax.checkpoints"),
    *("wayward_jax.training.memory", "wayward_jax.models", "wayward_jax.tasks"),
    "transformers.models.auto.tokenization_auto",
)
MEMORY = 16 * 2**30
"""Bytes of address space, so that runaway memory is an error of the program alone."""


class Ended(NamedTuple):
    """The end of a program: its exit code (None if it had to be killed) and its output."""

    code: int | None
    out: str
    err: str


def start() -> multiprocessing.context.ForkServerContext:
    """Starts the server that processes are forked from; only its first process takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


def run(context, module: str, arguments: list[str], folder: Path, limit: int) -> Ended:
    """`python -m MODULE ARGUMENTS`; its output goes to `folder`.

    It is killed after `limit` seconds of the processor, which a busy machine takes long to give,
    and of waiting after ten times as many.
    """
    process = context.Process(target=_program, args=(module, arguments, str(folder), limit))
    process.start()
    process.join(10 * limit)
    if process.is_alive():
        process.kill()
        process.join()
    code = process.exitcode
    return Ended(None if code < 0 else code, *_said(folder))


def _said(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in ("stdout", "stderr")]


def _program(module: str, arguments: list[str], folder: str, limit: int) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
