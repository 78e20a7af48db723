"""The runs of earlier jobs, which `--reuse` takes over."""

from collections.abc import Sequence

from wayward_jax.errors import InputError
from wayward_jax.jobs.inputs import Inputs
from wayward_jax.jobs.processes import on_primary
from wayward_jax.jobs.records import FinishedRun, read_jobs
from wayward_jax.jobs.settings import Settings


@on_primary
def read_earlier(settings: Settings) -> list[FinishedRun]:
    """The runs of the jobs that `--reuse` names."""
    return read_jobs(settings.reuse)


@on_primary
def select_reused(
    earlier: Sequence[FinishedRun], settings: Settings, inputs: Inputs, dtype: str
) -> list[FinishedRun]:
    """Selects the runs of earlier jobs that this job has, too.

    Raises:
        InputError: such a run has no checkpoint, or was made with other examples or weights.
    """
    found = [run for run in earlier if run.record.id in inputs.runs]
    for each in found:
        if not each.checkpoint.is_dir():
            raise InputError(
                "reuse",
                str(each.job.folder),
                f"lacks {each.checkpoint}: bring the checkpoints, too",
            )
        record = each.record
        task = inputs.models[record.run.model].tasks[record.run.task]
        decisive = {
            "n_train": (record.n_train, len(task.train[record.run.data_seed])),
            "n_dev": (record.n_dev, len(task.dev[record.run.data_seed].labels)),
            "n_eval": (record.n_eval, len(task.test.labels)),
            "dtype": (record.provenance.dtype, dtype),
            "readable": (record.provenance.readable, settings.readable),
            "examples_digest": (
                record.provenance.examples_digest,
                task.digests[record.run.data_seed],
            ),
        }
        for name, (there, here) in decisive.items():
            if there != here:
                raise InputError(
                    "reuse",
                    str(each.job.folder),
                    f"run {record.id} has {name}={there} there and {here} here: give the data and "
                    "the settings of that job",
                )
    return found
