"""Figures for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path

from wayward_jax.errors import InputError
from wayward_jax.jobs.folder import writing


class TensorBoardWriter:
    """Writes a job's figures: a folder of events a population, in `tensorboard` in `out_dir`.

    TensorBoard puts the curves of all of them into one plot a figure.
    """

    def __init__(self, out_dir: Path) -> None:
        """Writes nothing yet.

        Raises:
            InputError: TensorBoard is not installed.
        """
        try:
            from tensorboard.summary import Writer
        except ImportError as error:
            raise InputError(
                "--tensorboard needs a package: pip install 'wayward_jax[tensorboard]'"
            ) from error
        self._out_dir, self._open, self._writer = out_dir, Writer, None

    def begin(self, population: str) -> None:
        """Says which population the next figures are of."""
        self.close()
        with writing(self._out_dir):
            self._writer = self._open(str(self._out_dir / "tensorboard" / population))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes figures of the population after so many steps.

        Raises:
            InputError: they cannot be written.
        """
        with writing(self._out_dir):
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Returns once everything is written."""
        if self._writer is not None:
            with writing(self._out_dir):
                self._writer.close()
            self._writer = None
