"""What a set of runs shows, in plain words."""

from collections.abc import Mapping, Sequence

import pandas as pd

from wayward_jax.analysis import tables
from wayward_jax.analysis.readings import Reading
from wayward_jax.analysis.selection import F1_THRESHOLD, Comparison, Row, is_aimed, p_stars, setting

# Longer lists are for the tables.
MOST_LINES = 6


def summary(
    rows: Sequence[Row], comparisons: Sequence[Comparison], by_task: pd.DataFrame
) -> list[str]:
    """A few sentences, the most general first.

    Args:
        rows: of all runs.
        comparisons: of them.
        by_task: a `tables.by_group` of the comparisons, all target sets together.
    """
    said = [_scope(rows)]
    if comparisons:
        alike = [c for c in comparisons if c.prompt_f1 >= F1_THRESHOLD]
        free = [c for c in alike if c.drop.within_noise]
        said.append(
            f"Targets that can be read off their prompts: {len(alike)} of {len(comparisons)}. The "
            f"nearest tokens spell the text (prompt F1 of at least {F1_THRESHOLD:g})."
        )
        apart = [n for n in tables.differing(by_task) if n not in tables.ALWAYS_SHOWN]
        said += [_cost(line, apart) for _, line in by_task.head(MOST_LINES).iterrows()]
        said.append(
            "Targets among those whose drop is within the noise of the test examples: "
            f"{len(free)} of {len(alike)}.{_moral(free)}"
        )
    return said


def title(rows: Sequence[Row]) -> str:
    """Of a page about the runs."""
    models, tasks = _names(rows, "model"), _names(rows, "task")
    return f"{models} on {tasks}, {count(len(rows), 'run')}"


def reservations(rows: Sequence[Row], readings: Mapping[str, Reading]) -> list[str]:
    """What a reader of the summary should know about the runs behind it.

    Args:
        rows: of all runs.
        readings: by run id, as far as the prompts could be read anew.
    """
    said = []
    if diverged := [row for row in rows if row["diverged_at"] is not None]:
        said.append(
            f"{count(len(diverged), 'run')} diverged: from then on the prompt stayed as it was. It "
            "is counted like the others."
        )
    anew = [(row, readings[row["id"]]) for row in rows if row["id"] in readings]
    if other := [1 for row, found in anew if found.ids[:, 0].tolist() != row["token_ids"]]:
        said.append(
            f"{count(len(other), 'prompt')} read otherwise here than when they were tuned, as "
            "happens to near-ties where embeddings have another precision. Tables and figures have "
            "the reading from then, strips the one from here."
        )
    best = p_stars(rows)
    if alone := [row for row in rows if is_aimed(row) and setting(row) not in best]:
        said.append(
            f"{count(len(alone), 'run')} with a target have no p_star of their own task, length "
            "and settings: without it there is no accuracy drop, and they are in the table of runs "
            "alone."
        )
    return said


def count(n: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def _scope(rows: Sequence[Row]) -> str:
    aimed = [row for row in rows if is_aimed(row)]
    texts = {row["target_text"] for row in aimed}
    models, tasks = _names(rows, "model"), _names(rows, "task")
    return (
        f"{count(len(rows), 'run')} of {models} on {tasks}: "
        f"{count(len(aimed), 'prompt')} tuned to do the task and to read as a given text "
        f"({count(len(texts), 'text')}), and {count(len(rows) - len(aimed), 'prompt')} tuned for "
        "the task alone (p_star)."
    )


def _cost(line: pd.Series, apart: Sequence[str]) -> str:
    """How much a group's targets cost; `apart` names what else tells it from other groups."""
    which = "".join(f", {name.replace('_', ' ')} {line[name]}" for name in apart)
    noise = ", which is within noise" if line["within_noise"] else ""
    return (
        f"On {tables.short(line['task'])}, {tables.short(line['model'])} does the task with "
        f"accuracy {line['accuracy']:.3f} under the prompts with a target{which} and "
        f"{line['p_star']:.3f} under p_star: a "
        f"{'gain' if line['drop'] < 0 else 'drop'} of {abs(line['drop']):.1f} % "
        f"(95 % interval of the drop: {line['low']:.1f} to {line['high']:.1f}; "
        f"{count(line['targets'], 'target')}, {count(line['seeds'], 'seed')}, "
        f"{count(line['runs'], 'run')}){noise}."
    )


def _moral(free: Sequence[Comparison]) -> str:
    """Texts that differ cannot all say what one task is."""
    texts: dict[tuple, set[str]] = {}
    for c in free:
        row = c.wayward[0]
        texts.setdefault((row["model"], row["task"]), set()).add(row["target_text"])
    most = max(texts, key=lambda key: len(texts[key]), default=None)
    if most is None or len(texts[most]) < 2:
        return ""
    return (
        f" On {tables.short(most[1])} alone, {len(texts[most])} different texts are read off "
        "prompts that do one and the same task: what a prompt reads as does not tell what it does."
    )


def _names(rows: Sequence[Row], name: str) -> str:
    names = sorted({tables.short(row[name]) for row in rows})
    if len(names) > MOST_LINES:
        return f"{len(names)} {name}s"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
