"""Draws the figures of measurements of finished prompts (matplotlib, no display)."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from wayward_jax.analysis import tables
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
from wayward_jax.runs import P_STAR, RunRecord

CORNERS = ("p_star", "wayward", "target")
PATH_PANELS = {
    "accuracy": "accuracy",
    "task_loss": "task loss, nats a token",
    "prompt_f1": "prompt F1",
    "distance": "squared distance to the target",
}
DISCRETE_PROMPTS = {"continuous": "as tuned", "projected": "its reading", "target": "target's text"}
REFERENCES = {"zero-shot": ":", "few-shot": "--"}


def measured_figures(records: Sequence[RunRecord], measured: Measured) -> dict[str, Figure]:
    """Draws the figures that there are data for, by the name of the measurement."""
    made = {}
    for name, make in (
        *(("path", path), ("discrete", discrete), ("transfer", transfer)),
        ("readings", readings),
    ):
        frame = tables.measurements(records, measured, name)
        if not frame.empty:
            made[name] = make(frame)
    return made


@matplotlib.rc_context(STYLE)
def path(frame: pd.DataFrame) -> Figure:
    """Draws what changes along the lines: means, and bands that hold 80 % of the prompts."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    series = frame.assign(label=labels(frame, "position", "set")).groupby("label", sort=False)
    for number, (label, own) in enumerate(series):
        color = SERIES_COLORS[number % len(SERIES_COLORS)]
        for axes, column in zip(panels.flat, PATH_PANELS, strict=True):
            of_position = own.groupby("position")[column]
            low, high = of_position.quantile(0.1), of_position.quantile(0.9)
            axes.fill_between(low.index, low, high, color=color, alpha=0.15, linewidth=0)
            mean = of_position.mean()
            axes.plot(mean.index, mean, color=color, linewidth=2.2, label=label)
    for axes, title in zip(panels.flat, PATH_PANELS.values(), strict=True):
        axes.set_title(title)
        axes.set_xticks(range(len(CORNERS)), CORNERS)
        axes.grid()
    panels[1, 0].set_ylim(-0.04, 1.04)
    legend(figure, panels[0, 0])
    return figure


@matplotlib.rc_context(STYLE)
def discrete(frame: pd.DataFrame) -> Figure:
    """Draws accuracies of prompts and texts: small dots are prompts, large dots are means."""
    groups = list(frame.groupby(["model", "task"], sort=False))
    figure = Figure(figsize=(9, 0.8 + 2.1 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 2, sharex=True, sharey=True, squeeze=False)
    for (plain, corrected), ((model, task), own) in zip(panels, groups, strict=True):
        plain.set_title(f"{model}   {task}")
        corrected.set_title("calibrated")
        for axes, is_corrected in ((plain, False), (corrected, True)):
            _discrete_panel(axes, own[own["calibrated"] == is_corrected])
    for axes in panels[-1]:
        axes.set_xlabel("accuracy")
    legend(figure, panels[0, 0])
    return figure


def _discrete_panel(axes: matplotlib.axes.Axes, frame: pd.DataFrame) -> None:
    for y, prompt in enumerate(DISCRETE_PROMPTS):
        accuracy = frame.loc[frame["prompt"] == prompt, "accuracy"]
        color = WAYWARD_COLOR if prompt == "continuous" else SERIES_COLORS[1]
        at = y + 0.22 * spread(len(accuracy))
        axes.scatter(accuracy, at, color=color, s=14, alpha=0.5, linewidths=0)
        axes.plot(accuracy.mean(), y, "o", color=color, markersize=7)
    for prompt, line in REFERENCES.items():
        accuracy = frame.loc[frame["prompt"] == prompt, "accuracy"]
        if len(accuracy):
            axes.axvline(accuracy.mean(), color=P_STAR_COLOR, linestyle=line, label=prompt)
    axes.set_yticks(range(len(DISCRETE_PROMPTS)), DISCRETE_PROMPTS.values())
    axes.set_ylim(len(DISCRETE_PROMPTS) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


@matplotlib.rc_context(STYLE)
def transfer(frame: pd.DataFrame) -> Figure:
    """Draws matrices of mean accuracies, from the tasks and models of rows to those of columns."""
    frame = frame.assign(
        source=_places(frame, "model", "task"), to=_places(frame, "to_model", "to_task")
    )
    groups = list(frame.groupby(["kind", "as_text"], sort=False))
    sources, places = frame["source"].unique(), frame["to"].unique()
    width = 1.6 + 0.9 * len(places)
    size = (max(4.5, width * len(groups)), 1.6 + 0.5 * len(sources))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, ((kind, as_text), own) in zip(panels, groups, strict=True):
        means = own.pivot_table(index="source", columns="to", values="accuracy")
        _matrix(axes, means.reindex(index=sources, columns=places))
        axes.set_title(f"{kind}, as text" if as_text else kind)
    panels[0].set_ylabel("tuned for")
    figure.supxlabel("used on", fontsize=10)
    return figure


@matplotlib.rc_context(STYLE)
def readings(frame: pd.DataFrame) -> Figure:
    """Draws a matrix of mean F1, from the constraint of rows to the reading of columns."""
    is_wayward = frame["prompt"] == "wayward"
    frame = frame.assign(held=frame["constraint"].where(is_wayward, P_STAR))
    means = frame.pivot_table(index="held", columns="reading", values="prompt_f1", sort=False)
    figure = Figure(
        figsize=(2.2 + 0.9 * means.shape[1], 1.8 + 0.5 * len(means)), layout="constrained"
    )
    axes = figure.subplots()
    _matrix(axes, means)
    axes.set_xlabel("read by")
    axes.set_ylabel("held by")
    return figure


def _matrix(axes: matplotlib.axes.Axes, values: pd.DataFrame) -> None:
    """Draws shares as colored cells with their numbers."""
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    for (y, x), value in np.ndenumerate(values.to_numpy()):
        if not np.isnan(value):
            # The text is black in dark mode, too, because the cells keep their colors there.
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", color="black")
    axes.set_xticks(range(values.shape[1]), values.columns, rotation=30, ha="right")
    axes.set_yticks(range(len(values)), values.index)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _places(frame: pd.DataFrame, model: str, task: str) -> pd.Series:
    """Names tasks, together with models if there are several models."""
    if frame[model].nunique() == 1:
        return frame[task]
    return frame[model] + " " + frame[task]
