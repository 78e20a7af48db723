"""`transfer`: prompts of one task put before another's, and those of one model given to another.

Between tasks a prompt is taken as it is and put before the other task's inputs and labels (as the
paper's code does, `--train_task`). Between models only its reading can be taken: the text becomes
tokens of the other model, and these the prompt.
"""

import functools
from collections.abc import Iterator
from typing import Any

from experiments import grid
from wayward_jax.analysis.selection import Row, compare
from wayward_jax.jobs.experiment import Experiment
from wayward_jax.jobs.probes import Measurement, ProbeContext, accuracy


def measure(bench: ProbeContext) -> Iterator[Measurement]:
    """The runs of this model on all tasks, and the texts of all models with this one."""
    compared = [row for c in compare(bench.rows, bench.select) for row in (*c.p_star, *c.wayward)]
    rows = {row["id"]: row for row in compared}.values()
    several_models = len({row["model"] for row in rows}) > 1
    for row in rows:
        if row["model"] == bench.model.name and len(bench.tasks) > 1:
            yield row["id"], functools.partial(_on_all_tasks, bench, row)
        if several_models:
            yield f"{row['id']} {bench.model.name}", functools.partial(_as_text, bench, row)


def _on_all_tasks(bench: ProbeContext, row: Row) -> list[dict[str, Any]]:
    prompt = bench.load_prompt(row)
    return [
        {
            "id": row["id"],
            "as_text": False,
            "to_model": bench.model.name,
            "to_task": name,
            "accuracy": accuracy(bench.score([prompt], task.test)[0], task.test),
        }
        for name, task in bench.tasks.items()
    ]


def _as_text(bench: ProbeContext, row: Row) -> list[dict[str, Any]]:
    prompt = bench.embeddings(bench.model.tokenizer.encode(row["text"]))
    examples = bench.tasks[row["task"]].test
    return [
        {
            "id": row["id"],
            "as_text": True,
            "to_model": bench.model.name,
            "to_task": row["task"],
            "accuracy": accuracy(bench.score([prompt], examples)[0], examples),
        }
    ]


EXPERIMENT = Experiment(
    grid.runs, tables=("transfer",), measure=measure, defaults={"task": "reviews,plots"}
)
