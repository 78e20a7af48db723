"""Which run speaks for a target, and what it cost (paper, section 4.2)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from wayward_jax.metrics import accuracy_drop
from wayward_jax.runs import P_STAR

Row = dict[str, Any]

# A prompt reads as its target from this prompt F1 on, as in the paper.
F1_THRESHOLD = 0.98

# What a wayward prompt has in common with the p_star that it is compared with.
SETTING = ("model", "task", "method", "template", "k_shot", "data_seed", "prompt_length")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A target's best gamma beside the unconstrained prompts of the same task and length.

    Accuracies and F1 are means over seeds; the drop is relative and in percent.

    Attributes:
        p_star: the rows of the unconstrained runs.
        wayward: the rows of the target's runs at the chosen gamma.
        best_accuracy: of the unconstrained runs.
        accuracy: of the target's runs.
        drop: `(best_accuracy - accuracy) / best_accuracy`, in percent.
        prompt_f1: of the target's runs.
    """

    p_star: tuple[Row, ...]
    wayward: tuple[Row, ...]
    best_accuracy: float
    accuracy: float
    drop: float
    prompt_f1: float


def best_gamma(rows: Sequence[Row]) -> list[Row]:
    """Of one target's rows, those of the gamma with the highest dev accuracy.

    Only gammas whose mean prompt F1 reaches `F1_THRESHOLD` are looked at; if there are none, all
    are. (The paper's code chooses on the split that it reports.)
    """
    by_gamma: dict[float, list[Row]] = {}
    for row in rows:
        by_gamma.setdefault(row["gamma"], []).append(row)
    faithful = [g for g in by_gamma.values() if _mean(g, "prompt_f1") >= F1_THRESHOLD]
    return max(faithful or by_gamma.values(), key=lambda group: _mean(group, "dev_accuracy"))


def compare(rows: Sequence[Row]) -> list[Comparison]:
    """One comparison a task, target and prompt length, in the order in which targets appear."""
    unconstrained: dict[tuple, list[Row]] = {}
    aimed: dict[tuple, list[Row]] = {}
    for row in rows:
        setting = tuple(row[name] for name in SETTING)
        if row["target_name"] == P_STAR:
            unconstrained.setdefault(setting, []).append(row)
        else:
            aimed.setdefault((*setting, row["target_name"]), []).append(row)
    comparisons = []
    for (*setting, _), group in aimed.items():
        p_star, wayward = unconstrained[tuple(setting)], best_gamma(group)
        best, accuracy = _mean(p_star, "accuracy"), _mean(wayward, "accuracy")
        comparisons.append(
            Comparison(
                p_star=tuple(p_star),
                wayward=tuple(wayward),
                best_accuracy=best,
                accuracy=accuracy,
                drop=accuracy_drop(best, accuracy),
                prompt_f1=_mean(wayward, "prompt_f1"),
            )
        )
    return comparisons


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))
