"""Whether scores tell wayward prompts from honest ones: areas under ROC curves.

No direction of a score is assumed: whether wayward prompts have the higher or the lower scores is
learned from all tasks but one, and tried on the one that is left out. An area below a half says
that the direction did not carry over.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats

from wayward_jax.analysis.statistics import LEVEL
from wayward_jax.runs import P_STAR

WAYWARD, DESCRIPTION = "wayward", "true description"

SCORES = {
    "distance": "mean distance of the vectors from their nearest tokens",
    "margin": "mean margin: how much farther the second nearest token is (squared distances)",
    "norm": "mean norm of the vectors",
    "metrics_agree": "share of vectors with the same nearest token under cosine and dot product",
    "lens_loss": "loss of the lens after half of the layers, for the nearest tokens",
    "verbal_loss": "loss of the verbal reading, for the nearest tokens",
    "says_reading": "similarity of what the model says of the prompt and its nearest tokens",
    "sharpness": "rise of the task's loss under noise of a tenth of the prompt's norm",
}

# All scores together, by Fisher's linear discriminant. Its covariance is drawn a part of the way to
# the diagonal, because there are few prompts for so many scores.
TOGETHER, SHRINKAGE = "all together", 0.1


# Areas nearer than this to 0 and 1 count as this far.
TINY = 1e-9


class Area(NamedTuple):
    """The area under a ROC curve with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Makes a line for each score and each kind of honest prompts that it is told from.

    Args:
        frame: a line for each prompt, with its model, task, kind (`prompt`) and `SCORES`.

    Returns:
        It is empty where there are fewer than two tasks with prompts of both kinds.
    """
    lines = []
    for (model, honest), own in _comparisons(frame):
        is_wayward = (own["prompt"] == WAYWARD).to_numpy()
        values, tasks = own[list(SCORES)].to_numpy(float), own["task"].to_numpy()
        columns = {name: values[:, [i]] for i, name in enumerate(SCORES)} | {TOGETHER: values}
        for name, column in columns.items():
            found = left_out(column, is_wayward, tasks)
            line = {"model": model, "honest": honest, "score": name, **found._asdict()}
            lines.append({**line, "tasks": len(set(tasks)), "prompts": len(own)})
    # Intervals of drops, in percent, are from `low` to `high`; those of measures have these names.
    return pd.DataFrame(lines).rename(columns={"value": "area", "low": "least", "high": "most"})


def _comparisons(frame: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """The prompts of each model that are compared, of the tasks that have both kinds."""
    found = []
    for model, of_model in frame.groupby("model", sort=False):
        for honest in (DESCRIPTION, P_STAR):
            own = of_model[of_model["prompt"].isin((WAYWARD, honest))]
            own = own.groupby("task").filter(lambda task: task["prompt"].nunique() == 2)
            if not own.empty and own["task"].nunique() > 1:
                found.append(((model, honest), own))
    return found


def left_out(values: np.ndarray, is_wayward: np.ndarray, tasks: np.ndarray) -> Area:
    """The mean area over tasks, each with the direction that tells the prompts of the others apart.

    Args:
        values: `[P, S]`, S scores of each prompt.
        is_wayward: `[P]` bool.
        tasks: `[P]`, of at least two tasks.
    """
    areas, sizes = [], []
    for task in dict.fromkeys(tasks):
        here = tasks == task
        weights = direction(values[~here], is_wayward[~here])
        combined = values[here] @ weights
        wayward, honest = combined[is_wayward[here]], combined[~is_wayward[here]]
        areas.append(area(wayward, honest))
        sizes.append((len(wayward), len(honest)))
    return with_interval(float(np.mean(areas)), sizes)


def direction(values: np.ndarray, is_wayward: np.ndarray) -> np.ndarray:
    """Fisher's linear discriminant: the weights `[S]` that tell prompts `[P, S]` apart."""
    spread = values.std(axis=0)
    scale = np.where(spread > 0, spread, 1)
    means = [values[own].mean(axis=0) / scale for own in (is_wayward, ~is_wayward)]
    inside = values / scale - np.where(is_wayward[:, None], *means)
    covariance = inside.T @ inside / max(len(values) - 2, 1)
    diagonal = np.diag(np.diag(covariance)) + 1e-6 * np.eye(len(covariance))
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * diagonal
    return np.linalg.solve(shrunk, means[0] - means[1]) / scale


def area(wayward: np.ndarray, honest: np.ndarray) -> float:
    """The share of pairs whose wayward prompt has the higher score; equal ones count half."""
    apart = wayward[:, None] - honest
    return float((np.sign(apart).mean() + 1) / 2)


def with_interval(value: float, sizes: Sequence[tuple[int, int]]) -> Area:
    """The mean of the areas of several tasks, with its interval by Newcombe's method 5 (2006).

    The interval holds all areas whose own standard error, by Hanley and McNeil (1982) with the mean
    of the two sizes in place of each, explains the value. It is wide where there are few prompts,
    also if a score tells all of them apart.

    Args:
        value: the mean area.
        sizes: for each task, the numbers of wayward and of honest prompts.
    """
    quantile = stats.norm.ppf((1 + LEVEL) / 2)

    def error(true: float) -> float:
        spread = (1 - true) / (2 - true) + true / (1 + true)
        variances = [
            true * (1 - true) * (1 + ((m + n) / 2 - 1) * spread) / (m * n) for m, n in sizes
        ]
        return math.sqrt(sum(variances)) / len(sizes)

    def end(outer: float) -> float:
        def beyond(true: float) -> float:
            return abs(true - value) - quantile * error(true)

        inside = min(max(value, TINY), 1 - TINY)  # at 0 and at 1 there is no error
        return outer if beyond(outer) <= 0 else float(optimize.brentq(beyond, inside, outer))

    return Area(value, end(0.0), end(1.0))
