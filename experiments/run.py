"""Runs the experiment that flags select: `python -m experiments.run --help`."""

import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from experiments import command_line
from experiments import flags as job_flags
from wayward_jax.errors import InputError
from wayward_jax.runs import Run

flags.adopt_module_key_flags(job_flags)

Plan = Callable[..., list[Run]]


def main() -> None:
    """Carries out one experiment and shows its results."""
    settings = job_flags.settings()
    # The libraries behind these take seconds to import, which --help should not have to wait for.
    from rich.console import Console

    from experiments import job, job_folder, terminal
    from experiments.board import Board
    from wayward_jax.analysis import figures

    experiment = importlib.import_module(f"experiments.{settings.experiment}")
    began = time.perf_counter()
    console = Console()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    out_dir = settings.out_dir or Path("runs", f"{stamp}-{settings.experiment}")
    plan = only(experiment.runs, settings.only)
    board = Board(out_dir) if settings.tensorboard else None
    with terminal.Watch(console, board) as watch:
        finished = job.carry_out(settings, plan, out_dir, watch)
    with job_folder.writing(out_dir):
        figures.training_curves(finished.rows).savefig(out_dir / "training.png", dpi=160)
    experiment.show(finished.rows, finished.tokenizer, console)
    console.print(f"\n{time.perf_counter() - began:.0f} s. Results, checkpoints, figure: {out_dir}")


def only(plan: Plan, ids: Sequence[str]) -> Plan:
    """A plan of those runs alone that `ids` names; of all of them if it names none."""

    def narrowed(settings: job_flags.Settings, task: str, *args: object) -> list[Run]:
        runs = plan(settings, task, *args)
        chosen = [run for run in runs if not ids or run.id in ids]
        if not chosen:
            raise InputError(
                f"--only={','.join(ids)}: task {task} has no such run: give all flags of the job "
                "that it is from, and its task alone"
            )
        return chosen

    return narrowed


if __name__ == "__main__":
    command_line.run(main)
