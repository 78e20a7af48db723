"""Which runs speak for a target, and what it cost (paper, section 4.2)."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from wayward_jax.analysis.statistics import Interval, drop_over_examples
from wayward_jax.runs import P_STAR

Row = dict[str, Any]

# A prompt reads as its target from this prompt F1 on, as in the paper.
F1_THRESHOLD = 0.98

# What a wayward prompt has in common with the p_star that it is compared with, besides its length,
# and what a target's own runs have in common.
SETTING = (
    "model",
    "task",
    "method",
    "template",
    "k_shot",
    "data_seed",
    "steps",
    "batch_size",
    "learning_rate",
    "n_eval",
)
# Accuracies by the split that they are of.
ACCURACY = {"dev": "dev_accuracy", "test": "accuracy"}

HELD_BY = ("init", "constraint", "margin")
AIMED_SETTING = (*SETTING, *HELD_BY)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A target's runs at one gamma beside the unconstrained runs of the same task and length.

    Attributes:
        p_star: the rows of the unconstrained runs, one a seed.
        wayward: the rows of the target's runs, one a seed.
    """

    p_star: tuple[Row, ...]
    wayward: tuple[Row, ...]

    @property
    def best_accuracy(self) -> float:
        """Of the unconstrained runs, a mean over seeds."""
        return _mean(self.p_star, "accuracy")

    @property
    def accuracy(self) -> float:
        """Of the target's runs, a mean over seeds."""
        return _mean(self.wayward, "accuracy")

    @property
    def prompt_f1(self) -> float:
        """Of the target's runs, a mean over seeds."""
        return _mean(self.wayward, "prompt_f1")

    @cached_property
    def drop(self) -> Interval:
        """The accuracy drop in percent, and how far other test examples might move it."""
        p_star, wayward = (
            np.stack([correct(row) for row in rows]) for rows in (self.p_star, self.wayward)
        )
        return drop_over_examples(p_star, wayward)


def correct(row: Row) -> np.ndarray:
    """Which test examples a row's run predicted right: `[n_eval]` bool, in the task's order."""
    bits = np.frombuffer(bytes.fromhex(row["correct"]), np.uint8)
    return np.unpackbits(bits, count=row["n_eval"]).astype(bool)


def is_aimed(row: Row) -> bool:
    """Whether a row's run has a target."""
    return row["target_name"] != P_STAR


def setting(row: Row) -> tuple:
    """Equal for the runs that a target's run is compared with, and for itself."""
    return (row["prompt_length"], *(row[name] for name in SETTING))


def p_stars(rows: Sequence[Row]) -> dict[tuple, tuple[Row, ...]]:
    """The unconstrained runs by `setting`."""
    found: dict[tuple, tuple[Row, ...]] = {}
    for row in rows:
        if not is_aimed(row):
            found[setting(row)] = (*found.get(setting(row), ()), row)
    return found


def best_gamma(rows: Sequence[Row], select: str = "dev") -> list[Row]:
    """Of one target's rows, those of the gamma with the highest accuracy.

    Only gammas whose mean prompt F1 reaches `F1_THRESHOLD` are looked at; if there are none, all
    are.

    Args:
        rows: of any gammas and seeds.
        select: the split of the accuracy: `dev`, or `test`, which is reported (as the paper's code
            does it).
    """
    by_gamma: dict[float, list[Row]] = {}
    for row in rows:
        by_gamma.setdefault(row["gamma"], []).append(row)
    faithful = [g for g in by_gamma.values() if _mean(g, "prompt_f1") >= F1_THRESHOLD]
    return max(faithful or by_gamma.values(), key=lambda group: _mean(group, ACCURACY[select]))


def compare(rows: Sequence[Row], select: str = "dev") -> list[Comparison]:
    """A comparison for each task, target and setting, in the order in which targets appear.

    Targets without a p_star of their setting and length are left out. `select` is as for
    `best_gamma`.
    """
    unconstrained = p_stars(rows)
    aimed: dict[tuple, list[Row]] = {}
    for row in rows:
        if is_aimed(row) and (key := setting(row)) in unconstrained:
            target = row["target_name"], row["target_text"], *(row[name] for name in HELD_BY)
            aimed.setdefault((key, target), []).append(row)
    return [
        Comparison(unconstrained[key], tuple(best_gamma(group, select)))
        for (key, _), group in aimed.items()
    ]


def correctness(comparisons: Sequence[Comparison]) -> tuple[np.ndarray, np.ndarray]:
    """What p_star and the targets' runs predict right, by target, seed and example: `[T, S, E]`.

    S counts the seeds that all have; several runs of one are averaged. If they share none, S is 1
    and the values are means over all.
    """
    by_seed = [tuple(map(_by_seed, (c.p_star, c.wayward))) for c in comparisons]
    shared = sorted(set.intersection(*(set(found) for pair in by_seed for found in pair)))
    best, wayward = (
        np.array(
            [
                [pair[i][seed] for seed in shared] or [np.mean([*pair[i].values()], axis=0)]
                for pair in by_seed
            ]
        )
        for i in (0, 1)
    )
    return best, wayward


def _by_seed(rows: Sequence[Row]) -> dict[int, np.ndarray]:
    """How often the runs of each seed predict each example right: `[E]` float32."""
    by_seed: dict[int, list[np.ndarray]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).append(correct(row))
    return {seed: np.mean(each, axis=0, dtype=np.float32) for seed, each in by_seed.items()}


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))
