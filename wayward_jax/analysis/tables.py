"""Makes the tables of results (pandas), and writes them as CSV, Markdown and LaTeX.

Accuracies and F1 values are shares; drops and their differences are in percent. The columns `low`
and `high` are the ends of 95 % confidence intervals of drops, and `least` and `most` those of
shares.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from wayward_jax.analysis import statistics
from wayward_jax.analysis.selection import (
    F1_THRESHOLD,
    HELD_BY,
    SETTING,
    Comparison,
    compare,
    correctness,
)
from wayward_jax.jobs.records import Measured
from wayward_jax.runs import P_STAR, RunRecord

ALWAYS_SHOWN = ("model", "task", "set")

# These columns tell groups of targets apart.
SETTING_NAMES = (
    *ALWAYS_SHOWN,
    *(name for name in SETTING if name not in ALWAYS_SHOWN),
    *("n_eval", *HELD_BY),
)

# The values of these settings may determine those of other settings.
BRINGING = ("model", "task", "constraint")

# Groups that differ in the first of two settings may also differ in the second.
BROUGHT = {"model": "model_digest", "constraint": "margin"}

# The columns that tell the lines of a measurement apart, by the name of the experiment.
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

# Readers see these names in place of the columns' names.
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
    **dict.fromkeys(("gamma", "learning_rate", "weight_decay"), "{:.3g}"),
}


def target_set(name: str) -> str:
    """The set that a target's name begins with, such as `pile` for `pile/07`."""
    return name.rpartition("/")[0] or name


def tables(
    records: Sequence[RunRecord],
    comparisons: Sequence[Comparison],
    measured: Measured = MappingProxyType({}),
) -> dict[str, pd.DataFrame]:
    """Makes the tables that there are data for, by name.

    Args:
        records: all runs.
        comparisons: the comparisons of these runs.
        measured: the measurements of their prompts.
    """
    gammas = by_gamma(records)
    lengths = by_group(comparisons, [*SETTING_NAMES, "prompt_length"])
    made = {
        "groups": by_group(comparisons),
        "targets": by_target(comparisons),
        "gammas": gammas if _several(gammas, "gamma") else pd.DataFrame(),
        "lengths": lengths if _several(lengths, "prompt_length") else pd.DataFrame(),
        "differences": between_groups(comparisons),
        **{name: by_measurement(records, measured, name) for name in MEASURED_BY},
        "gaps": gaps(records, measured),
    }
    return {name: frame for name, frame in made.items() if not frame.empty}


def by_target(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Makes a line for each comparison, with intervals over test examples."""
    return pd.DataFrame(
        {
            **_setting(c.wayward[0]),
            "target": c.wayward[0].run.target_name,
            "prompt_length": c.wayward[0].run.prompt_length,
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
    """Makes a line for each group, with intervals over targets, seeds and test examples.

    Args:
        comparisons: the comparisons to summarize.
        names: the columns that tell groups apart, from `SETTING_NAMES` and `prompt_length`.
    """
    lines = []
    for key, group in _groups(comparisons, names).items():
        best, wayward = correctness(group)
        drop = statistics.drop_over_all(best, wayward)
        p_stars = {record.id for c in group for record in c.p_star}
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


def by_gamma(records: Sequence[RunRecord], names: Sequence[str] = SETTING_NAMES) -> pd.DataFrame:
    """Makes the table of `by_group` at each gamma that was given, whether it is the best or not."""
    p_star = [record for record in records if not record.run.has_target]
    given = [r for r in records if r.run.has_target and r.run.constraint == "penalty"]
    frames = []
    for gamma in sorted({record.run.gamma for record in given}):
        here = [record for record in given if record.run.gamma == gamma]
        frame = by_group(compare([*p_star, *here]), names)
        if not frame.empty:
            frame.insert(len(names), "gamma", gamma)
            frames.append(frame)
    return pd.concat(frames) if frames else pd.DataFrame()


def between_groups(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Tests differences of mean drops between groups that differ in one setting alone.

    Groups of the same targets are compared target by target. The column `adjusted` has p-values
    that are adjusted for the number of tests.
    """
    lines = []
    for (first_key, first), (second_key, second) in combinations(_groups(comparisons).items(), 2):
        apart = [
            (name, a, b) for (name, a), (_, b) in zip(first_key, second_key, strict=True) if a != b
        ]
        brought = [BROUGHT.get(name) for name, *_ in apart]
        apart = [each for each in apart if each[0] not in brought]
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
                **{key: value for key, value in first_key if key not in (name, *brought)},
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


def by_measurement(records: Sequence[RunRecord], measured: Measured, name: str) -> pd.DataFrame:
    """Averages a measurement over the prompts of each group.

    The columns `least` and `most` are the ends of an interval over prompts, for the first of the
    means alone.

    Args:
        records: all runs.
        measured: the measurements of their prompts.
        name: the name of a measurement in `MEASURED_BY`.
    """
    frame = measurements(records, measured, name)
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


def gaps(records: Sequence[RunRecord], measured: Measured) -> pd.DataFrame:
    """Tests how much better prompts are than their readings and their targets' texts, in points.

    Each prompt is compared with its own texts. The column `adjusted` is as in `between_groups`.
    """
    frame = measurements(records, measured, "discrete")
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


def measurements(records: Sequence[RunRecord], measured: Measured, name: str) -> pd.DataFrame:
    """Makes a line for each measured row, with the settings of the run that it is about."""
    settings = {record.id: {"kind": _kind(record), **_setting(record)} for record in records}
    return pd.DataFrame(
        {**settings.get(line.get("id"), {}), **line}
        for lines in measured.get(name, {}).values()
        for line in lines
        if line.get("id") is None or line["id"] in settings
    )


def by_run(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Makes a line for each run, with all that its record has but for lists."""
    nested = ["curve", "correct", "target_ids", "token_ids"]
    return pd.DataFrame([record.to_json() for record in records]).drop(columns=nested)


def differing(frame: pd.DataFrame) -> list[str]:
    """The settings that tell the lines of a table apart.

    Settings that follow from models, tasks and constraints, such as a margin, are left out.
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
    """Makes a table for readers, which has settings only where they differ and all cells as text.

    Args:
        frame: the table.
        always: settings that are shown in any case.

    Returns:
        The table, and for each of its columns whether it holds numbers.
    """
    hidden = {*SETTING_NAMES, "prompt_length"} - {*always} - {*differing(frame)}
    names = [name for name in frame if name not in hidden]
    texts = {
        NAMES.get(name, name.replace("_", " ")): [_text(name, value) for value in frame[name]]
        for name in names
    }
    return pd.DataFrame(texts), [frame[name].dtype.kind in "if" for name in names]


def write(frame: pd.DataFrame, folder: Path, name: str) -> None:
    """Writes all columns to `name.csv`, and the table of `shown` to `name.md` and `name.tex`."""
    frame.to_csv(folder / f"{name}.csv", index=False)
    table, numbers = shown(frame)
    align = ["right" if number else "left" for number in numbers]
    markdown = table.to_markdown(index=False, disable_numparse=True, colalign=align)
    latex = table.to_latex(index=False, escape=True, column_format="".join(a[0] for a in align))
    (folder / f"{name}.md").write_text(markdown + "\n", encoding="utf-8")
    (folder / f"{name}.tex").write_text(latex, encoding="utf-8")


def _tested(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds adjusted p-values to a table of tests, and whether they are within noise."""
    frame["adjusted"] = statistics.adjusted(frame["p_value"])
    frame["within_noise"] = ~(frame["adjusted"] < 1 - statistics.LEVEL)
    return frame


def _several(frame: pd.DataFrame, column: str) -> bool:
    return not frame.empty and frame[column].nunique() > 1


def _text(name: str, value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, float) and np.isnan(value):
        return ""
    return FORMATS.get(name, "{}").format(value)


def _kind(record: RunRecord) -> str:
    return "wayward" if record.run.has_target else P_STAR


def _setting(record: RunRecord, names: Sequence[str] = SETTING_NAMES) -> dict[str, object]:
    own = {"set": target_set(record.run.target_name), "n_eval": record.n_eval}
    return {name: own[name] if name in own else getattr(record.run, name) for name in names}


def _gamma(records: Sequence[RunRecord]) -> float:
    """The gamma that was given, or the mean of those that were found while tuning."""
    found = [record.final_gamma for record in records if record.run.constraint == "dual"]
    return float(np.mean(found)) if found else records[0].run.gamma


def _groups(
    comparisons: Sequence[Comparison], names: Sequence[str] = SETTING_NAMES
) -> dict[tuple, list[Comparison]]:
    groups: dict[tuple, list[Comparison]] = {}
    for c in comparisons:
        groups.setdefault(tuple(_setting(c.wayward[0], names).items()), []).append(c)
    return groups


def _drops(comparisons: Sequence[Comparison]) -> pd.Series:
    """The drops by target."""
    runs = [c.wayward[0].run for c in comparisons]
    names = pd.MultiIndex.from_tuples([(run.target_name, run.target_text) for run in runs])
    return pd.Series([c.drop.value for c in comparisons], index=names)
