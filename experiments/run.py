"""Runs the experiment that flags select: `python -m experiments.run --help`."""

import importlib
import sys
import time
from pathlib import Path

from absl import app, flags, logging

from experiments import flags as job_flags
from wayward_jax.errors import InputError

flags.adopt_module_key_flags(job_flags)


def main(argv: list[str]) -> None:
    """Reads the flags, carries the job out and shows what came of it."""
    try:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        if len(argv) > 1:
            raise InputError(f"{argv[1]} is not a flag: write --name=value")
        run(job_flags.settings())
    except InputError as error:
        _refuse(error)


def run(settings: job_flags.Settings) -> None:
    """Carries out one experiment and shows its results."""
    # The libraries behind these take seconds to import, which --help should not have to wait for.
    from rich.console import Console

    from experiments import job, terminal
    from wayward_jax.analysis import figures

    experiment = importlib.import_module(f"experiments.{settings.experiment}")
    began = time.perf_counter()
    console = Console()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    out_dir = settings.out_dir or Path("runs", f"{stamp}-{settings.experiment}")
    with terminal.Watch(console) as watch:
        finished = job.carry_out(settings, experiment.runs, out_dir, watch)
    figures.training_curves(finished.rows).savefig(out_dir / "training.png", dpi=160)
    experiment.show(finished.rows, finished.tokenizer, console)
    console.print(f"\n{time.perf_counter() - began:.0f} s. Results, checkpoints, figure: {out_dir}")


def parse(argv: list[str]) -> list[str]:
    """absl's parser, but a bad flag gets one line and exit code 2 like all bad input."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        return _refuse(error)


def _refuse(error: Exception) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
