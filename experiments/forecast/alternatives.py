"""Other numbers of prompts at once and other meshes, which may make a job faster."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.forecast.forecast import Forecast, fits, forecast, total_seconds
from wayward_jax.jobs.experiment import Experiment
from wayward_jax.jobs.progress_bar import ProgressReporter
from wayward_jax.jobs.setting import read_mesh
from wayward_jax.jobs.settings import ForecastSettings
from wayward_jax.training.meshes import write_mesh


@dataclasses.dataclass(frozen=True)
class Alternative:
    """A job with one flag changed.

    Attributes:
        flag: the flag with its value; empty for the job as it is.
        parts: what is forecast of it.
    """

    flag: str
    parts: Sequence[Forecast]


def forecast_alternatives(
    settings: ForecastSettings,
    experiment: Experiment,
    topology: str,
    parts: Sequence[Forecast],
    watch: ProgressReporter,
) -> list[Alternative]:
    """Forecasts a job again with other values of `--population` and `--mesh`.

    Args:
        settings: of the job.
        experiment: its experiment.
        topology: the machine.
        parts: the forecast of the job as it is, which comes first in what is returned.
        watch: is told what is being done.
    """
    worst = max(parts, key=lambda part: (bool(part.refusal), part.seconds))
    found = [Alternative("", parts)]
    for changed in nearby(worst, settings.batch_size):
        other = dataclasses.replace(settings, **changed)
        _, changed_parts = forecast(other, experiment, topology, watch)
        found.append(Alternative(_write(changed), changed_parts))
    return found


def nearby(part: Forecast, batch_size: int) -> list[dict[str, Any]]:
    """Lists settings that are near those of a part, each of them with its new value.

    These are half and twice the prompts at once, and the meshes with half the devices along one
    axis and twice as many along another.

    Args:
        part: of a job as it is.
        batch_size: examples of a run's step; the data axis has no more devices.
    """
    populations = [part.runs // 2] if part.runs > 1 else []
    if part.populations > 1:
        populations.append(2 * part.runs)
    sizes = read_mesh(part.mesh)
    meshes = [
        {**sizes, fewer: sizes[fewer] // 2, more: 2 * sizes[more]}
        for fewer, more in itertools.permutations(sizes, 2)
        if sizes[fewer] % 2 == 0
    ]
    return [
        *({"population": population} for population in populations),
        *({"mesh": mesh} for mesh in meshes if mesh["data"] <= batch_size),
    ]


def fastest(found: Sequence[Alternative]) -> Alternative | None:
    """The alternative that takes the least time of those that fit."""
    fitting = (each for each in found if fits(each.parts))
    return min(fitting, key=lambda each: total_seconds(each.parts), default=None)


def _write(changed: Mapping[str, Any]) -> str:
    ((name, value),) = changed.items()
    return f"--{name}={write_mesh(value) if name == 'mesh' else value}"
