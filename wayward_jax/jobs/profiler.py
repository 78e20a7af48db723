"""A profile of a few steps."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from wayward_jax.jobs.folder import writing
from wayward_jax.training.planning import PopulationPlan
from wayward_jax.training.progress import TrainProgress


class Profiler:
    """Has JAX write to `profile` in `out_dir` what host and devices do in `steps` steps.

    They are of the first population, from the first point of its curves on: programs are compiled
    by then. Where it has fewer left, the profile ends with it.
    """

    def __init__(self, out_dir: Path, steps: int) -> None:
        self._out_dir, self._steps = out_dir, steps
        self._until: int | None = None

    @contextlib.contextmanager
    def of(self, plan: PopulationPlan) -> Iterator[None]:
        """Meanwhile a population is tuned, which tells `see` how far it is."""
        self._from = plan.eval_steps[0]
        try:
            yield
        finally:
            self._end()

    def see(self, progress: TrainProgress) -> None:
        """Begins or ends the profile, if it is time to.

        Raises:
            InputError: it cannot be written.
        """
        if self._until is None and self._steps and progress.step >= self._from:
            jax.block_until_ready(progress.state)
            self._until = progress.step + self._steps
            with writing(self._out_dir):
                jax.profiler.start_trace(self._out_dir / "profile")
        elif self._until is not None and progress.step >= self._until:
            jax.block_until_ready(progress.state)
            self._end()

    def _end(self) -> None:
        if self._until is not None:
            self._steps, self._until = 0, None
            with writing(self._out_dir):
                jax.profiler.stop_trace()
