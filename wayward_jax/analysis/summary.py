"""Says in plain words what a set of runs shows."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from wayward_jax.analysis import captions, statistics, tables
from wayward_jax.analysis.selection import (
    F1_THRESHOLD,
    Comparison,
    by_target,
    p_stars,
    setting,
)
from wayward_jax.readings import Reading
from wayward_jax.runs import NEAREST_TOKENS, RunRecord

# Longer lists are left to the tables.
MOST_LINES = 6

# What may differ between runs that are analyzed together, in words.
MADE_WITH = {
    "device": "kinds of devices",
    "devices": "numbers of devices",
    "version": "versions of wayward_jax",
    "libraries": "versions of libraries",
    "commit": "commits of the code",
}


def summary(
    records: Sequence[RunRecord],
    comparisons: Sequence[Comparison],
    by_task: pd.DataFrame,
    margin: float = statistics.MARGIN,
) -> list[str]:
    """Writes a few sentences, the most general one first.

    Args:
        records: all runs.
        comparisons: the comparisons of these runs.
        by_task: the comparisons as a table of `tables.by_group`, all target sets together.
        margin: of verdicts, in percent.
    """
    said = [_scope(records)]
    said += _not_learned(comparisons)
    pools = [pool for pool in by_target(comparisons) if all(c.learned for c in pool)]
    if pools:
        alike = [p for p in pools if np.mean([c.prompt_f1 for c in p]) >= F1_THRESHOLD]
        found = [
            statistics.mean_drop([c.beside_p_star for c in pool]).verdict(margin) for pool in alike
        ]
        verdicts = zip(alike, found, strict=True)
        free = [pool[0] for pool, verdict in verdicts if verdict == statistics.WITHIN]
        by_task = by_task[by_task["verdict"] != tables.NOT_LEARNED]
        said.append(
            f"Targets that can be read off their prompts: {len(alike)} of {len(pools)}. The "
            f"nearest tokens spell the text (prompt F1 of at least {F1_THRESHOLD:g})."
        )
        apart = [name for name in tables.differing(by_task) if name not in tables.ALWAYS_SHOWN]
        said += [_cost(line, apart) for _, line in by_task.head(MOST_LINES).iterrows()]
        said.append(
            f"Of the drops of these {count(len(alike), 'target')}, {len(free)} are within "
            f"{margin:g} %, {found.count(statistics.BEYOND)} are beyond, and of "
            f"{found.count(statistics.CANNOT_TELL)} it cannot be told.{_moral(free)}"
        )
        said.append(captions.NUMERICAL_FLOOR)
    return said


def title(records: Sequence[RunRecord]) -> str:
    """Names the models and tasks of the runs, as the title of a page."""
    models, tasks = _names(records, "model"), _names(records, "task")
    return f"{models} on {tasks}, {count(len(records), 'run')}"


def reservations(records: Sequence[RunRecord], readings: Mapping[str, Reading]) -> list[str]:
    """Says what a reader of the summary should know about the runs behind it.

    Args:
        records: all runs.
        readings: the prompts as they read now, by run id, as far as their models are here.
    """
    said = []
    if diverged := [record for record in records if record.diverged_at is not None]:
        said.append(
            f"{count(len(diverged), 'run')} diverged: the prompt stayed as it was from then on. "
            "Such a run is counted like the others."
        )
    if outside := [record for record in records if record.in_cells is False]:
        said.append(
            f"{count(len(outside), 'prompt')} should read as their targets by construction and do "
            "not. Take another --dtype or a larger --margin for their runs."
        )
    nearest = [record for record in records if record.reading == NEAREST_TOKENS]
    read_now = [(record, readings[record.id]) for record in nearest if record.id in readings]
    if other := [
        record for record, found in read_now if tuple(found.ids[:, 0].tolist()) != record.token_ids
    ]:
        said.append(
            f"{count(len(other), 'prompt')} read otherwise now than when they were tuned. This "
            "happens where two tokens are nearly equally near and the embeddings have another "
            "precision. Tables and figures have the reading from then, the strips of tokens have "
            "the reading from now."
        )
    for name, text in MADE_WITH.items():
        kinds = sorted({str(getattr(record.provenance, name)) or "unknown" for record in records})
        if len(kinds) > 1:
            said.append(
                f"The runs were made with different {text} ({'; '.join(kinds)}). This should not "
                "matter beyond rounding, which grows while a prompt is tuned."
            )
    best = p_stars(records)
    if alone := [r for r in records if r.run.has_target and setting(r) not in best]:
        said.append(
            f"{count(len(alone), 'run')} with a target have no p_star of the same task, length and "
            "settings. They have no accuracy drop, and only the table of runs has them."
        )
    return said


def count(n: int, what: str) -> str:
    """Counts things: `1 run`, `2 runs`."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def _scope(records: Sequence[RunRecord]) -> str:
    wayward = [record for record in records if record.run.has_target]
    texts = {record.run.target_text for record in wayward}
    models, tasks = _names(records, "model"), _names(records, "task")
    return (
        f"{count(len(records), 'run')} of {models} on {tasks}: "
        f"{count(len(wayward), 'prompt')} tuned to do the task and to read as a given text "
        f"({count(len(texts), 'text')}), and {count(len(records) - len(wayward), 'prompt')} tuned "
        "for the task alone (p_star)."
    )


def _cost(line: pd.Series, apart: Sequence[str]) -> str:
    """Says how much a group's targets cost; settings in `apart` tell it from other groups."""
    which = "".join(f", {name.replace('_', ' ')} {line[name]}" for name in apart)
    verdict = line["verdict"]
    if line["would_take"]:
        verdict += f"; about {line['would_take']} would tell"
    samples = f"{line['samples']} choices of training examples, " if line["samples"] > 1 else ""
    return (
        f"On {line['task']}, {line['model']} does the task with "
        f"accuracy {line['accuracy']:.3f} under the prompts with a target{which} and "
        f"{line['p_star']:.3f} under p_star: a "
        f"{'gain' if line['drop'] < 0 else 'drop'} of {abs(line['drop']):.1f} % "
        f"(95 % interval of the drop: {line['low']:.1f} to {line['high']:.1f}; "
        f"{count(line['targets'], 'target')}, {count(line['seeds'], 'seed')}, {samples}"
        f"{count(line['runs'], 'run')}; tries: {line['tries']} a target, {line['p_star_tries']} of "
        f"p_star). Verdict: {verdict}.{_constraint_cost(line)}"
    )


def _constraint_cost(line: pd.Series) -> str:
    """Says what the constraint costs at the same start and order of examples."""
    if not line["cost_verdict"]:
        return ""
    return (
        " Against the same start and order of examples without the constraint, the drop is "
        f"{line['cost']:+.1f} % ({line['cost_low']:.1f} to {line['cost_high']:.1f}): "
        f"{line['cost_verdict']}."
    )


def _not_learned(comparisons: Sequence[Comparison]) -> list[str]:
    """Says which tasks p_star does no better than a constant answer, or than no prompt at all."""
    said = {}
    for c in comparisons:
        if not c.learned:
            run, found = c.p_star[0].run, c.p_star_accuracy
            beside = f"majority class {c.p_star[0].majority:.3f}"
            beside += f", no prompt {c.unprompted:.3f}" if c.gain else ""
            said[run.model, run.task] = (
                f"{run.task} was not learned by {run.model} (accuracy of p_star "
                f"{found.value:.3f}, 95 % interval {found.low:.3f} to {found.high:.3f}; {beside}): "
                "take more steps, or another model. Nothing follows on what its prompts read as."
            )
    return list(said.values())


def _moral(free: Sequence[Comparison]) -> str:
    """Says on which task the most different texts are read off prompts without a drop."""
    texts: dict[tuple[str, str], set[str]] = {}
    for comparison in free:
        run = comparison.wayward[0].run
        texts.setdefault((run.model, run.task), set()).add(run.target_text)
    most = max(texts, key=lambda key: len(texts[key]), default=None)
    if most is None or len(texts[most]) < 2:
        return ""
    return (
        f" On {most[1]} alone, {len(texts[most])} different texts are read off "
        "prompts that do one and the same task: what a prompt reads as does not tell what it does."
    )


def _names(records: Sequence[RunRecord], name: str) -> str:
    names = sorted({getattr(record.run, name) for record in records})
    if len(names) > MOST_LINES:
        return f"{len(names)} {name}s"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
