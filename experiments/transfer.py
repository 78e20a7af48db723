"""`transfer`: puts prompts of one task before another task, and gives readings to other models.

Between tasks, the prompt itself is put before the inputs and labels of the other task (as the
paper's code does with `--train_task`). Between models, only the reading can be transferred: the
text is tokenized for the other model, and the embeddings of these tokens are the prompt.
"""

import functools
from collections.abc import Iterator
from typing import Any

from experiments import grid
from wayward_jax.analysis.selection import compare
from wayward_jax.jobs.experiment import Experiment
from wayward_jax.jobs.probes import Measurement, ProbeContext, answers
from wayward_jax.runs import RunRecord


def measure(context: ProbeContext) -> Iterator[Measurement]:
    """Yields this model's prompts on all tasks, and the readings of all models with this model."""
    compared = compare(context.records, context.select)
    records = {record.id: record for c in compared for record in (*c.p_star, *c.wayward)}
    several_models = len({record.run.model for record in records.values()}) > 1
    for id_, record in records.items():
        if record.run.model == context.model.name and len(context.tasks) > 1:
            for task in context.tasks:
                measure_one = functools.partial(_measure_on_task, context, record, task)
                yield f"{id_} on {task}", measure_one
        if several_models:
            key = f"{id_} as text to {context.model.name}"
            yield key, functools.partial(_measure_as_text, context, record)


def _measure_on_task(context: ProbeContext, record: RunRecord, task: str) -> list[dict[str, Any]]:
    examples = context.tasks[task].test
    scores = context.score([context.load_prompt(record)], examples)
    return [
        {
            "id": record.id,
            "as_text": False,
            "to_model": context.model.name,
            "to_task": task,
            **answers(scores[0], examples),
        }
    ]


def _measure_as_text(context: ProbeContext, record: RunRecord) -> list[dict[str, Any]]:
    prompt = context.embed(context.model.tokenizer.encode(record.text))
    examples = context.tasks[record.run.task].test
    return [
        {
            "id": record.id,
            "as_text": True,
            "to_model": context.model.name,
            "to_task": record.run.task,
            **answers(context.score([prompt], examples)[0], examples),
        }
    ]


EXPERIMENT = Experiment(
    grid.runs, tables=("transfer",), measure=measure, defaults={"task": "reviews,plots"}
)
