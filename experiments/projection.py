"""`projection`: reads the same prompts under other metrics, and among more nearest tokens.

Prompts are tuned to read as their target under Euclidean distance. If another reading also finds
the target in them, and does not find it in p_star, then that reading is deceived, too.
"""

import functools
from collections.abc import Iterator
from typing import Any

from experiments import grid
from wayward_jax.analysis.agreement import agreements
from wayward_jax.analysis.selection import Comparison, compare
from wayward_jax.jobs.experiment import Experiment
from wayward_jax.jobs.probes import Measurement, ProbeContext
from wayward_jax.projection import METRICS
from wayward_jax.readings import read_prompts


def measure(context: ProbeContext) -> Iterator[Measurement]:
    """Yields a measurement for each target's prompts together with p_star."""
    for comparison in compare(context.own_records, context.select):
        yield comparison.wayward[0].id, functools.partial(_measure_readings, context, comparison)


def _measure_readings(context: ProbeContext, comparison: Comparison) -> list[dict[str, Any]]:
    records = [*comparison.p_star, *comparison.wayward]
    ids = [record.id for record in records]
    prompts = [context.load_prompt(record) for record in records]
    targets = [record.run.target for record in records]
    readings = {
        metric: dict(zip(ids, read_prompts(context.model, prompts, targets, metric), strict=True))
        for metric in METRICS
    }
    return agreements(comparison, readings)


EXPERIMENT = Experiment(grid.runs, tables=("projection",), measure=measure)
