"""`discrete`: what texts do as prompts, beside what vectors that read as them do.

The same model with the target's own text as its prompt, with what the wayward prompt reads as put
back as tokens, and with the wayward prompt itself. What lies between the last two is how unfaithful
the reading is. For reference, no prompt at all and demonstrations; all of it also calibrated by a
text without content (Zhao et al., 2021).
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from experiments import grid
from wayward_jax.analysis.selection import Row
from wayward_jax.discrete import calibrated, demonstrations
from wayward_jax.jobs.experiment import Experiment
from wayward_jax.jobs.probes import Measurement, ProbeContext, accuracy

# Demonstrations stand in lines of their own.
SEPARATOR = "\n"


def measure(bench: ProbeContext) -> Iterator[Measurement]:
    """Each run that is compared, and reference lines for each task."""
    for comparison in bench.comparisons():
        for row in comparison.wayward:
            yield row["id"], functools.partial(_beside, bench, row)
    for name in bench.tasks:
        own = [row for row in bench.rows if (row["model"], row["task"]) == (bench.model.name, name)]
        yield f"{bench.model.name} {name} zero-shot", functools.partial(_zero_shot, bench, own[0])
        first = {(row["data_seed"], row["seed"]): row for row in reversed(own)}
        for (data_seed, seed), row in sorted(first.items()):
            key = f"{bench.model.name} {name} few-shot {data_seed} {seed}"
            yield key, functools.partial(_few_shot, bench, row)


def _beside(bench: ProbeContext, row: Row) -> list[dict[str, Any]]:
    prompts = {
        "continuous": bench.load_prompt(row),
        "projected": bench.embeddings(row["token_ids"]),
        "target": bench.embeddings(row["target_ids"]),
    }
    return [{"id": row["id"], **found} for found in _accuracies(bench, row["task"], prompts)]


def _zero_shot(bench: ProbeContext, row: Row) -> list[dict[str, Any]]:
    nothing = {"zero-shot": bench.embeddings([])}
    found = _accuracies(bench, row["task"], nothing)
    return [{**_setting(row), **each} for each in found]


def _few_shot(bench: ProbeContext, row: Row) -> list[dict[str, Any]]:
    task = bench.tasks[row["task"]]
    longest = 1 + max(int(part.positions.max()) for part in task.test.parts)
    ids = demonstrations(
        task.train[row["data_seed"]],
        bench.model.tokenizer.encode(SEPARATOR),
        room=bench.positions - longest,
        seed=row["seed"],
    )
    found = _accuracies(bench, row["task"], {"few-shot": bench.embeddings(ids)})
    return [{**_setting(row), "prompt_tokens": len(ids), **each} for each in found]


def _accuracies(
    bench: ProbeContext, task: str, prompts: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """A row each prompt, as it is and calibrated."""
    examples, prior = bench.tasks[task].test, bench.tasks[task].content_free
    scores = bench.score(list(prompts.values()), examples)
    corrected = calibrated(scores, bench.score(list(prompts.values()), prior))
    return [
        {"prompt": name, "calibrated": is_corrected, "accuracy": accuracy(each[i], examples)}
        for is_corrected, each in ((False, scores), (True, corrected))
        for i, name in enumerate(prompts)
    ]


def _setting(row: Row) -> dict[str, Any]:
    """What a reference line depends on."""
    return {name: row[name] for name in ("model", "task", "method", "template")}


EXPERIMENT = Experiment(grid.runs, tables=("discrete", "gaps"), measure=measure)
