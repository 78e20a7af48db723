"""Tables of results (pandas), and their files as CSV, Markdown and LaTeX.

Accuracies and F1 are shares, drops and their differences are in percent. `low` and `high` end 95 %
confidence intervals, and `least` and `most` those of shares.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from wayward_jax.analysis import statistics
from wayward_jax.analysis.selection import (
    AIMED_SETTING,
    F1_THRESHOLD,
    Comparison,
    Row,
    compare,
    correctness,
    is_aimed,
)
from wayward_jax.jobs.finished import Measured
from wayward_jax.runs import P_STAR

ALWAYS_SHOWN = ("model", "task", "set")

# What tells groups of targets apart.
SETTING_NAMES = (*ALWAYS_SHOWN, *(n for n in AIMED_SETTING if n not in ALWAYS_SHOWN))

# Settings of which others may be a consequence.
BRINGING = ("model", "task", "constraint")

# What was measured by the name of the experiment, and what tells its lines apart.
MEASURED_BY = {
    "path": ("position",),
    "discrete": ("prompt", "calibrated"),
    "transfer": ("kind", "as_text", "to_model", "to_task"),
    "projection": ("metric", "prompt"),
}
MEASURES = (
    *("accuracy", "task_loss", "prompt_f1", "token_f1", "distance"),
    *("top_1", "top_5", "top_10"),
)

# Column names that readers see, where they are not the columns' own.
NAMES = {
    "p_star": "p_star",
    "drop": "drop, %",
    "difference": "difference, %",
    "gap": "gap, points",
    "low": "from",
    "high": "to",
    "least": "from",
    "most": "to",
    "f1": "prompt F1",
    "prompt_f1": "prompt F1",
    "token_f1": "token F1",
    "reads_alike": "read as target",
    "p_value": "p",
    "adjusted": "adjusted p",
}
FORMATS = {
    **dict.fromkeys(("p_star", "accuracy", "f1", "p_value", "adjusted"), "{:.3f}"),
    **dict.fromkeys(("prompt_f1", "token_f1", "reads_alike"), "{:.3f}"),
    **dict.fromkeys(
        ("least", "most", "task_loss", "distance", "top_1", "top_5", "top_10"), "{:.3f}"
    ),
    **dict.fromkeys(("drop", "low", "high", "difference", "gap"), "{:+.1f}"),
    **dict.fromkeys(("gamma", "learning_rate"), "{:.3g}"),
}


def target_set(name: str) -> str:
    """The set of a target's name: `pile` of `pile/07`."""
    return name.rpartition("/")[0] or name


def short(name: str) -> str:
    """What to call a model or task where there is little room: of a path, its end."""
    return Path(name).name if name.startswith(("/", "~", ".")) else name


def tables(
    rows: Sequence[Row],
    comparisons: Sequence[Comparison],
    measured: Measured = MappingProxyType({}),
) -> dict[str, pd.DataFrame]:
    """By name, the tables that there are data for.

    Args:
        rows: of results.
        comparisons: of them.
        measured: of their prompts.
    """
    gammas = by_gamma(rows)
    lengths = by_group(comparisons, [*SETTING_NAMES, "prompt_length"])
    made = {
        "groups": by_group(comparisons),
        "targets": by_target(comparisons),
        "gammas": gammas if _several(gammas, "gamma") else pd.DataFrame(),
        "lengths": lengths if _several(lengths, "prompt_length") else pd.DataFrame(),
        "differences": between_groups(comparisons),
        **{name: by_measurement(rows, measured, name) for name in MEASURED_BY},
        "gaps": gaps(rows, measured),
    }
    return {name: frame for name, frame in made.items() if not frame.empty}


def by_target(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """A line a comparison; intervals are over test examples."""
    return pd.DataFrame(
        {
            **_setting(c.wayward[0]),
            "target": c.wayward[0]["target_name"],
            "prompt_length": c.wayward[0]["prompt_length"],
            "gamma": _gamma(c.wayward),
            "p_star": c.best_accuracy,
            "accuracy": c.accuracy,
            "drop": c.drop.value,
            "low": c.drop.low,
            "high": c.drop.high,
            "within_noise": c.drop.within_noise,
            "f1": c.prompt_f1,
            "runs": len(c.p_star) + len(c.wayward),
        }
        for c in comparisons
    )


def by_group(
    comparisons: Sequence[Comparison], names: Sequence[str] = SETTING_NAMES
) -> pd.DataFrame:
    """A line for every model, task and target set; intervals are over targets, seeds and test
    examples.

    Args:
        comparisons: to summarise.
        names: what tells groups apart: attributes of a run, or `set`.
    """
    lines = []
    for key, group in _groups(comparisons, names).items():
        best, wayward = correctness(group)
        drop = statistics.drop_over_all(best, wayward)
        p_stars = {row["id"] for c in group for row in c.p_star}
        lines.append(
            {
                **dict(key),
                "p_star": best.mean(),
                "accuracy": wayward.mean(),
                "drop": drop.value,
                "low": drop.low,
                "high": drop.high,
                "within_noise": drop.within_noise,
                "f1": np.mean([c.prompt_f1 for c in group]),
                "reads_alike": np.mean([c.prompt_f1 >= F1_THRESHOLD for c in group]),
                "targets": len(group),
                "seeds": wayward.shape[1],
                "runs": len(p_stars) + sum(len(c.wayward) for c in group),
            }
        )
    return pd.DataFrame(lines)


def by_gamma(rows: Sequence[Row], names: Sequence[str] = SETTING_NAMES) -> pd.DataFrame:
    """`by_group` at each gamma that was given, chosen or not."""
    p_star = [row for row in rows if not is_aimed(row)]
    given = [row for row in rows if is_aimed(row) and row["constraint"] == "penalty"]
    frames = []
    for gamma in sorted({row["gamma"] for row in given}):
        here = [row for row in given if row["gamma"] == gamma]
        frame = by_group(compare([*p_star, *here]), names)
        if not frame.empty:
            frame.insert(len(names), "gamma", gamma)
            frames.append(frame)
    return pd.concat(frames) if frames else pd.DataFrame()


def between_groups(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Differences of mean drops between groups that differ in one thing alone.

    Groups of the same targets are compared target by target. `adjusted` holds p-values that allow
    for how many tests there are.
    """
    lines = []
    for (first_key, first), (second_key, second) in combinations(_groups(comparisons).items(), 2):
        apart = [
            (name, a, b) for (name, a), (_, b) in zip(first_key, second_key, strict=True) if a != b
        ]
        if "constraint" in (name for name, *_ in apart):  # which brings its margin with it
            apart = [each for each in apart if each[0] != "margin"]
        if len(apart) != 1:
            continue
        (name, a, b) = apart[0]
        drops, others = _drops(first), _drops(second)
        common = drops.index.intersection(others.index)
        paired = len(common) > 1
        if paired:
            drops, others = drops[common], others[common]
        found = statistics.difference(drops.to_numpy(), others.to_numpy(), paired=paired)
        lines.append(
            {
                **{key: value for key, value in first_key if key != name},
                name: f"{a} - {b}",
                "difference": found.value,
                "p_value": found.p_value,
                "paired": paired,
                "targets": f"{len(drops)}, {len(others)}",
            }
        )
    if not lines:
        return pd.DataFrame()
    return _tested(pd.DataFrame(lines))


def by_measurement(rows: Sequence[Row], measured: Measured, name: str) -> pd.DataFrame:
    """Means of all that was measured, of the prompts of a group together.

    `least` and `most` end the interval over prompts of the first of these means.

    Args:
        rows: of the runs.
        measured: of their prompts.
        name: of `MEASURED_BY`.
    """
    frame = measurements(rows, measured, name)
    if frame.empty:
        return frame
    by = [column for column in (*SETTING_NAMES, *MEASURED_BY[name]) if column in frame]
    numbers = [column for column in MEASURES if column in frame]
    lines = []
    for key, group in frame.groupby(by, sort=False, dropna=False):
        first = statistics.mean_over_prompts(group[numbers[0]].to_numpy())
        means = dict(group[numbers].mean())
        lines.append(
            {
                **dict(zip(by, key, strict=True)),
                numbers[0]: means.pop(numbers[0]),
                "least": first.low,
                "most": first.high,
                **means,
                "prompts": len(group),
            }
        )
    return pd.DataFrame(lines)


def gaps(rows: Sequence[Row], measured: Measured) -> pd.DataFrame:
    """How much better prompts are than their readings, and than the targets' texts, in points.

    Each prompt is compared with its own texts. `adjusted` is as for `between_groups`.
    """
    frame = measurements(rows, measured, "discrete")
    if frame.empty or "id" not in frame:
        return pd.DataFrame()
    names = [name for name in (*SETTING_NAMES, "calibrated") if name in frame]
    lines = []
    for key, group in frame.dropna(subset="id").groupby(names, sort=False):
        accuracy = 100 * group.pivot(index="id", columns="prompt", values="accuracy")
        for text in ("projected", "target"):
            found = statistics.difference(
                accuracy["continuous"].to_numpy(), accuracy[text].to_numpy(), paired=True
            )
            lines.append(
                {
                    **dict(zip(names, key, strict=True)),
                    "prompts": f"continuous - {text}",
                    "gap": found.value,
                    "p_value": found.p_value,
                    "pairs": len(accuracy),
                }
            )
    return _tested(pd.DataFrame(lines))


def measurements(rows: Sequence[Row], measured: Measured, name: str) -> pd.DataFrame:
    """A line for each row of what was measured, with the settings of the run that it is about."""
    settings = {row["id"]: {"kind": _kind(row), **_setting(row)} for row in rows}
    return pd.DataFrame(
        {**settings.get(line.get("id"), {}), **line}
        for lines in measured.get(name, {}).values()
        for line in lines
        if line.get("id") is None or line["id"] in settings
    )


def by_run(rows: Sequence[Row]) -> pd.DataFrame:
    """The results as they are, a line a run."""
    nested = ("curve", "correct", "target_ids", "token_ids")
    return pd.DataFrame([{k: v for k, v in row.items() if k not in nested} for row in rows])


def differing(frame: pd.DataFrame) -> list[str]:
    """Settings that tell the lines of a table apart.

    Those that models, tasks and constraints bring with them (a margin, steps) do not.
    """
    names = [
        name
        for name in (*SETTING_NAMES, "prompt_length")
        if name in frame and frame[name].nunique() > 1
    ]
    if bringing := [name for name in names if name in BRINGING]:
        brought = (frame.groupby(bringing).nunique() <= 1).all()
        names = [name for name in names if name in ALWAYS_SHOWN or not brought.get(name, False)]
    return names


def shown(
    frame: pd.DataFrame, always: Sequence[str] = ALWAYS_SHOWN
) -> tuple[pd.DataFrame, list[bool]]:
    """A table for readers: settings only where they differ, all cells as text.

    Args:
        frame: the table.
        always: settings that are shown in any case.

    Returns:
        The table, and which of its columns are numbers.
    """
    hidden = {*SETTING_NAMES, "prompt_length"} - {*always} - {*differing(frame)}
    names = [name for name in frame if name not in hidden]
    texts = {
        NAMES.get(name, name.replace("_", " ")): [_text(name, value) for value in frame[name]]
        for name in names
    }
    return pd.DataFrame(texts), [frame[name].dtype.kind in "if" for name in names]


def write(frame: pd.DataFrame, folder: Path, name: str) -> None:
    """Writes `name.csv` in full, and `name.md` and `name.tex` as `shown`."""
    frame.to_csv(folder / f"{name}.csv", index=False)
    table, numbers = shown(frame)
    align = ["right" if number else "left" for number in numbers]
    markdown = table.to_markdown(index=False, disable_numparse=True, colalign=align)
    latex = table.to_latex(index=False, escape=True, column_format="".join(a[0] for a in align))
    (folder / f"{name}.md").write_text(markdown + "\n", encoding="utf-8")
    (folder / f"{name}.tex").write_text(latex, encoding="utf-8")


def _tested(frame: pd.DataFrame) -> pd.DataFrame:
    """With `p_value`s adjusted, and what they say."""
    frame["adjusted"] = statistics.adjusted(frame["p_value"])
    frame["within_noise"] = ~(frame["adjusted"] < 1 - statistics.LEVEL)
    return frame


def _several(frame: pd.DataFrame, column: str) -> bool:
    return not frame.empty and frame[column].nunique() > 1


def _text(name: str, value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float) and np.isnan(value):
        return ""
    if isinstance(value, str):
        return " - ".join(map(short, value.split(" - ")))
    return FORMATS.get(name, "{}").format(value)


def _kind(row: Row) -> str:
    return "wayward" if is_aimed(row) else P_STAR


def _setting(row: Row, names: Sequence[str] = SETTING_NAMES) -> dict[str, object]:
    values = {**row, "set": target_set(row["target_name"])}
    return {name: values[name] for name in names}


def _gamma(rows: Sequence[Row]) -> float:
    """The one that was given or, where it was found while tuning, a mean of those."""
    found = [row["final_gamma"] for row in rows if row["constraint"] == "dual"]
    return float(np.mean(found)) if found else rows[0]["gamma"]


def _groups(
    comparisons: Sequence[Comparison], names: Sequence[str] = SETTING_NAMES
) -> dict[tuple, list[Comparison]]:
    groups: dict[tuple, list[Comparison]] = {}
    for c in comparisons:
        groups.setdefault(tuple(_setting(c.wayward[0], names).items()), []).append(c)
    return groups


def _drops(comparisons: Sequence[Comparison]) -> pd.Series:
    """The drops by target."""
    rows = [c.wayward[0] for c in comparisons]
    names = pd.MultiIndex.from_tuples([(r["target_name"], r["target_text"]) for r in rows])
    return pd.Series([c.drop.value for c in comparisons], index=names)
