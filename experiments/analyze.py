"""Analyzes finished jobs in tables, figures and a page: `python -m experiments.analyze --runs=DIR`.

Nothing is trained, and nothing is fetched from the network.
"""

import os
import time
from pathlib import Path

from experiments import flags
from wayward_jax.errors import InputError
from wayward_jax.jobs.settings import AnalysisSettings


def main(given: flags.Given) -> None:
    """Analyzes the jobs that the flags name, and says where the page is."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    settings = AnalysisSettings.parse(given)
    if not settings.runs:
        raise InputError("runs", None, "give folders of finished jobs, separated by commas")
    out_dir = settings.out_dir or Path(f"runs/{time.strftime('%Y%m%d-%H%M%S')}-analysis")
    if os.path.exists(out_dir) and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise InputError("out_dir", str(out_dir), "is not empty: name a new folder")
    # The libraries behind these take seconds to import, which --help should not have to wait for.
    from wayward_jax.analysis.analyze import analyze, write
    from wayward_jax.jobs import object_stores

    with object_stores.local(settings.runs) as folders:
        analysis = analyze(
            folders,
            cache_dir=settings.cache_dir,
            assets_dir=settings.assets_dir,
            select=settings.select,
            margin=settings.equivalence_margin,
        )
    write(analysis, out_dir)
    print(f"{len(analysis.records)} runs. Open {out_dir / 'report.html'}")


def program() -> None:
    """Runs this program with the flags of its command line."""
    flags.run(main, AnalysisSettings)


if __name__ == "__main__":
    program()
