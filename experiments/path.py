"""`path`: what lies between p_star, a wayward prompt and the embeddings of its target.

Along the straight lines from p_star to the wayward prompt of the same seed, and from there to
`c_proj(target)`: accuracy, task loss, what is read, and the distance to the target. If reading and
doing were one, they would change together.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments import grid
from wayward_jax.analysis.selection import Row
from wayward_jax.jobs.experiment import Experiment
from wayward_jax.jobs.probes import Measurement, ProbeContext, accuracy
from wayward_jax.projection import d_proj
from wayward_jax.readings import read_tokens

# Of each line, its ends included.
POINTS = 11


def measure(bench: ProbeContext) -> Iterator[Measurement]:
    """A way for each run that is compared with a p_star of its seed."""
    for comparison in bench.comparisons():
        p_stars = {row["seed"]: row for row in comparison.p_star}
        for row in comparison.wayward:
            if row["seed"] in p_stars:
                yield row["id"], functools.partial(_along, bench, p_stars[row["seed"]], row)


def _along(bench: ProbeContext, p_star: Row, row: Row) -> list[dict[str, Any]]:
    """A row each point: position 0 is p_star, 1 the wayward prompt, 2 the target."""
    target = bench.embeddings(row["target_ids"])
    corners = np.stack([bench.load_prompt(p_star), bench.load_prompt(row), target])
    positions = np.linspace(0, 2, 2 * POINTS - 1)
    prompts = between(corners, positions)
    examples = bench.tasks[row["task"]].test
    scores = bench.score(prompts, examples)
    nearest = np.asarray(d_proj(bench.model.embedding_table(), prompts, bench.model.valid_tokens()))
    rows = []
    for position, prompt, own, ids in zip(positions, prompts, scores, nearest, strict=True):
        tokenizer = bench.model.tokenizer
        read = read_tokens(tokenizer, ids.tolist(), row["target_text"], row["target_ids"])
        rows.append(
            {
                "id": row["id"],
                "position": round(float(position), 6),
                "accuracy": accuracy(own, examples),
                "task_loss": float(own[np.arange(len(own)), examples.labels].mean()),
                "prompt_f1": read.prompt_f1,
                "token_f1": read.token_f1,
                "distance": float(np.square(prompt - target).sum(axis=-1).mean()),
            }
        )
    return rows


def between(corners: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Points of the straight lines from corner to corner: `[n, L, D]`, `[P]` -> `[P, L, D]`.

    Position 1.5 lies half-way between the second corner and the third.
    """
    first = np.minimum(np.floor(positions).astype(int), len(corners) - 2)
    share = (positions - first)[:, None, None]
    points = (1 - share) * corners[first] + share * corners[first + 1]
    return points.astype(np.float32)


EXPERIMENT = Experiment(grid.runs, tables=("path",), measure=measure)
