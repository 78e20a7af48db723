"""Programs in processes forked from one that has everything imported, so that each starts at once.

JAX can be forked as long as it has not started its devices, which the process that is forked from
never does.
"""

import importlib
import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

# All that the programs import, but for what defines their flags, some of which have one name.
IMPORTED = (
    *("wayward_jax.analysis.report", "wayward_jax.analysis.summary", "wayward_jax.analysis.tables"),
    *("experiments.interruption", "experiments.job_folder", "experiments.terminal"),
    *("wayward_jax.memory", "wayward_jax.models", "wayward_jax.tasks"),
    "transformers.models.auto.tokenization_auto",
)
MEMORY = 16 * 2**30
"""Bytes of address space, so that runaway memory is an error of the program alone."""


class Ended(NamedTuple):
    """How a program ended: its exit code, None if it had to be killed, and what it said."""

    code: int | None
    out: str
    err: str
    seconds: float


def start() -> multiprocessing.context.ForkServerContext:
    """What processes are forked by; its first process takes seconds, others next to nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


def run(context, module: str, arguments: list[str], folder: Path, limit: float) -> Ended:
    """`python -m MODULE ARGUMENTS`, ended after `limit` seconds; its output goes to `folder`."""
    process = context.Process(target=_program, args=(module, arguments, str(folder)))
    began = time.monotonic()
    process.start()
    process.join(limit)
    seconds = time.monotonic() - began
    if process.is_alive():
        process.kill()
        process.join()
        return Ended(None, *_said(folder), seconds)
    return Ended(process.exitcode, *_said(folder), seconds)


def _said(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in ("stdout", "stderr")]


def _program(module: str, arguments: list[str], folder: str) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.argv = [module, *arguments]
    program = importlib.import_module(module)
    program.command_line.run(program.main)
