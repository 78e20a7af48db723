"""Analyzes finished jobs in tables, figures and a page: `python -m experiments.analyze --runs=DIR`.

Nothing is trained, and nothing is fetched from the network.
"""

import os
import time

from absl import flags

from experiments import command_line
from wayward_jax.errors import InputError

flags.adopt_module_key_flags(command_line)

_RUNS = flags.DEFINE_list(
    "runs",
    [],
    "Folders of finished jobs (their --out_dir), also on object stores. They are analyzed "
    "together; the shards of a job are found in its folder.",
)
_OUT_DIR = flags.DEFINE_string(
    "out_dir", None, "A new or empty folder for the analysis; runs/<time>-analysis by default."
)


def main() -> None:
    """Analyzes the jobs that the flags name, and says where the page is."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if not _RUNS.value:
        raise InputError("runs", None, "give folders of finished jobs, separated by commas")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    out_dir = command_line.path(_OUT_DIR.value or f"runs/{stamp}-analysis")
    if os.path.exists(out_dir) and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise InputError("out_dir", str(out_dir), "is not empty: name a new folder")
    cache_dir, assets_dir = command_line.cache_dir(), command_line.assets_dir()
    # The libraries behind these take seconds to import, which --help should not have to wait for.
    from wayward_jax.analysis.analyze import analyze, write
    from wayward_jax.jobs import object_stores

    with object_stores.local(_RUNS.value) as folders:
        analysis = analyze(
            folders, cache_dir=cache_dir, assets_dir=assets_dir, select=command_line.select()
        )
    write(analysis, out_dir)
    print(f"{len(analysis.records)} runs. Open {out_dir / 'report.html'}")


if __name__ == "__main__":
    command_line.run(main)
