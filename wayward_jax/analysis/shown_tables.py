"""Tables as readers see them, and their files: CSV, Markdown and LaTeX."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from wayward_jax.analysis import escaping
from wayward_jax.analysis.tables import ALWAYS_SHOWN, SETTING_NAMES, differing

# Readers see these names in place of the columns' names.
NAMES = {
    "p_star": "p_star",
    "unprompted": "no prompt",
    "drop": "drop, %",
    "difference": "difference, %",
    "gap": "gap, points",
    "cost": "constraint costs, %",
    "cost_low": "from ",
    "cost_high": "to ",
    "cost_verdict": "verdict ",
    "gamma_found": "this gamma",
    "would_take": "a verdict would take",
    "p_star_tries": "tries of p_star",
    "low": "from",
    "high": "to",
    "least": "from",
    "most": "to",
    "f1": "prompt F1",
    "first": "ranked first",
    "prompt_f1": "prompt F1",
    "token_f1": "token F1",
    "reads_alike": "read as target",
    "p_value": "p",
    "adjusted": "adjusted p",
}
FORMATS = {
    **dict.fromkeys(
        (
            *("p_star", "accuracy", "majority", "unprompted", "least", "most", "task_loss"),
            *("f1", "prompt_f1", "token_f1", "reads_alike", "distance", "similarity"),
            *("top_1", "top_5", "top_10", "first", "area", "p_value", "adjusted"),
        ),
        "{:.3f}",
    ),
    **dict.fromkeys(
        ("drop", "cost", "cost_low", "cost_high", "low", "high", "difference", "gap"), "{:+.1f}"
    ),
    **dict.fromkeys(("gamma", "learning_rate", "weight_decay"), "{:.3g}"),
    "rank": "{:.1f}",
}


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
    if "samples" in frame and (frame["samples"] == 1).all():
        hidden.add("samples")
    if "gamma_found" in frame and (frame["gamma_found"] == "").all():
        hidden.add("gamma_found")
    names = [name for name in frame if name not in hidden]
    texts = {
        NAMES.get(name, name.replace("_", " ")): [_text(name, value) for value in frame[name]]
        for name in names
    }
    return pd.DataFrame(texts), [frame[name].dtype.kind in "if" for name in names]


def write(frame: pd.DataFrame, folder: Path, name: str) -> None:
    """Writes all columns to `name.csv`, and the table of `shown` to `name.md` and `name.tex`."""
    escaping.in_csv(frame).to_csv(folder / f"{name}.csv", index=False)
    table, numbers = shown(frame)
    align = ["right" if number else "left" for number in numbers]
    markdown = _escaped(table, escaping.in_markdown).to_markdown(
        index=False, disable_numparse=True, colalign=align
    )
    latex = _escaped(table, escaping.in_latex).to_latex(
        index=False, escape=False, column_format="".join(a[0] for a in align)
    )
    (folder / f"{name}.md").write_text(markdown + "\n", encoding="utf-8")
    (folder / f"{name}.tex").write_text(latex, encoding="utf-8")


def _escaped(table: pd.DataFrame, escape: Callable[[str], str]) -> pd.DataFrame:
    return table.map(escape).rename(columns=escape)


def _text(name: str, value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, float) and np.isnan(value):
        return ""
    return FORMATS.get(name, "{}").format(value)
