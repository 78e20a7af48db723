"""`recover`: asks whether readings give back a true description of what a prompt does.

Prompts start at a true description of the task, and are tuned for the task with nothing that holds
them there. If a reading says what a prompt does, then the description is nearer to what it reads
than descriptions of other tasks are. Each reading ranks the description among 20 texts of the same
length by its loss. Some texts are likelier than others whatever the prompt is, so they are also
ranked by how much smaller the loss is than with p_star, which started elsewhere.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import grid
from experiments.readings import usual_readings
from wayward_jax.analysis.selection import Comparison, compare
from wayward_jax.jobs.experiment import Experiment
from wayward_jax.jobs.probes import Measurement, ProbeContext
from wayward_jax.readings import Method
from wayward_jax.sharding import on_host
from wayward_jax.targets import load_texts, tokenize

# The false descriptions are instructions for other tasks.
FALSE = "instructions:19"


def measure(context: ProbeContext) -> Iterator[Measurement]:
    """Yields a measurement for each description, together with p_star."""
    readings = {**usual_readings(context.model), **context.readings}
    for comparison in compare(context.own_records, context.select):
        yield (
            comparison.wayward[0].id,
            functools.partial(_measure_ranks, context, readings, comparison),
        )


def _measure_ranks(
    context: ProbeContext, readings: Mapping[str, Method], comparison: Comparison
) -> list[dict[str, Any]]:
    truth = comparison.wayward[0].run.target_ids
    false = tokenize(load_texts(FALSE), context.model.tokenizer, len(truth), repeat=True)
    texts = np.array([truth, *(each.ids for each in false)])
    prompts, p_stars = (
        [context.load_prompt(record) for record in records]
        for records in (comparison.wayward, comparison.p_star)
    )

    def losses(reading: Method, prompt: np.ndarray) -> np.ndarray:
        copies = jnp.broadcast_to(jnp.asarray(prompt), (len(texts), *prompt.shape))
        return on_host(reading.loss(context.model, copies, texts))

    rows = []
    for name, reading in readings.items():
        usual = np.mean([losses(reading, prompt) for prompt in p_stars], axis=0)
        for prompt in prompts:
            own = losses(reading, prompt)
            for beside, scores in (("nothing", own), ("p_star", own - usual)):
                place = rank(scores)
                row = {"reading": name, "beside": beside, "rank": place, "first": place == 1}
                rows.append({"id": comparison.wayward[0].id, **row})
    return rows


def rank(scores: np.ndarray) -> float:
    """The rank of the first of some scores, from 1 for the lowest; equal ones share a mean rank."""
    below, equal = (scores < scores[0]).sum(), (scores == scores[0]).sum()
    return float(below + (equal + 1) / 2)


EXPERIMENT = Experiment(
    grid.runs,
    tables=("groups", "recover"),
    measure=measure,
    defaults={"targets": "definitions:3", "gamma": "0", "steps": "60"},
)
