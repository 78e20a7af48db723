"""The interface of an experiment."""

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
"""Lists the runs, p_star among them, for a model, a task (by name) and targets.

The settings are those for this model; starts in them are called as `Run.init` calls them.
"""

Measure = Callable[["ProbeContext"], Iterable["Measurement"]]
"""Yields what is measured of finished prompts with one model."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment: its runs, what is measured of their prompts, and what is shown at the end.

    Attributes:
        runs: lists the runs.
        tables: the names of the tables from `analysis.tables.tables` that the program shows at the
            end, if there are data for them; `experiments.analyze` makes all tables.
        measure: measures the prompts when all are tuned; None if nothing is measured.
        defaults: the experiment's own defaults of flags, written as on a command line.
        repeat_targets: whether targets that are shorter than the prompts are repeated to their
            length. Otherwise they are left out.
    """

    runs: RunsOf
    tables: tuple[str, ...]
    measure: Measure | None = None
    defaults: Mapping[str, str] = dataclasses.field(default_factory=dict)
    repeat_targets: bool = False
