"""Small jobs back to back in one process: `python tests/end_to_end/soak.py MINUTES`, run by hand.

Prints once a minute how many jobs are done, and the memory, files and threads of the process. After
the first few minutes, in which programs are compiled and pools filled, none of these should grow.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console

from experiments import main
from tests.helpers import toy_job
from wayward_jax.jobs import job
from wayward_jax.jobs.progress_bar import ProgressReporter

# Different shapes, the same again and again.
JOBS = (
    {"gamma": (0.5,), "seeds": (1, 2), "steps": 20, "population": 3, "checkpoint_every": 5},
    {"targets": "text=w1 w2 w3 w4 w5", "steps": 12, "init": ("random",), "checkpoint_every": 3},
    {"seeds": (1, 2, 3), "k_shot": 8, "data_seed": (1, 2), "method": "channel", "steps": 5},
)


def soak(minutes: float) -> None:
    """Carries out jobs for so long."""
    folder = toy_job.make(Path(tempfile.mkdtemp()))
    process = psutil.Process()
    began, said, done = time.monotonic(), -1, 0
    print("minute\tjobs\tMiB\tfiles\tthreads", flush=True)
    while time.monotonic() - began < 60 * minutes:
        out_dir = folder / "job"
        settings = toy_job.settings(folder, out_dir, **JOBS[done % len(JOBS)])
        with ProgressReporter(Console(quiet=True)) as watch:
            job.run_job(settings, main.EXPERIMENT, out_dir, watch)
        shutil.rmtree(out_dir)
        done += 1
        if (minute := int((time.monotonic() - began) / 60)) > said:
            said = minute
            in_use = process.memory_info().rss >> 20, process.num_fds(), process.num_threads()
            print(minute, done, *in_use, sep="\t", flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    soak(float(sys.argv[1]))
