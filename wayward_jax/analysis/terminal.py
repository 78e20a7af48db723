"""Shows the results of a job on a terminal (rich)."""

from collections.abc import Mapping, Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wayward_jax.analysis import captions, shown_tables, tables
from wayward_jax.analysis.analyze import Analysis
from wayward_jax.analysis.selection import model_key
from wayward_jax.runs import RunRecord

# A terminal is narrow: only the files of tables have these columns.
WIDE = [
    *("majority", "unprompted", "tries", "p_star_tries", "would_take", "seeds", "samples", "runs"),
    *("cost_low", "cost_high", "cost_verdict"),
]

# The columns of the table of runs, which is shown if there is no other.
OF_A_RUN = ["task", "target_name", "gamma", "accuracy", "prompt_f1"]


def show(analysis: Analysis, names: Sequence[str], console: Console) -> None:
    """Shows tables of a job's results, and the tokens of one target beside those that were read.

    If no table can be made, because there is no p_star to compare with, the runs are listed.

    Args:
        analysis: of the job.
        names: the names of the tables to show.
        console: where they are shown.
    """
    records = analysis.records
    frames = [analysis.tables[name] for name in names if name in analysis.tables]
    for frame in frames or [tables.by_run(records)[OF_A_RUN]]:
        console.print(_table(frame))
        console.print()
    if any("drop" in frame for frame in frames):
        console.print(Text(captions.NUMERICAL_FLOOR))
        console.print()
    compared = [each.wayward[0] for each in analysis.comparisons]
    if with_target := compared or [record for record in records if record.run.has_target]:
        first = with_target[0]
        console.print(_token_strip(first, analysis.token_texts.get(model_key(first), {})))


def _table(frame: pd.DataFrame) -> Table:
    frame = frame.drop(columns=WIDE, errors="ignore").dropna(axis=1, how="all")
    cells, numbers = shown_tables.shown(frame, always=["task"])
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for name, number in zip(cells, numbers, strict=True):
        justify = "right" if number else "left"
        table.add_column(Text(name), justify=justify, vertical="bottom", overflow="fold")
    for row in cells.itertuples(index=False):
        table.add_row(*map(Text, row))
    return table


def _token_strip(record: RunRecord, texts: Mapping[int, str]) -> Table:
    """Makes a line for each token of a target, beside the token that the prompt reads as.

    A token whose text is not known is shown as its id.
    """
    strip = Table("target", "reads as", box=None, pad_edge=False)
    for target, read in zip(record.run.target_ids, record.token_ids, strict=True):
        color = "green" if read == target else "red"
        shown = [repr(texts.get(token, token)) for token in (target, read)]  # shows spaces
        strip.add_row(Text(shown[0]), Text(shown[1], style=color))
    return strip
