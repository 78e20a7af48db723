"""The benchmark's program: `python -m experiments.benchmark`.

It measures how fast populations of prompts are tuned, and compares tuning and scoring with PyTorch.
BENCHMARKS.md explains the columns of its tables.
"""

import json
import multiprocessing
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from rich.console import Console
from rich.table import Table

from experiments.benchmark.measure import Row, measure_tuning
from wayward_jax.models import default_dtype

_QUICK = flags.DEFINE_bool("quick", False, "Take fewer rounds: ten minutes on two CPU cores.")
_MODELS = flags.DEFINE_list(
    "models", ["gpt2", "smollm2-135m"], "smollm2-135m, and shapes that get random weights."
)
_POPULATIONS = flags.DEFINE_list("populations", ["1", "16"], "Numbers of runs to tune at once.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "auto", ["auto", "float32", "bfloat16"], "Type of the weights, as of a job."
)
_COMPARE = flags.DEFINE_bool("compare", True, "Compare with PyTorch; needs .[benchmark].")
_OUT = flags.DEFINE_string("out", "benchmark.json", "File for the figures.")


def main(argv: list[str]) -> None:
    """Measures, prints and saves."""
    del argv
    console = Console(width=140)
    populations = [int(x) for x in _POPULATIONS.value]
    dtype = default_dtype() if _DTYPE.value == "auto" else jnp.dtype(_DTYPE.value)
    seconds, rounds = (1, 2) if _QUICK.value else (40, 9)
    machine = f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPUs, {platform.platform()}"
    tuning = [
        _run_alone(measure_tuning, name, dtype, population, seconds)
        for name in _MODELS.value
        for population in populations
    ]
    _show(console, "Tuning", tuning)
    figures = {"machine": machine, "dtype": dtype.name, "tuning": tuning}
    if _COMPARE.value:
        from experiments.benchmark.compare import compare

        pair = sorted({1, max(populations)})
        comparison = [
            row for name in _MODELS.value for row in _run_alone(compare, name, dtype, pair, rounds)
        ]
        _show(console, "Beside PyTorch, in turns: a run-step, a scored example", comparison)
        figures["comparison"] = comparison
    Path(_OUT.value).write_text(json.dumps(figures, indent=1) + "\n")
    console.print(f"{machine}, {dtype.name}. Saved as {_OUT.value}")


def _run_alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a fresh process, and returns its result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def _show(console: Console, title: str, rows: Sequence[Row]) -> None:
    table = Table(*rows[0], title=title, title_justify="left", box=None)
    for row in rows:
        table.add_row(*(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()))
    console.print(table)


if __name__ == "__main__":
    app.run(main)
