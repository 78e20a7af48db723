"""`projection`: what the same prompts read as under other metrics, and among the nearest tokens.

Prompts are tuned to read as their target under Euclidean distance. If another reading still finds
the target in them, and does not find it in p_star, that reading is deceived as well.
"""

import functools
from collections.abc import Iterator

from experiments import grid
from wayward_jax.analysis.readings import agreements, read_prompts
from wayward_jax.analysis.selection import Comparison
from wayward_jax.jobs.experiment import Experiment
from wayward_jax.jobs.probes import Measurement, ProbeContext
from wayward_jax.projection import METRICS


def measure(bench: ProbeContext) -> Iterator[Measurement]:
    """Each target's prompts together with p_star."""
    for comparison in bench.comparisons():
        yield comparison.wayward[0]["id"], functools.partial(_read, bench, comparison)


def _read(bench: ProbeContext, comparison: Comparison) -> list[dict]:
    rows = [*comparison.p_star, *comparison.wayward]
    prompts = [bench.load_prompt(row) for row in rows]
    ids = [row["id"] for row in rows]
    readings = {
        metric: dict(zip(ids, read_prompts(bench.model, rows, prompts, metric), strict=True))
        for metric in METRICS
    }
    return agreements(comparison, readings)


EXPERIMENT = Experiment(grid.runs, tables=("projection",), measure=measure)
