"""`discrete`: compares texts as prompts with vectors that read as these texts.

The same model is given the wayward prompt itself, the prompt's reading put back as tokens, and the
target's own text. The difference between the first two says how unfaithful the reading is. For
reference there are no prompt at all (zero-shot) and demonstrations (few-shot). All of them are also
measured with contextual calibration (Zhao et al., 2021, arXiv 2102.09690).
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments import grid
from wayward_jax.analysis.selection import compare
from wayward_jax.jobs.experiment import Experiment
from wayward_jax.jobs.probes import Measurement, ProbeContext, answers
from wayward_jax.runs import RunRecord
from wayward_jax.segments import Segments

# This text follows each demonstration.
SEPARATOR = "\n"

# More demonstrations take time and hardly change the accuracy of models of the paper's sizes.
MOST_DEMONSTRATIONS = 32


def measure(context: ProbeContext) -> Iterator[Measurement]:
    """Yields a measurement for each wayward prompt, and the references for each task."""
    for comparison in compare(context.own_records, context.select):
        for record in comparison.wayward:
            yield record.id, functools.partial(_measure_prompt, context, record)
    for task in context.tasks:
        own = [record for record in context.own_records if record.run.task == task]
        key = " ".join(map(str, (*_setting(own[0]).values(), own[0].provenance.dtype)))
        yield f"{key} zero-shot", functools.partial(_measure_zero_shot, context, own[0])
        first = {(record.run.data_seed, record.run.seed): record for record in reversed(own)}
        for (data_seed, seed), record in sorted(first.items()):
            measure_one = functools.partial(_measure_few_shot, context, record)
            yield f"{key} few-shot {data_seed} {seed}", measure_one


def _measure_prompt(context: ProbeContext, record: RunRecord) -> list[dict[str, Any]]:
    prompts = {
        "continuous": context.load_prompt(record),
        "projected": context.embed(record.token_ids),
        "target": context.embed(record.run.target_ids),
    }
    return [{"id": record.id, **row} for row in _accuracies(context, record.run.task, prompts)]


def _measure_zero_shot(context: ProbeContext, record: RunRecord) -> list[dict[str, Any]]:
    rows = _accuracies(context, record.run.task, {"zero-shot": context.embed([])})
    return [{**_setting(record), **row} for row in rows]


def _measure_few_shot(context: ProbeContext, record: RunRecord) -> list[dict[str, Any]]:
    run = record.run
    task = context.tasks[run.task]
    longest = 1 + int(task.test.segments.joined.positions.max())
    ids = demonstrations(
        task.train[run.data_seed],
        context.model.tokenizer.encode(SEPARATOR),
        room=context.max_positions - longest,
        seed=run.seed,
    )
    rows = _accuracies(context, run.task, {"few-shot": context.embed(ids)})
    return [{**_setting(record), "prompt_tokens": len(ids), **row} for row in rows]


def _accuracies(
    context: ProbeContext, task: str, prompts: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """A row for each prompt, first as it is and then with calibration."""
    examples, prior = context.tasks[task].test, context.tasks[task].content_free
    scores = context.score(list(prompts.values()), examples)
    corrected = calibrate(scores, context.score(list(prompts.values()), prior))
    return [
        {
            "prompt": name,
            "calibrated": is_corrected,
            **answers(each[i], examples),
        }
        for is_corrected, each in ((False, scores), (True, corrected))
        for i, name in enumerate(prompts)
    ]


def _setting(record: RunRecord) -> dict[str, Any]:
    """The settings that the accuracy of a reference depends on."""
    names = ("model", "model_digest", "task", "method", "template", "k_shot")
    return {name: getattr(record.run, name) for name in names} | {"n_eval": record.n_eval}


def calibrate(scores: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Corrects scores for what the model prefers regardless of the text.

    Contextual calibration (Zhao et al., 2021, section 5) divides the probability of a label by the
    probability that the label has for a content-free text. Scores are negative logarithms of
    probabilities, so the division is a subtraction.

    Args:
        scores: `[N, E, C]` from `evaluation.score_prompts`, nats a token.
        prior: `[N, 1, C]`, the scores of a content-free text.
    """
    return scores - prior


def demonstrations(train: Segments, separator: Sequence[int], *, room: int, seed: int) -> list[int]:
    """Joins training examples with their labels, in random order, each followed by `separator`.

    There are as many as fit into `room` tokens, and at most `MOST_DEMONSTRATIONS`.

    Args:
        train: segments from `segments.gold_segments`.
        separator: tokens.
        room: the largest number of tokens.
        seed: the seed of the choice and order.
    """
    ids: list[int] = []
    order = np.random.default_rng(seed).permutation(len(train))
    for index in order[:MOST_DEMONSTRATIONS]:
        example = train[index]
        # A label with several label words is shown by its first word.
        more = [*example.ids[example.branch <= 1].tolist(), *separator]
        if len(ids) + len(more) > room:
            break
        ids += more
    return ids


EXPERIMENT = Experiment(grid.runs, tables=("discrete", "gaps"), measure=measure)
