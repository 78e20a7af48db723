"""`path`: measures what lies between p_star, a wayward prompt and the embeddings of its target.

Accuracy, task loss, prompt F1 and the distance to the target are measured along the straight line
from p_star to the wayward prompt of the same seed, and along that from there to `c_proj(target)`.
If what a prompt reads as were what it does, they would change together.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments import grid
from wayward_jax.analysis.selection import compare
from wayward_jax.jobs.experiment import Experiment
from wayward_jax.jobs.probes import Measurement, ProbeContext, answers
from wayward_jax.projection import d_proj
from wayward_jax.readings import read_tokens
from wayward_jax.runs import RunRecord

# The number of points on each of the two lines, with their ends.
POINTS = 11


def measure(context: ProbeContext) -> Iterator[Measurement]:
    """Yields a measurement for each wayward prompt that has a p_star of the same seed."""
    for comparison in compare(context.own_records, context.select):
        p_stars = {record.run.seed: record for record in comparison.p_star}
        for record in comparison.wayward:
            if p_star := p_stars.get(record.run.seed):
                yield record.id, functools.partial(_measure_path, context, p_star, record)


def _measure_path(
    context: ProbeContext, p_star: RunRecord, record: RunRecord
) -> list[dict[str, Any]]:
    """A row for each point; position 0 is p_star, 1 the wayward prompt, and 2 the target."""
    run = record.run
    target = context.embed(run.target_ids)
    corners = np.stack([context.load_prompt(p_star), context.load_prompt(record), target])
    positions = np.linspace(0, 2, 2 * POINTS - 1)
    prompts = between(corners, positions)
    examples = context.tasks[run.task].test
    scores = context.score(prompts, examples)
    model = context.model
    nearest = np.asarray(d_proj(model.embedding_table(), prompts, model.valid_tokens()))
    rows = []
    for position, prompt, own, ids in zip(positions, prompts, scores, nearest, strict=True):
        read = read_tokens(model.tokenizer, ids.tolist(), run.target)
        rows.append(
            {
                "id": record.id,
                "position": round(float(position), 6),
                **answers(own, examples),
                "task_loss": float(own[np.arange(len(own)), examples.labels].mean()),
                "prompt_f1": read.prompt_f1,
                "token_f1": read.token_f1,
                "distance": float(np.square(prompt - target).sum(axis=-1).mean()),
            }
        )
    return rows


def between(corners: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Points on the straight lines from corner to corner: `[n, L, D]`, `[P]` -> `[P, L, D]`.

    Position 1.5, for example, lies half-way between the second corner and the third.
    """
    first = np.minimum(np.floor(positions).astype(int), len(corners) - 2)
    share = (positions - first)[:, None, None]
    points = (1 - share) * corners[first] + share * corners[first + 1]
    return points.astype(np.float32)


EXPERIMENT = Experiment(grid.runs, tables=("path",), measure=measure)
