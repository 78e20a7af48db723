"""Figures for TensorBoard."""

from collections.abc import Mapping
from typing import Any

from wayward_jax.errors import InputError
from wayward_jax.jobs.folder import writing
from wayward_jax.jobs.layout import JobLayout


class TensorBoardWriter:
    """Writes a job's figures for TensorBoard, a folder of events for each population.

    TensorBoard shows the curves of all populations in one plot for each figure.
    """

    def __init__(self, layout: JobLayout) -> None:
        """Writes nothing yet.

        Raises:
            InputError: TensorBoard is not installed.
        """
        try:
            from tensorboard.summary import Writer
        except ImportError as error:
            raise InputError(
                "tensorboard",
                None,
                "this needs a package: pip install 'wayward_jax[tensorboard]'",
            ) from error
        self._layout, self._open = layout, Writer
        self._writer: Any = None

    def begin(self, population: str) -> None:
        """Begins the figures of another population."""
        self.close()
        with writing(self._layout.folder):
            self._writer = self._open(str(self._layout.tensorboard / population))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes figures of the population after `step` steps.

        Raises:
            InputError: they cannot be written.
        """
        with writing(self._layout.folder):
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Returns once everything is written."""
        if self._writer is not None:
            with writing(self._layout.folder):
                self._writer.close()
            self._writer = None
