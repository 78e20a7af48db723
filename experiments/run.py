"""Runs the experiment that flags select: `python -m experiments.run --help`."""

import time
from pathlib import Path

from absl import flags

from experiments import command_line
from experiments import flags as job_flags
from wayward_jax.jobs import experiment as experiments

flags.adopt_module_key_flags(job_flags)


def main() -> None:
    """Carries out one experiment and shows its results."""
    settings, place = job_flags.settings(), job_flags.place()
    # The libraries behind these take seconds to import, which --help should not have to wait for.
    from rich.console import Console

    from wayward_jax.analysis.figures import training_curves
    from wayward_jax.analysis.terminal import show
    from wayward_jax.jobs import folder, inputs, job, object_stores, processes, progress_bar
    from wayward_jax.jobs.tensorboard import TensorBoardWriter

    experiment = experiments.find(settings.experiment)
    began = time.perf_counter()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    out_dir = settings.out_dir or Path("runs", f"{stamp}-{settings.experiment}")
    inputs.keep_compiled(settings.cache_dir)
    with (
        processes.joined(place, independent=settings.shard is not None),
        processes.primary_context(object_stores.mirrored(out_dir)) as mirror,
    ):
        first = processes.is_primary()
        console = Console(quiet=not first)
        path = Path(out_dir) if mirror is None else mirror.folder
        board = TensorBoardWriter(path) if settings.tensorboard else None
        with progress_bar.ProgressReporter(console, board if first else None) as watch:
            finished = job.run_job(settings, experiment, path, watch, mirror)
        if first:
            with folder.writing(out_dir):
                curves = training_curves(finished.records)
                curves.savefig(finished.folder / "training.png", dpi=160)
            if mirror is not None:
                mirror.send()
            show(
                finished.records,
                finished.measured,
                finished.tokenizers,
                experiment.tables,
                console,
                settings.select,
            )
    took = f"{time.perf_counter() - began:.0f} s"
    console.print(f"\n{took}. Results, checkpoints, figure: {out_dir}")


if __name__ == "__main__":
    command_line.run(main)
