"""A JAX profile of a few steps."""

import contextlib
from collections.abc import Iterator

import jax

from wayward_jax.jobs.folder import writing
from wayward_jax.jobs.layout import JobLayout
from wayward_jax.training.population import PopulationPlan
from wayward_jax.training.progress import TrainProgress


class Profiler:
    """Has JAX record what host and devices do in a few steps of the first population.

    The profile begins at the first point of the population's curves, when programs are compiled,
    and ends with the population where fewer steps are left.
    """

    def __init__(self, layout: JobLayout, steps: int) -> None:
        """`steps` may be 0: no profile is made then."""
        self._layout, self._steps = layout, steps
        self._until: int | None = None

    @contextlib.contextmanager
    def of(self, plan: PopulationPlan) -> Iterator[None]:
        """Ends the profile with the population that is tuned in this context."""
        self._from = plan.eval_steps[0]
        try:
            yield
        finally:
            self._end()

    def see(self, progress: TrainProgress) -> None:
        """Begins or ends the profile if it is time to.

        Raises:
            InputError: it cannot be written.
        """
        if self._until is None and self._steps and progress.step >= self._from:
            jax.block_until_ready(progress.state)
            self._until = progress.step + self._steps
            with writing(self._layout.folder):
                jax.profiler.start_trace(self._layout.profile)
        elif self._until is not None and progress.step >= self._until:
            jax.block_until_ready(progress.state)
            self._end()

    def _end(self) -> None:
        if self._until is not None:
            self._steps, self._until = 0, None
            with writing(self._layout.folder):
                jax.profiler.stop_trace()
