"""The progress of a job on a terminal, in a log, and for TensorBoard."""

import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wayward_jax.jobs.tensorboard import TensorBoardWriter
from wayward_jax.jobs.throughput import Figures, duration

SECONDS_BETWEEN_LINES = 20


class ProgressReporter:
    """Shows the progress of a job: a bar on a terminal, a line in a log every 20 seconds.

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
        """Shows what the job does before, between or after the steps."""
        self._bar.update(self._task, description=what)
        if not self._console.is_terminal:
            self._console.print(what)

    def note(self, what: str) -> None:
        """Shows a line that stays on the screen."""
        self._console.print(what, soft_wrap=True)

    def expected(self, what: str, seconds: float) -> None:
        """Says about how long some populations will take."""
        time_needed = f"about {duration(seconds)} on these devices, compiling aside"
        self._console.print(f"{what}: {time_needed}", soft_wrap=True)

    def planned(self, steps: int) -> None:
        """Sets the number of steps of all populations together."""
        self._bar.reset(self._task, total=steps)

    def begun(self, population: str) -> None:
        """Begins the steps of a population."""
        self._step = 0
        if self._board:
            self._board.begin(population)

    def stepped(self, steps: int, figures: Figures) -> None:
        """Counts steps, and shows the figures of the last one."""
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
        """Shows the results of a population: figures by step, and those of the end."""
        if self._board:
            for step, figures in curve.items():
                self._board.write(step, figures)
            self._board.write(self._step, outcome)
        if not self._console.is_terminal:
            *_, last = curve.values()
            self._console.print(_line({**outcome, **last}), soft_wrap=True)


# The form of each figure in a line; figures are shown in this order.
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
