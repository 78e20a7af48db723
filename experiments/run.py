"""Runs the experiment that flags select: `python -m experiments.run --help`."""

import os
import time
from pathlib import Path

from experiments import flags
from wayward_jax.jobs.settings import Settings


def main(given: flags.Given) -> None:
    """Runs one experiment and shows its results."""
    settings = flags.job_settings(given)
    # The libraries behind these take seconds to import, which --help should not have to wait for.
    from rich.console import Console

    from wayward_jax.analysis.analyze import analyze, write
    from wayward_jax.analysis.terminal import show
    from wayward_jax.jobs import job, object_stores, processes, progress_bar
    from wayward_jax.jobs.folder import writing
    from wayward_jax.jobs.layout import JobLayout
    from wayward_jax.jobs.loader import keep_compiled
    from wayward_jax.jobs.tensorboard import TensorBoardWriter

    experiment = flags.find_experiment(settings.experiment)
    began, stamp = time.perf_counter(), time.strftime("%Y%m%d-%H%M%S")
    out_dir = settings.out_dir or Path("runs", f"{stamp}-{settings.experiment}")
    keep_compiled(settings.cache_dir)
    with (
        processes.joined(settings.place, independent=settings.shard is not None),
        processes.primary_context(object_stores.mirrored(out_dir)) as mirror,
    ):
        is_primary = processes.is_primary()
        console = Console(quiet=not is_primary)
        path = Path(out_dir) if mirror is None else mirror.folder
        board = TensorBoardWriter(JobLayout(path)) if settings.tensorboard else None
        with progress_bar.ProgressReporter(console, board if is_primary else None) as watch:
            finished = job.run_job(settings, experiment, path, watch, mirror)

        @processes.on_primary
        def report() -> None:
            analysis = analyze(
                [finished.layout.folder],
                cache_dir=settings.cache_dir,
                assets_dir=settings.assets_dir,
                select=settings.select,
            )
            with writing(out_dir):
                write(analysis, finished.layout.report)
            if mirror is not None:
                mirror.send()
            show(analysis, experiment.tables, console)

        report()
    took = f"{time.perf_counter() - began:.0f} s"
    page = finished.layout.report.relative_to(path) / "report.html"
    console.print(f"\n{took}. Results and checkpoints: {out_dir}", markup=False)
    console.print(f"Open {os.path.join(out_dir, page)}", markup=False)


def program() -> None:
    """Runs this program with the flags of its command line."""
    flags.run(main, Settings)


if __name__ == "__main__":
    program()
