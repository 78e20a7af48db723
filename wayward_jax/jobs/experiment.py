"""What an experiment is."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from wayward_jax.jobs.settings import Settings
from wayward_jax.runs import Run
from wayward_jax.targets import Target

if TYPE_CHECKING:
    from wayward_jax.jobs.probes import Measurement, ProbeContext
    from wayward_jax.models import LanguageModel

RunsOf = Callable[[Settings, "LanguageModel", str, Sequence[Target]], list[Run]]
"""Lists the runs of a model and a task (by name) towards targets; some may be p_star."""

Measure = Callable[["ProbeContext"], Iterable["Measurement"]]
"""What is measured of finished prompts, with one model at a time."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Runs, what is measured of them, and what of that is shown first.

    Attributes:
        runs: lists them.
        tables: names of `analysis.tables.tables` that are shown at the end, as far as there are
            any; all others are made by `experiments.analyze`.
        measure: of the prompts once all are tuned, if there is anything.
        defaults: values of flags where the user gives none, as on a command line.
    """

    runs: RunsOf
    tables: tuple[str, ...]
    measure: Measure | None = None
    defaults: Mapping[str, str] = dataclasses.field(default_factory=dict)
