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
from absl import app, flags
from rich.console import Console
from rich.table import Table

from experiments.benchmark.measure import Row, measure_tuning
from wayward_jax.models import resolve_dtype

_QUICK = flags.DEFINE_bool(
    "quick", False, "SmolLM2 alone, up to 8 runs at once, few rounds: ten minutes on two CPU cores."
)
_MODELS = flags.DEFINE_list(
    "models",
    None,
    "smollm2-135m, and shapes that get random weights; gpt2 and smollm2-135m by default.",
)
_POPULATIONS = flags.DEFINE_list(
    "populations", None, "Numbers of runs to tune at once; 1 and 16 by default."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "auto", ["auto", "float32", "bfloat16"], "Type of the weights, as of a job."
)
_COMPARE = flags.DEFINE_bool("compare", True, "Compare with PyTorch; needs .[benchmark].")
_OUT = flags.DEFINE_string("out", "benchmark.json", "File for the figures.")


def main(argv: list[str]) -> None:
    """Measures, prints and saves."""
    del argv
    console = Console(width=140)
    models, populations = ("gpt2", "smollm2-135m"), (1, 16)
    seconds, rounds = 40, 9
    if _QUICK.value:
        models, populations, seconds, rounds = ("smollm2-135m",), (1, 8), 1, 2
    models = _MODELS.value or models
    populations = [int(x) for x in _POPULATIONS.value or populations]
    dtype = resolve_dtype(_DTYPE.value, jax.devices()[0])
    machine = f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPUs, {platform.platform()}"
    tuning = [
        _run_alone(measure_tuning, name, dtype, population, seconds)
        for name in models
        for population in populations
    ]
    _show(console, "Tuning", tuning)
    figures = {"machine": machine, "dtype": dtype.name, "tuning": tuning}
    if _COMPARE.value:
        from experiments.benchmark.compare import compare

        pair = sorted({1, max(populations)})
        comparison = [
            row for name in models for row in _run_alone(compare, name, dtype, pair, rounds)
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
