"""Runs the experiment that flags select: `python -m experiments.run --help`."""

import importlib
import time
from pathlib import Path

from absl import flags

from experiments import command_line
from experiments import flags as job_flags

flags.adopt_module_key_flags(job_flags)


def main() -> None:
    """Carries out one experiment and shows its results."""
    settings, place = job_flags.settings(), job_flags.place()
    # The libraries behind these take seconds to import, which --help should not have to wait for.
    from rich.console import Console

    from experiments import job, job_folder, processes, terminal
    from wayward_jax.analysis import figures

    experiment = importlib.import_module(f"experiments.{settings.experiment}")
    began = time.perf_counter()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    out_dir = settings.out_dir or Path("runs", f"{stamp}-{settings.experiment}")
    with processes.joined(place, independent=settings.shard is not None):
        console = Console(quiet=not processes.is_first())
        with terminal.Watch(console) as watch:
            finished = job.carry_out(settings, experiment.runs, out_dir, watch)
    if not processes.is_first():
        return
    with job_folder.writing(out_dir):
        figures.training_curves(finished.rows).savefig(finished.folder / "training.png", dpi=160)
    experiment.show(finished.rows, finished.tokenizer, console)
    took = f"{time.perf_counter() - began:.0f} s"
    console.print(f"\n{took}. Results, checkpoints, figure: {finished.folder}")


if __name__ == "__main__":
    command_line.run(main)
