"""Forecasts a job on accelerators that are not there: `python -m experiments.forecast`.

It takes the flags of `experiments.run`, and says whether the job fits and how long it would take on
each `--topology`, by the estimates of the compilers for those machines.
"""

import dataclasses
import itertools
import json
import os

from experiments.forecast.environment import ENVIRONMENT

os.environ |= ENVIRONMENT  # the modules below import JAX

from experiments import flags
from wayward_jax.jobs.settings import ForecastSettings


def main(given: flags.Given) -> None:
    """Forecasts one job, and shows and saves what it would take."""
    settings = flags.job_settings(given, ForecastSettings)
    from rich.console import Console

    from experiments.forecast.alternatives import forecast_alternatives
    from experiments.forecast.forecast import forecast
    from experiments.forecast.show import NOTES, as_page, compare, table, total
    from wayward_jax.jobs.progress_bar import ProgressReporter

    console = Console()
    experiment = flags.find_experiment(settings.experiment)
    with ProgressReporter(console) as watch:
        found = {
            topology: forecast(settings, experiment, topology, watch)
            for topology in settings.topology
        }
        others = {
            topology: forecast_alternatives(settings, experiment, topology, parts, watch)
            for topology, (_, parts) in found.items()
            if settings.alternatives
        }
    parts_of_all = zip(*(parts for _, parts in found.values()), strict=True)
    shown = [
        *(table(dict(zip(found, parts, strict=True))) for parts in parts_of_all),
        total(found, settings.price_per_hour),
        *itertools.starmap(compare, others.items()),
        NOTES,
    ]
    console.print(*shown, sep="\n")
    if settings.forecast is not None:
        figures = {
            topology: {
                "devices": devices,
                "parts": [dataclasses.asdict(part) for part in parts],
                "alternatives": [dataclasses.asdict(each) for each in others.get(topology, [])],
            }
            for topology, (devices, parts) in found.items()
        }
        settings.forecast.write_text(json.dumps(figures, indent=1) + "\n")
        settings.forecast.with_suffix(".html").write_text(as_page(shown), encoding="utf-8")


if __name__ == "__main__":
    flags.run(main, ForecastSettings)
