"""Draws the figures of results (matplotlib, no display)."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from wayward_jax.analysis import tables
from wayward_jax.analysis.measured_figures import measured_figures
from wayward_jax.analysis.selection import Comparison, ModelKey, model_key
from wayward_jax.analysis.style import (
    P_STAR_COLOR,
    SERIES_COLORS,
    STYLE,
    WAYWARD_COLOR,
    labels,
    legend,
    spread,
)
from wayward_jax.jobs.records import Measured
from wayward_jax.runs import CurvePoint, RunRecord

# If there are more labels below an axis, they are slanted.
MOST_TICKS_IN_LINE = 6


def figures(
    records: Sequence[RunRecord],
    comparisons: Sequence[Comparison],
    parameters: Mapping[ModelKey, int] = MappingProxyType({}),
    measured: Measured = MappingProxyType({}),
) -> dict[str, Figure]:
    """Draws the figures that there are data for, by name.

    Args:
        records: all runs.
        comparisons: the comparisons of these runs.
        parameters: the number of parameters of each model, as far as it is known.
        measured: the measurements of the runs' prompts.
    """
    made = {"training": training_curves(records)}
    if not comparisons:
        return made
    made = {"main": main_comparison(comparisons), **made}
    # Only the main figure tells target sets apart.
    names = [name for name in tables.SETTING_NAMES if name != "set"]
    known = [c for c in comparisons if model_key(c.wayward[0]) in parameters]
    sizes = tables.by_group(known, names)
    if known:
        keys = zip(sizes["model"], sizes["model_digest"], strict=True)
        sizes["parameters"] = [parameters[key] for key in keys]
    for name, frame, axis in (
        ("gamma", tables.by_gamma(records, names), "gamma"),
        ("length", tables.by_group(comparisons, [*names, "prompt_length"]), "prompt_length"),
        ("model_size", sizes, "parameters"),
    ):
        if axis in frame and frame[axis].nunique() > 1:
            made[name] = against(frame, axis)
    return made | measured_figures(records, measured)


def save(made: Mapping[str, Figure], folder: Path) -> None:
    """Writes every figure as `<name>.png` and `<name>.svg`."""
    for name, figure in made.items():
        figure.savefig(folder / f"{name}.png", dpi=160)
        (folder / f"{name}.svg").write_text(to_svg(name, figure), encoding="utf-8")


def to_svg(name: str, figure: Figure, *, transparent: bool = False) -> str:
    """Writes a figure as SVG with text as text; the same figure gives the same SVG.

    The ids inside are made from `name`, so that figures with different names can share a page.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=transparent, metadata=nothing)
    return file.getvalue()


@matplotlib.rc_context(STYLE)
def main_comparison(comparisons: Sequence[Comparison]) -> Figure:
    """Draws accuracy, drop and F1 of every group, with a dot for each target."""
    frame, each = tables.by_group(comparisons), tables.by_target(comparisons)
    names = labels(frame)
    figure = Figure(figsize=(9, 1.5 + 0.55 * len(frame)), layout="constrained")
    accuracy, drop, f1 = figure.subplots(1, 3, sharey=True, width_ratios=(3, 3, 2))
    setting = list(tables.SETTING_NAMES)
    for y, (_, group) in enumerate(frame.iterrows()):
        own = each[(each[setting] == group[setting]).all(axis=1)]
        at = y + 0.22 * spread(len(own))
        dots = {"s": 14, "alpha": 0.5, "linewidths": 0}
        accuracy.scatter(own["accuracy"], at, color=WAYWARD_COLOR, **dots)
        accuracy.scatter(own["p_star"], at, color=P_STAR_COLOR, **dots)
        drop.scatter(own["drop"], at, color=WAYWARD_COLOR, **dots)
        f1.scatter(own["f1"], at, color=WAYWARD_COLOR, **dots)
        wide = {"markersize": 7, "linewidth": 2.2}
        accuracy.plot(group["accuracy"], y, "o", color=WAYWARD_COLOR, **wide)
        accuracy.plot(group["p_star"], y, "D", color=P_STAR_COLOR, **wide)
        drop.plot([group["low"], group["high"]], [y, y], color=WAYWARD_COLOR, **wide)
        drop.plot(group["drop"], y, "o", color=WAYWARD_COLOR, **wide)
        f1.plot(group["f1"], y, "o", color=WAYWARD_COLOR, **wide)
    drop.axvline(0, color=P_STAR_COLOR, linewidth=1)
    accuracy.set(xlabel="accuracy", title="◆ p_star   ● wayward", yticks=range(len(names)))
    accuracy.set_yticklabels(names)
    accuracy.set_ylim(len(names) - 0.5, -0.5)
    drop.set(xlabel="accuracy drop, %", title="95 % interval of the mean")
    f1.set(xlabel="prompt F1", title="reads as the target", xlim=(-0.04, 1.04))
    for axes in (accuracy, drop, f1):
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    return figure


@matplotlib.rc_context(STYLE)
def against(frame: pd.DataFrame, axis: str) -> Figure:
    """Draws prompt F1 and accuracy drop against a column of a table of `tables.by_group`."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    f1, drop = figure.subplots(1, 2)
    for number, (label, series) in enumerate(_series(frame, axis)):
        color = SERIES_COLORS[number % len(SERIES_COLORS)]
        series = series.sort_values(axis)
        f1.plot(series[axis], series["f1"], "o-", color=color, label=label)
        drop.plot(series[axis], series["drop"], "o-", color=color, label=label)
        drop.fill_between(
            series[axis], series["low"], series["high"], color=color, alpha=0.15, linewidth=0
        )
    drop.axhline(0, color=P_STAR_COLOR, linewidth=1)
    f1.set(ylabel="prompt F1", title="reads as the target", ylim=(-0.04, 1.04))
    drop.set(ylabel="accuracy drop, %", title="costs, with 95 % intervals")
    for axes in (f1, drop):
        axes.set_xlabel(axis.replace("_", " "))
        axes.grid(axis="y")
        if axis != "prompt_length":
            _logarithmic(axes, sorted(set(frame[axis])))
    legend(figure, f1)
    return figure


@matplotlib.rc_context(STYLE)
def training_curves(records: Sequence[RunRecord]) -> Figure:
    """Draws dev accuracy and prompt F1 along training: means, and bands that hold 80 % of the runs.

    Runs of different numbers of steps have separate curves.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    accuracy, f1 = figure.subplots(1, 2)
    p_star = [record.curve for record in records if not record.run.has_target]
    wayward = [record.curve for record in records if record.run.has_target]
    for curves, color, label in (
        (p_star, P_STAR_COLOR, "p_star: best prompt, no constraint"),
        (wayward, WAYWARD_COLOR, "wayward: reads as the target"),
    ):
        _band(accuracy, curves, "dev_accuracy", color, label)
    _band(f1, wayward, "prompt_f1", WAYWARD_COLOR, "wayward")
    accuracy.set(ylabel="accuracy on dev", title="does the task")
    f1.set(ylabel="prompt F1", title="reads as the target", ylim=(-0.03, 1.03))
    for axes in (accuracy, f1):
        axes.set_xlabel("step")
        axes.grid(axis="y")
    legend(figure, accuracy)
    return figure


def _logarithmic(axes: Any, values: Sequence[float]) -> None:
    """Makes the x-axis logarithmic, with ticks at its values, the least of which may be 0."""
    least = next(value for value in values if value > 0)
    axes.set_xscale("symlog", linthresh=least)
    texts = [f"{v / 1e6:.0f} M" if v >= 1e6 else f"{v:g}" for v in values]
    crowded = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(values, texts, **(crowded if len(values) > MOST_TICKS_IN_LINE else {}))
    axes.set_xticks([], minor=True)
    axes.set_xlim(-0.1 * least if values[0] == 0 else 0.8 * least, 1.25 * values[-1])


def _band(
    axes: Any, curves: Sequence[Sequence[CurvePoint]], name: str, color: str, label: str | None
) -> None:
    by_steps: dict[tuple, list[list[float]]] = {}
    for curve in curves:
        steps = tuple(point.step for point in curve)
        by_steps.setdefault(steps, []).append([getattr(point, name) for point in curve])
    for steps, values in by_steps.items():
        low, high = np.percentile(values, [10, 90], axis=0)
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.plot(steps, np.mean(values, axis=0), "o-", color=color, linewidth=2.2, label=label)
        label = None


def _series(frame: pd.DataFrame, axis: str) -> Any:
    but = ("model",) if axis == "parameters" else ()
    return frame.assign(label=labels(frame, axis, *but)).groupby("label", sort=False)
