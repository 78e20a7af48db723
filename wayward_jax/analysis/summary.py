"""Says in plain words what a set of runs shows."""

from collections.abc import Mapping, Sequence

import pandas as pd

from wayward_jax.analysis import tables
from wayward_jax.analysis.selection import F1_THRESHOLD, Comparison, p_stars, setting
from wayward_jax.readings import Reading
from wayward_jax.runs import RunRecord

# Longer lists are left to the tables.
MOST_LINES = 6


def summary(
    records: Sequence[RunRecord], comparisons: Sequence[Comparison], by_task: pd.DataFrame
) -> list[str]:
    """Writes a few sentences, the most general one first.

    Args:
        records: all runs.
        comparisons: the comparisons of these runs.
        by_task: the comparisons as a table of `tables.by_group`, all target sets together.
    """
    said = [_scope(records)]
    if comparisons:
        alike = [c for c in comparisons if c.prompt_f1 >= F1_THRESHOLD]
        free = [c for c in alike if c.drop.within_noise]
        said.append(
            f"Targets that can be read off their prompts: {len(alike)} of {len(comparisons)}. The "
            f"nearest tokens spell the text (prompt F1 of at least {F1_THRESHOLD:g})."
        )
        apart = [name for name in tables.differing(by_task) if name not in tables.ALWAYS_SHOWN]
        said += [_cost(line, apart) for _, line in by_task.head(MOST_LINES).iterrows()]
        said.append(
            "Targets among those whose drop is within the noise of the test examples: "
            f"{len(free)} of {len(alike)}.{_moral(free)}"
        )
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
    read_now = [(record, readings[record.id]) for record in records if record.id in readings]
    if other := [
        record for record, found in read_now if tuple(found.ids[:, 0].tolist()) != record.token_ids
    ]:
        said.append(
            f"{count(len(other), 'prompt')} read otherwise now than when they were tuned. This "
            "happens where two tokens are nearly equally near and the embeddings have another "
            "precision. Tables and figures have the reading from then, the strips of tokens have "
            "the reading from now."
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
    noise = ", which is within noise" if line["within_noise"] else ""
    return (
        f"On {line['task']}, {line['model']} does the task with "
        f"accuracy {line['accuracy']:.3f} under the prompts with a target{which} and "
        f"{line['p_star']:.3f} under p_star: a "
        f"{'gain' if line['drop'] < 0 else 'drop'} of {abs(line['drop']):.1f} % "
        f"(95 % interval of the drop: {line['low']:.1f} to {line['high']:.1f}; "
        f"{count(line['targets'], 'target')}, {count(line['seeds'], 'seed')}, "
        f"{count(line['runs'], 'run')}){noise}."
    )


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
