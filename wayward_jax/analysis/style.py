"""What all figures have in common: colours, labels, legends."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from wayward_jax.analysis import tables

INK, GRID, P_STAR_COLOR, WAYWARD_COLOR = "#24292f", "#d8dbe0", "#808791", "#cf4453"
SERIES_COLORS = (WAYWARD_COLOR, "#3b76b5", "#bd7f1c", "#3f8f6b", "#8a63b8", "#8d6e63")

STYLE = {
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
    """A legend below the figure, if there are several things to tell apart."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=2)


def labels(frame: pd.DataFrame, *but: str) -> list[str]:
    """What tells the lines of a group table apart, a text each; tasks are always named."""
    apart = {"task", *tables.differing(frame)} - {*but}
    names = [name for name in tables.SETTING_NAMES if name in apart]
    return [
        "   ".join(tables.short(str(line[name])) for name in names) for _, line in frame.iterrows()
    ]


def spread(n: int) -> np.ndarray:
    """n places between -1 and 1."""
    return np.linspace(-1, 1, n) if n > 1 else np.zeros(1)
