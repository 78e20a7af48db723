"""Records and measurements of finished runs on disk: JSON lines, appended, read and merged."""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wayward_jax import checkpoints, provenance
from wayward_jax.errors import InputError, reason
from wayward_jax.jobs.layout import JobLayout
from wayward_jax.runs import RunRecord

# Entries in which two records of the same run may differ.
INCIDENTAL = ("seconds", "checkpoint", *provenance.INCIDENTAL)

# Runs that have the entries behind a name in common are compared with each other, or read by the
# same model. They must have been made with the same.
MADE_ALIKE = {
    **dict.fromkeys(("dtype", "readable"), ("model", "model_digest")),
    "examples_digest": (
        *("model", "model_digest", "task", "method", "template", "k_shot", "data_seed"),
        "n_eval",
    ),
}

# The measurement that has the examples of `EncodedTask.shown`, by the digest of all examples.
SHOWN = "shown"

Measured = dict[str, dict[str, list[dict[str, Any]]]]
"""Rows by what was measured (the name of an experiment) and each measurement's own key."""


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run of a finished job.

    Attributes:
        record: of the run.
        job: the job's folder.
    """

    record: RunRecord
    job: JobLayout

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that has the prompt, under the run's id."""
        return self.job.folder / self.record.checkpoint


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns an `OSError` into an `InputError` on a file or folder of a job."""
    try:
        yield
    except OSError as error:
        raise InputError(
            None,
            path,
            f"cannot be read ({error.strerror or reason(error)}): try again when the disk can be "
            "read, or give another folder; nothing is lost",
        ) from error


def append_lines(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Appends objects to a file of JSON lines: all of them or, on an error, none.

    Raises:
        OSError: they cannot be written.
    """
    lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in objects).encode()
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            if file.write(lines) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def repair(path: Path) -> bool:
    """Drops a last line that a crash left without its end, and returns whether there was one.

    Raises:
        InputError: the disk does not let the file be read.
    """
    with path.open("rb+") as file:
        with reading(path):
            content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
    return whole < len(content)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines.

    Raises:
        InputError: there is no such file, or a line is not a JSON object.
    """
    if not os.path.isfile(path):
        raise InputError(None, path, "does not exist: give the --out_dir of a finished job")
    found = []
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                found.append(json.loads(line))
                if not isinstance(found[-1], dict):
                    raise ValueError(f"a {type(found[-1]).__name__}")
            except (ValueError, RecursionError) as error:
                raise InputError(
                    None,
                    f"{path}:{number}",
                    f"not a JSON object ({reason(error)}): mend or remove the line",
                ) from error
    return found


def read_records(job: JobLayout) -> list[RunRecord]:
    """The records of a job's finished runs, without prompts, in the order they came.

    Raises:
        InputError: there are none, or a line is no record of this version.
    """
    found = []
    for number, row in enumerate(read_lines(job.results), start=1):
        try:
            found.append(RunRecord.from_json(row))
        except ValueError as error:
            raise InputError(
                None,
                f"{job.results}:{number}",
                f"{reason(error)}: it was made by another version of wayward_jax, so run the job "
                "again",
            ) from error
    return found


def read_jobs(folders: Sequence[Path]) -> list[FinishedRun]:
    """The runs of all jobs in order; a run that several jobs have is given once.

    Args:
        folders: of jobs, or of the shards of one.

    Raises:
        InputError: a folder has no results or not all shards, or two folders disagree on what
            became of a run, or have runs of other weights or examples under the same names.
    """
    found: dict[str, FinishedRun] = {}
    for job in itertools.chain.from_iterable(map(_parts, folders)):
        records = read_records(job)
        if not records:
            raise InputError(None, job.results, "is empty: give the --out_dir of a finished job")
        for number, record in enumerate(records, start=1):
            first = found.setdefault(record.id, FinishedRun(record, job))
            if names := _differing(first.record, record):
                raise InputError(
                    None,
                    f"{job.results}:{number}",
                    f"run {record.id} differs from that in {first.job.folder} in "
                    f"{', '.join(names)}: leave out one of the two folders",
                )
    _check_made_alike(found.values())
    return list(found.values())


def load_prompts(finished: Iterable[FinishedRun]) -> dict[str, np.ndarray]:
    """The prompts `[L, D]` of runs by id. Each checkpoint is read once.

    Raises:
        InputError: a checkpoint is missing or broken.
    """
    ids: dict[Path, list[str]] = {}
    for run in finished:
        ids.setdefault(run.checkpoint, []).append(run.record.id)
    found: dict[str, np.ndarray] = {}
    for checkpoint, own in ids.items():
        found |= checkpoints.load_prompts(checkpoint, own)
    return found


def read_measurements(folders: Sequence[Path]) -> Measured:
    """The measurements of all jobs; one that several jobs have is given once.

    Raises:
        InputError: a line is no measurement.
    """
    found: Measured = {}
    for job in itertools.chain.from_iterable(map(_parts, folders)):
        lines = read_lines(job.measurements) if job.measurements.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                found.setdefault(line["measurement"], {}).setdefault(line["key"], line["rows"])
            except (TypeError, KeyError) as error:
                raise InputError(
                    None, f"{job.measurements}:{number}", "not a measurement: remove the line"
                ) from error
    return found


def _parts(folder: Path) -> list[JobLayout]:
    """The shards of a job or, without any, the job itself."""
    job = JobLayout(folder)
    shards = job.shards()
    for _, count in shards:
        if missing := [str(number) for number in range(count) if (number, count) not in shards]:
            raise InputError(
                None,
                folder,
                f"lacks shard {', '.join(missing)} of {count}: run it, or give the folders of the "
                "others one by one",
            )
    return list(shards.values()) or [job]


def _check_made_alike(finished: Iterable[FinishedRun]) -> None:
    """Checks that runs that belong together were made of the same data in the same precision."""
    made: dict[tuple, FinishedRun] = {}
    for each in finished:
        row = each.record.to_json()
        for name, common in MADE_ALIKE.items():
            first = made.setdefault((name, *(row[entry] for entry in common)), each)
            there, here = (getattr(r.record.provenance, name) for r in (first, each))
            if there != here:
                raise InputError(
                    None,
                    each.job.folder,
                    f"run {each.record.id} has {name}={here}, and run {first.record.id} of "
                    f"{first.job.folder} has {name}={there}: leave out one of the two folders",
                )


def _differing(first: RunRecord, second: RunRecord) -> list[str]:
    """Names of the entries in which two records of one run differ; NaN equals NaN."""
    rows = first.to_json(), second.to_json()
    return [
        name
        for name in rows[0]
        if name not in INCIDENTAL and json.dumps(rows[0][name]) != json.dumps(rows[1][name])
    ]
