"""Shows the results of a job on a terminal (rich)."""

from collections.abc import Mapping, Sequence

import pandas as pd
from rich.cells import cell_len
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
        console.print(_table(frame), crop=False)
        console.print()
    for note in _notes(frames):
        console.print(Text(note))
        console.print()
    compared = [each.wayward[0] for each in analysis.comparisons]
    if with_target := compared or [record for record in records if record.run.has_target]:
        first = with_target[0]
        console.print(_token_strip(first, analysis.token_texts.get(model_key(first), {})))


def _notes(frames: Sequence[pd.DataFrame]) -> list[str]:
    """What there is to know of the drops of tables."""
    with_drops = [frame for frame in frames if "drop" in frame]
    notes = [captions.ONE_SEED] if any(_of_one_seed(frame) for frame in with_drops) else []
    return [*notes, captions.NUMERICAL_FLOOR] if with_drops else []


def _of_one_seed(frame: pd.DataFrame) -> bool:
    return "verdict" in frame and (frame["verdict"] == tables.ONE_SEED).all()


def _table(frame: pd.DataFrame) -> Table:
    """Makes a table in which words stay whole, also where the terminal is too narrow for that."""
    left_out = [*WIDE]
    left_out += ["verdict"] if _of_one_seed(frame) else []
    left_out += ["set"] if "target" in frame else []  # the names of targets begin with it
    frame = frame.drop(columns=left_out, errors="ignore").dropna(axis=1, how="all")
    cells, numbers = shown_tables.shown(frame, always=[])
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for name, number in zip(cells, numbers, strict=True):
        words = " ".join([name, *cells[name]]).split()
        table.add_column(
            Text(name),
            justify="right" if number else "left",
            vertical="bottom",
            overflow="fold",
            min_width=max(map(cell_len, words)),
        )
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
