"""Figures of results (matplotlib, no display)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from wayward_jax.runs import P_STAR

P_STAR_COLOR, WAYWARD_COLOR = "#8a8f98", "#d1495b"


def training_curves(rows: Sequence[dict[str, Any]]) -> Figure:
    """Dev accuracy and prompt F1 along training: a thin line a run, a thick one their mean.

    Args:
        rows: of a results file, each with its `curve`; runs of equally many steps.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    accuracy, f1 = figure.subplots(1, 2)
    p_star = [row["curve"] for row in rows if row["target_name"] == P_STAR]
    wayward = [row["curve"] for row in rows if row["target_name"] != P_STAR]
    for curves, color, label in (
        (p_star, P_STAR_COLOR, "p_star: best prompt, no constraint"),
        (wayward, WAYWARD_COLOR, "wayward: reads as the target"),
    ):
        _lines(accuracy, curves, "dev_accuracy", color, label)
    _lines(f1, wayward, "prompt_f1", WAYWARD_COLOR, "wayward")
    accuracy.set(ylabel="accuracy on dev", title="does the task")
    f1.set(ylabel="prompt F1", title="reads as the target", ylim=(-0.03, 1.03))
    figure.legend(
        *accuracy.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2
    )
    for axes in (accuracy, f1):
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    return figure


def _lines(axes: Any, curves: Sequence[list[dict]], name: str, color: str, label: str) -> None:
    if not curves:
        return
    steps = [point["step"] for point in curves[0]]
    values = np.array([[point[name] for point in curve] for curve in curves], float)
    if len(curves) > 1:
        axes.plot(steps, values.T, color=color, alpha=0.25, linewidth=0.8)
    axes.plot(steps, values.mean(axis=0), color=color, linewidth=2.2, marker="o", label=label)
