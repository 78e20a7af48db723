"""`readings`: tunes prompts to deceive one reading, and asks what the other readings say of them.

Each target is tuned to be read off a prompt by its nearest tokens (the paper's reading), by the
logit lens, and by what the model says that the prompt means, each with as many gammas. The tables
of groups and targets show which reading can be deceived, and at what cost. The measurement shows
what every reading says of the prompts that were held to deceive one of them.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from experiments import grid
from wayward_jax import metrics
from wayward_jax.analysis.selection import Comparison, compare
from wayward_jax.jobs.experiment import Experiment
from wayward_jax.jobs.probes import Measurement, ProbeContext
from wayward_jax.models import LanguageModel
from wayward_jax.projection import METRICS
from wayward_jax.readings import Method, NearestTokens, find_reading, read_tokens
from wayward_jax.runs import P_STAR
from wayward_jax.sharding import on_host


def measure(context: ProbeContext) -> Iterator[Measurement]:
    """Yields a measurement for each target under each constraint, together with p_star."""
    readings = {**usual_readings(context.model), **context.readings}
    for comparison in compare(context.own_records, context.select):
        yield (
            comparison.wayward[0].id,
            functools.partial(_measure_readings, context, readings, comparison),
        )


def usual_readings(model: LanguageModel) -> dict[str, Method]:
    """Nearest tokens under each metric, the lens, and both forms of verbal readings, by name."""
    others = [find_reading(name, model) for name in ("lens", "verbal", "inspect")]
    return {
        **{metric: NearestTokens(metric) for metric in METRICS},
        **{str(each): each for each in others},
    }


def _measure_readings(
    context: ProbeContext, readings: Mapping[str, Method], comparison: Comparison
) -> list[dict[str, Any]]:
    records = [*comparison.wayward, *comparison.p_star]
    prompts = jnp.stack([context.load_prompt(record) for record in records])
    target = comparison.wayward[0].run.target
    rows = []
    for name, reading in readings.items():
        ids = on_host(reading.read(context.model, prompts)).tolist()
        for record, own in zip(records, ids, strict=True):
            read = read_tokens(context.model.tokenizer, own, target)
            rows.append(
                {
                    "id": comparison.wayward[0].id,
                    "reading": name,
                    "prompt": "wayward" if record.run.has_target else P_STAR,
                    "prompt_f1": read.prompt_f1,
                    "token_f1": read.token_f1,
                    "similarity": metrics.similarity(read.text, target.text),
                    "text": read.text,
                }
            )
    return rows


EXPERIMENT = Experiment(
    grid.runs,
    tables=("groups", "readings"),
    measure=measure,
    defaults={
        "targets": "instructions:2",
        "constraint": "penalty,lens,verbal",
        "gamma": "0.1,1",
        "steps": "60",
    },
)
