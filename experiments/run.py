"""Runs the experiment that flags select: `python -m experiments.run --help`."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import command_line
from experiments import experiment as experiments
from experiments import flags as job_flags
from experiments.experiment import RunsOf
from wayward_jax.errors import InputError
from wayward_jax.runs import Run

flags.adopt_module_key_flags(job_flags)


def main() -> None:
    """Carries out one experiment and shows its results."""
    settings = job_flags.settings()
    # The libraries behind these take seconds to import, which --help should not have to wait for.
    from rich.console import Console

    from experiments import job, job_folder, terminal
    from experiments.board import Board
    from wayward_jax.analysis import figures

    experiment = experiments.find(settings.experiment)
    began = time.perf_counter()
    console = Console()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    out_dir = settings.out_dir or Path("runs", f"{stamp}-{settings.experiment}")
    chosen = dataclasses.replace(experiment, runs=only(experiment.runs, settings.only))
    board = Board(out_dir) if settings.tensorboard else None
    with terminal.Watch(console, board) as watch:
        finished = job.carry_out(settings, chosen, out_dir, watch)
    with job_folder.writing(out_dir):
        figures.training_curves(finished.rows).savefig(out_dir / "training.png", dpi=160)
    terminal.show(
        finished.rows,
        finished.measured,
        finished.tokenizers,
        experiment.tables,
        console,
        settings.select,
    )
    console.print(f"\n{time.perf_counter() - began:.0f} s. Results, checkpoints, figure: {out_dir}")


def only(runs_of: RunsOf, ids: Sequence[str]) -> RunsOf:
    """Of a list of runs those alone that `ids` names; all of them if it names none."""

    def narrowed(settings: job_flags.Settings, model: str, task: str, *args: object) -> list[Run]:
        runs = runs_of(settings, model, task, *args)
        chosen = [run for run in runs if not ids or run.id in ids]
        if not chosen:
            raise InputError(
                f"--only={','.join(ids)}: {model} on task {task} has no such run: give all flags "
                "of the job that it is from, and its model and task alone"
            )
        return chosen

    return narrowed


if __name__ == "__main__":
    command_line.run(main)
