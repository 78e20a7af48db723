"""Lists what prompts answer to a few held-out examples, beside the texts that they read as."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from wayward_jax.analysis.selection import Comparison, model_key
from wayward_jax.jobs.records import SHOWN, Measured
from wayward_jax.runs import NOTHING, PROMPT, TEXT, Answer, RunRecord

# The answers of prompts for so many texts are shown, for each model and task.
MOST_TEXTS = 3


@dataclasses.dataclass(frozen=True)
class Line:
    """A prompt, with what is answered to N examples behind it.

    Attributes:
        given: what kind of prompt it is.
        target: the name of the text that it is to read as, or is; empty if there is none.
        text: what it reads as.
        run: the prompt's run; None if it is of no run.
        answers: `[N]`, see `Answers`.
    """

    given: str
    target: str
    text: str
    run: RunRecord | None
    answers: tuple[Answer | None, ...]


@dataclasses.dataclass(frozen=True)
class Answered:
    """The answers of prompts for one model to the shown examples of one task.

    Attributes:
        title: names the model and the task.
        examples: the texts of each of N examples, and its label.
        lines: one for each prompt.
        texts: of how many texts there are prompts; those of `MOST_TEXTS` are among the lines.
    """

    title: str
    examples: list[tuple[list[str], str]]
    lines: list[Line]
    texts: int


def answered(comparisons: Sequence[Comparison], measured: Measured) -> list[Answered]:
    """Lists the answers on each task, by model, in the order of the comparisons.

    Shown are the first `MOST_TEXTS` texts, each with its first prompt, which is that of the first
    seed, and the p_stars that these are compared with.
    """
    groups: dict[tuple, list[Comparison]] = {}
    for comparison in comparisons:
        record = comparison.wayward[0]
        run = record.run
        key = (*model_key(record), run.task, run.method, run.template, record.n_eval)
        groups.setdefault(key, []).append(comparison)
    found = []
    for group in groups.values():
        digest = group[0].wayward[0].provenance.examples_digest
        if examples := measured.get(SHOWN, {}).get(digest):
            found.append(_of_task(group, examples))
    return found


def _of_task(comparisons: Sequence[Comparison], examples: Sequence[Mapping[str, Any]]) -> Answered:
    by_text: dict[tuple[str, int], Comparison] = {}
    for comparison in comparisons:
        run = comparison.wayward[0].run
        by_text.setdefault((run.target_text, run.prompt_length), comparison)
    chosen = list(by_text.values())[:MOST_TEXTS]
    p_stars = {each.p_star[0].id: each.p_star[0] for each in chosen}
    lines = [
        Line("p_star", "", record.text, record, record.answers[PROMPT])
        for record in p_stars.values()
    ]
    for record in (each.wayward[0] for each in chosen):
        name, text = record.run.target_name, record.run.target_text
        lines += [
            Line("wayward prompt", name, record.text, record, record.answers[PROMPT]),
            Line("the text itself", name, text, None, record.answers[TEXT]),
        ]
    run, nothing = chosen[0].wayward[0].run, chosen[0].p_star[0].answers.get(NOTHING)
    if nothing is not None:
        lines.append(Line("no prompt", "", "", None, nothing))
    return Answered(
        f"{run.model} on {run.task}",
        [(each["texts"], each["label"]) for each in examples],
        lines,
        len(by_text),
    )
