"""What a person sees while a job runs and when it ends."""

import time
from collections.abc import Mapping, Sequence
from typing import Self

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from wayward_jax.analysis import tables
from wayward_jax.analysis.selection import compare, is_aimed
from wayward_jax.jobs.finished import Measured
from wayward_jax.jobs.tensorboard import TensorBoardWriter
from wayward_jax.jobs.throughput import Figures
from wayward_jax.models.tokenizer import Tokenizer

OF_A_RUN = ("task", "target_name", "gamma", "accuracy", "prompt_f1")

SECONDS_BETWEEN_LINES = 20


class ProgressReporter:
    """Shows how far a job has come: a bar on a terminal, now and then a line in a log.

    The same figures go to a `TensorBoardWriter`, if there is one.
    """

    def __init__(self, console: Console, board: TensorBoardWriter | None = None) -> None:
        self._console, self._board, self._step = console, board, 0
        self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, state="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        if self._board:
            self._board.close()

    def doing(self, what: str) -> None:
        """Says what is being done before, between or after the steps."""
        self._bar.update(self._task, description=what)
        if not self._console.is_terminal:
            self._console.print(what)

    def note(self, what: str) -> None:
        """Says something that stays on the screen."""
        self._console.print(what, soft_wrap=True)

    def planned(self, steps: int) -> None:
        """Says how many steps there will be."""
        self._bar.reset(self._task, total=steps)

    def begun(self, population: str) -> None:
        """Says that a population's steps begin."""
        self._step = 0
        if self._board:
            self._board.begin(population)

    def stepped(self, steps: int, figures: Figures) -> None:
        """Counts steps, and shows figures of the last of them."""
        self._step += steps
        if self._board:
            self._board.write(self._step, figures)
        state = f"steps  {_line(figures)}"
        self._bar.update(self._task, advance=steps, state=state)
        if (
            not self._console.is_terminal
            and time.monotonic() > self._last_line + SECONDS_BETWEEN_LINES
        ):
            self._last_line = time.monotonic()
            done = self._bar.tasks[0]
            self._console.print(f"{done.completed:.0f}/{done.total:.0f} {state}", soft_wrap=True)

    def tuned(self, curve: Mapping[int, Figures], outcome: Figures) -> None:
        """Shows what became of a population: figures by step, and in the end."""
        if self._board:
            for step, figures in curve.items():
                self._board.write(step, figures)
            self._board.write(self._step, outcome)
        if not self._console.is_terminal:
            *_, last = curve.values()
            self._console.print(_line({**outcome, **last}), soft_wrap=True)


# How a figure is shown, in this order.
SHOWN = {
    "task_loss/mean": "loss {:.3f}",
    "accuracy/mean": "accuracy {:.3f}",
    "dev_accuracy/mean": "dev accuracy {:.3f}",
    "prompt_f1/mean": "prompt F1 {:.2f}",
    "distance/mean": "distance {:.3g}",
    "tokens_per_second": "{:.0f} tokens/s",
    "mfu": "{:.0%} of peak",
    "memory_gib": "{:.1f} GiB",
}


def _line(figures: Figures) -> str:
    return "  ".join(form.format(figures[name]) for name, form in SHOWN.items() if name in figures)


def show(
    rows: Sequence[dict],
    measured: Measured,
    tokenizers: Mapping[str, Tokenizer],
    names: Sequence[str],
    console: Console,
    select: str = "dev",
) -> None:
    """Tables of a job's results, and a target's tokens beside those that were read.

    Without a p_star to compare with there are no tables, and the runs are shown as they are.

    Args:
        rows: of the results.
        measured: of their prompts.
        tokenizers: by model.
        names: of the tables.
        console: where they are shown.
        select: the split that gammas are chosen on.
    """
    comparisons = compare(rows, select)
    made = tables.tables(rows, comparisons, measured)
    frames = [made[name] for name in names if name in made]
    for frame in frames or [tables.by_run(rows)[list(OF_A_RUN)]]:
        console.print(_table(frame))
        console.print()
    aimed = [row for c in comparisons for row in c.wayward] or [r for r in rows if is_aimed(r)]
    if aimed:
        console.print(_token_strip(aimed[0], tokenizers[aimed[0]["model"]]))


def _table(frame: pd.DataFrame) -> Table:
    # Intervals say as much, and a terminal is narrow.
    frame = frame.drop(columns="within_noise", errors="ignore")
    cells, numbers = tables.shown(frame, always=["task"])
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for name, number in zip(cells, numbers, strict=True):
        justify = "right" if number else "left"
        table.add_column(name, justify=justify, vertical="bottom", overflow="fold")
    for row in cells.itertuples(index=False):
        table.add_row(*row)
    return table


def _token_strip(row: dict, tokenizer: Tokenizer) -> Table:
    """A target's tokens beside those that the prompt reads as, a line each."""
    strip = Table("target", "reads as", box=None, pad_edge=False)
    for target, projected in zip(row["target_ids"], row["token_ids"], strict=True):
        color = "green" if projected == target else "red"
        strip.add_row(
            Text(_visible(tokenizer, target)), Text(_visible(tokenizer, projected), style=color)
        )
    return strip


def _visible(tokenizer: Tokenizer, token: int) -> str:
    """A token's text with its spaces and control characters to be seen."""
    return repr(tokenizer.decode([token]))
