"""Makes the tables of results (pandas).

Accuracies and F1 values are shares; drops and their differences are in percent. The columns `low`
and `high` are the ends of 95 % confidence intervals of drops, and `least` and `most` those of
shares.
"""

from collections.abc import Sequence
from itertools import combinations
from types import MappingProxyType

import numpy as np
import pandas as pd

from wayward_jax.analysis import detection, statistics
from wayward_jax.analysis.selection import (
    F1_THRESHOLD,
    HELD_BY,
    SETTING,
    Comparison,
    compare,
)
from wayward_jax.analysis.selection import by_target as pool_by_target
from wayward_jax.constraints import BY_CONSTRUCTION
from wayward_jax.jobs.records import Measured
from wayward_jax.runs import P_STAR, RunRecord, read_bits
from wayward_jax.tuning import Records

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

# Each model and each constraint needs gammas of its own.
BRINGING_GAMMAS = ("model", "constraint")

# The columns that tell the lines of a measurement apart, by the name of the experiment.
MEASURED_BY = {
    "path": ("position",),
    "discrete": ("prompt", "calibrated"),
    "transfer": ("kind", "as_text", "to_model", "to_task"),
    "projection": ("metric", "prompt"),
    "readings": ("reading", "prompt"),
    "recover": ("reading", "beside"),
}
SHARE, POSITIVE = (0.0, 1.0), (0.0, np.inf)

# Each measure has a range in which it lies. Ranks are those of `experiments.recover`.
MEASURES = {
    "accuracy": SHARE,
    "task_loss": POSITIVE,
    **dict.fromkeys(("prompt_f1", "token_f1"), SHARE),
    "distance": POSITIVE,
    **dict.fromkeys(("top_1", "top_5", "top_10", "similarity"), SHARE),
    "rank": (1.0, 20.0),
    "first": SHARE,
}

# The words of the tables for an interval.
VERDICTS = {
    statistics.WITHIN: "within {margin:g} %",
    statistics.BEYOND: "beyond {margin:g} %",
    statistics.CANNOT_TELL: "cannot be told",
}
ONE_SEED = "one seed: these prompts only"
NOT_LEARNED = "task not learned"


def target_set(name: str) -> str:
    """The set that a target's name begins with, such as `pile` for `pile/07`."""
    return name.rpartition("/")[0] or name


def tables(
    records: Sequence[RunRecord],
    comparisons: Sequence[Comparison],
    measured: Measured = MappingProxyType({}),
    margin: float = statistics.MARGIN,
) -> dict[str, pd.DataFrame]:
    """Makes the tables that there are data for, by name.

    Args:
        records: all runs.
        comparisons: the comparisons of these runs.
        measured: the measurements of their prompts.
        margin: of verdicts, in percent, see `statistics.Interval.verdict`.
    """
    gammas = by_gamma(records, margin=margin)
    lengths = by_group(comparisons, [*SETTING_NAMES, "prompt_length"], margin)
    made = {
        "groups": by_group(comparisons, margin=margin),
        "targets": by_target(comparisons, margin),
        "gammas": gammas if _several(gammas, "gamma") else pd.DataFrame(),
        "lengths": lengths if _several(lengths, "prompt_length") else pd.DataFrame(),
        "differences": between_groups(comparisons, margin),
        **{name: by_measurement(records, measured, name) for name in MEASURED_BY},
        "gaps": gaps(records, measured, margin),
        "detect": detected(records, measured),
    }
    return {name: frame for name, frame in made.items() if not frame.empty}


def by_target(comparisons: Sequence[Comparison], margin: float = statistics.MARGIN) -> pd.DataFrame:
    """Makes a line for each target and setting, with intervals over seeds and test examples.

    Where there are several choices of training examples, the intervals are over these, too.
    """
    return pd.DataFrame(
        {
            **_setting(pool[0].wayward[0]),
            "data_seed": _data_seeds(pool),
            "target": pool[0].wayward[0].run.target_name,
            "prompt_length": pool[0].wayward[0].run.prompt_length,
            "gamma": np.mean([_gamma(c.wayward) for c in pool]),
            "gamma_found": _gamma_found(pool),
            **_means(pool, margin),
        }
        for pool in pool_by_target(comparisons)
    )


def by_group(
    comparisons: Sequence[Comparison],
    names: Sequence[str] = SETTING_NAMES,
    margin: float = statistics.MARGIN,
) -> pd.DataFrame:
    """Makes a line for each group, with intervals over targets, seeds and test examples.

    Targets that were tuned with the same choices of training examples are in one group, and where
    there are several choices, the intervals are over these, too.

    Args:
        comparisons: the comparisons to summarize.
        names: the columns that tell groups apart, from `SETTING_NAMES` and `prompt_length`.
        margin: of verdicts, in percent.
    """
    lines = []
    for key, group in _groups(comparisons, names).items():
        pools = pool_by_target(group)
        alike = [np.mean([c.prompt_f1 for c in pool]) >= F1_THRESHOLD for pool in pools]
        counts = {"reads_alike": np.mean(alike), "targets": len(pools)}
        lines.append({**dict(key), **_means(group, margin), **counts})
    return pd.DataFrame(lines)


def by_gamma(
    records: Sequence[RunRecord],
    names: Sequence[str] = SETTING_NAMES,
    margin: float = statistics.MARGIN,
) -> pd.DataFrame:
    """Makes the table of `by_group` at each gamma that was given, whether it is the best or not."""
    p_star = [record for record in records if not record.run.has_target]
    given = [r for r in records if r.run.has_target and r.run.constraint not in BY_CONSTRUCTION]
    frames = []
    for gamma in sorted({record.run.gamma for record in given}):
        here = [record for record in given if record.run.gamma in (gamma, 0.0)]
        compared = compare([*p_star, *here])
        own = [each for each in compared if each.wayward[0].run.gamma == gamma]
        frame = by_group(own, names, margin)
        if not frame.empty:
            frame.insert(len(names), "gamma", gamma)
            frames.append(frame)
    return pd.concat(frames) if frames else pd.DataFrame()


def between_groups(
    comparisons: Sequence[Comparison], margin: float = statistics.MARGIN
) -> pd.DataFrame:
    """Tests differences of mean drops between groups that differ in one setting alone.

    Groups of the same targets are compared target by target. Groups that were tuned with other
    gammas are not compared, except for those of other models or constraints. The column `adjusted`
    has p-values that are adjusted for the number of tests.
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
        gammas = [{c.gammas for c in group} for group in (first, second)]
        if gammas[0] != gammas[1] and name not in BRINGING_GAMMAS:
            continue
        drops, others = ([c.beside_p_star for c in group] for group in (first, second))
        common = {each.text for each in drops} & {each.text for each in others}
        paired = len(common) > 1 and name != "data_seed"
        if paired:
            drops, others = (
                [each for each in group if each.text in common] for group in (drops, others)
            )
        of_task = {(c.p_star[0].run.task, c.p_star[0].n_eval) for c in (*first, *second)}
        found = statistics.difference(drops, others, paired=paired, same_examples=len(of_task) == 1)
        targets = [len({each.text for each in group}) for group in (drops, others)]
        lines.append(
            {
                **{key: value for key, value in first_key if key not in (name, *brought)},
                name: f"{a} - {b}",
                "difference": found.value,
                "low": found.low,
                "high": found.high,
                "p_value": found.p_value,
                "verdict": _verdict(found, margin),
                "paired": paired,
                "targets": ", ".join(map(str, targets)),
            }
        )
    if not lines:
        return pd.DataFrame()
    return _tested(pd.DataFrame(lines), margin)


def by_measurement(records: Sequence[RunRecord], measured: Measured, name: str) -> pd.DataFrame:
    """Averages a measurement over the prompts of each group.

    The columns `least` and `most` are the ends of an interval for the first of the means alone,
    within the range of the measure. It is over prompts, and where a row says which test examples
    were answered right, over these, too.

    Args:
        records: all runs.
        measured: the measurements of their prompts.
        name: the name of a measurement in `MEASURED_BY`.
    """
    frame = measurements(records, measured, name)
    if frame.empty:
        return frame
    settings = [column for column in SETTING_NAMES if column != "data_seed"]
    by = [column for column in (*settings, *MEASURED_BY[name]) if column in frame]
    numbers = [column for column in MEASURES if column in frame]
    lines = []
    for key, group in frame.groupby(by, sort=False, dropna=False):
        if "correct" in group:
            first = statistics.accuracy(_correct(group))
        else:
            first = statistics.mean_of(group[numbers[0]].to_numpy())
        means = dict(group[numbers].mean())
        lines.append(
            {
                **dict(zip(by, key, strict=True)),
                numbers[0]: means.pop(numbers[0]),
                "least": np.clip(first.low, *MEASURES[numbers[0]]),
                "most": np.clip(first.high, *MEASURES[numbers[0]]),
                **means,
                "prompts": len(group),
            }
        )
    return pd.DataFrame(lines)


def gaps(
    records: Sequence[RunRecord], measured: Measured, margin: float = statistics.MARGIN
) -> pd.DataFrame:
    """Tests how much better prompts are than their readings and their targets' texts, in points.

    Each prompt is compared with its own texts, on each test example. Intervals are over prompts
    and examples. The column `adjusted` is as in `between_groups`.
    """
    frame = measurements(records, measured, "discrete")
    if frame.empty or "id" not in frame:
        return pd.DataFrame()
    names = [name for name in (*SETTING_NAMES, "calibrated") if name in frame]
    lines = []
    for key, group in frame.dropna(subset="id").groupby(names, sort=False):
        correct = {
            prompt: _correct(own.sort_values("id")) for prompt, own in group.groupby("prompt")
        }
        for text in ("projected", "target"):
            found = statistics.gap(correct["continuous"], correct[text])
            lines.append(
                {
                    **dict(zip(names, key, strict=True)),
                    "prompts": f"continuous - {text}",
                    "gap": found.value,
                    "low": found.low,
                    "high": found.high,
                    "p_value": found.p_value,
                    "verdict": _verdict(found, margin),
                    "pairs": len(correct["continuous"]),
                }
            )
    return _tested(pd.DataFrame(lines), margin)


def _correct(rows: pd.DataFrame) -> np.ndarray:
    """Which test examples each measured prompt answers right: `[N, E]` bool."""
    n_eval = int(rows["n_eval"].iloc[0])
    return np.stack([read_bits(each, n_eval) for each in rows["correct"]])


def detected(records: Sequence[RunRecord], measured: Measured) -> pd.DataFrame:
    """Makes the table of `detection.table`, if prompts were measured for it."""
    frame = measurements(records, measured, "detect")
    return frame if frame.empty else detection.table(frame)


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
    return Records(records).to_frame()


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


def _tested(frame: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Adds adjusted p-values to a table of tests, without which nothing is beyond the margin."""
    frame["adjusted"] = statistics.adjusted(frame["p_value"])
    beyond = frame["verdict"] == VERDICTS[statistics.BEYOND].format(margin=margin)
    chance = ~(frame["adjusted"] < 1 - statistics.LEVEL)
    frame.loc[beyond & chance, "verdict"] = VERDICTS[statistics.CANNOT_TELL]
    return frame


def _means(group: Sequence[Comparison], margin: float) -> dict[str, object]:
    """The columns of accuracies, drops and F1, and of the numbers behind them."""
    drop = statistics.mean_drop([c.beside_p_star for c in group])
    p_stars = {record.id for c in group for record in c.p_star}
    return {
        "majority": np.mean([c.p_star[0].majority for c in group]),
        "unprompted": np.mean([c.unprompted for c in group]),
        "p_star": np.mean([c.best_accuracy for c in group]),
        "accuracy": np.mean([c.accuracy for c in group]),
        **_drop(group, drop, margin),
        "f1": np.mean([c.prompt_f1 for c in group]),
        "seeds": drop.seeds,
        "samples": len({c.beside_p_star.choice for c in group}),
        "runs": len(p_stars) + sum(len(c.wayward) for c in group),
        **_tries(group),
    }


def _drop(
    group: Sequence[Comparison], drop: statistics.Interval, margin: float
) -> dict[str, object]:
    """The columns of a drop, and of the drop from runs of the same start without the constraint."""
    learned = all(c.learned for c in group)
    verdict = _verdict(drop, margin) if learned else NOT_LEARNED
    columns = {
        "drop": drop.value,
        "low": drop.low,
        "high": drop.high,
        "verdict": verdict,
        "would_take": _would_take(drop, margin) if learned else "",
    }
    beside = [c.beside_unconstrained for c in group]
    cost = statistics.Interval(np.nan)
    if all(each is not None for each in beside):
        cost = statistics.mean_drop(beside)
    known = not np.isnan(cost.value)
    return {
        **columns,
        "cost": cost.value,
        "cost_low": cost.low,
        "cost_high": cost.high,
        "cost_verdict": (_verdict(cost, margin) if learned else NOT_LEARNED) if known else "",
    }


def _tries(group: Sequence[Comparison]) -> dict[str, int]:
    """The most tries that a target of a group has, and the fewest of its p_star."""
    return {
        "tries": max(c.tries for c in group),
        "p_star_tries": min(c.p_star_tries for c in group),
    }


def _verdict(found: statistics.Interval, margin: float) -> str:
    if not found.of_seeds:
        return ONE_SEED
    return VERDICTS[found.verdict(margin)].format(margin=margin)


def _would_take(found: statistics.Interval, margin: float) -> str:
    """The seeds or examples that a verdict would take; empty if there is a verdict."""
    if not found.of_seeds or found.verdict(margin) != statistics.CANNOT_TELL:
        return ""
    seeds, examples = found.needed(margin)
    ways = [f"{seeds} seeds"] if seeds else []
    ways += [f"{examples:,} examples"] if examples else []
    return " or ".join(ways) or "more seeds and more examples"


def _several(frame: pd.DataFrame, column: str) -> bool:
    return not frame.empty and frame[column].nunique() > 1


def _kind(record: RunRecord) -> str:
    return "wayward" if record.run.has_target else P_STAR


def _setting(record: RunRecord, names: Sequence[str] = SETTING_NAMES) -> dict[str, object]:
    own = {"set": target_set(record.run.target_name), "n_eval": record.n_eval}
    return {name: own[name] if name in own else getattr(record.run, name) for name in names}


def _gamma(records: Sequence[RunRecord]) -> float:
    """The gamma that was given, or the mean of those that were found while tuning."""
    found = [record.final_gamma for record in records if record.run.constraint == "dual"]
    return float(np.mean(found)) if found else records[0].run.gamma


def _gamma_found(pool: Sequence[Comparison]) -> str:
    """What is known of the gammas that a target's runs found, empty if they were given."""
    found = {record.gamma_found for c in pool for record in c.wayward}
    return ", ".join(sorted(each for each in found if each))


def _groups(
    comparisons: Sequence[Comparison], names: Sequence[str] = SETTING_NAMES
) -> dict[tuple, list[Comparison]]:
    groups: dict[tuple, list[Comparison]] = {}
    for pool in pool_by_target(comparisons):
        own = {**_setting(pool[0].wayward[0], names), "data_seed": _data_seeds(pool)}
        groups.setdefault(tuple(own.items()), []).extend(pool)
    return groups


def _data_seeds(pool: Sequence[Comparison]) -> str:
    """The choices of training examples that a target was tuned with."""
    return ", ".join(map(str, sorted({c.wayward[0].run.data_seed for c in pool})))
