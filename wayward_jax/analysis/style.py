"""The colors, labels and legends that all figures have in common."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from wayward_jax.analysis import tables

INK, GRID, P_STAR_COLOR, WAYWARD_COLOR = "#24292f", "#d8dbe0", "#808791", "#cf4453"
SERIES_COLORS = (WAYWARD_COLOR, "#3b76b5", "#bd7f1c", "#3f8f6b", "#8a63b8", "#8d6e63")

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    "grid.color": GRID,
}


def legend(figure: Figure, axes: Any) -> None:
    """Puts a legend below the figure if the axes have several labels."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=2)


def labels(frame: pd.DataFrame, *but: str) -> list[str]:
    """Labels the lines of a group table by the settings that tell them apart, and by their tasks.

    Settings in `but` are left out.
    """
    apart = {"task", *tables.differing(frame)} - {*but}
    names = [name for name in tables.SETTING_NAMES if name in apart]
    return ["   ".join(str(line[name]) for name in names) for _, line in frame.iterrows()]


def spread(n: int) -> np.ndarray:
    """n evenly spaced numbers from -1 to 1; a single one is 0."""
    return np.linspace(-1, 1, n) if n > 1 else np.zeros(1)
