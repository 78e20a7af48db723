"""Finished jobs, read from their folders and merged."""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wayward_jax import runs
from wayward_jax.analysis.selection import Row
from wayward_jax.errors import InputError
from wayward_jax.jobs import records

# What a run's row may differ in when the run is repeated.
INCIDENTAL = ("seconds",)

REQUIRED = {
    *("id", "accuracy", "dev_accuracy", "correct", "curve", "distance", "diverged_at"),
    *("n_train", "n_dev", "n_eval"),
    *("prompt_f1", "token_f1", "text", "token_ids"),
    *(field.name for field in dataclasses.fields(runs.Run)),
}

# Flags that are called otherwise where they are kept, and flags that do not decide a run.
RENAMED = {
    "models": "model",
    "tasks": "task",
    "constraints": "constraint",
    "gammas": "gamma",
    "inits": "init",
    "prompt_lengths": "prompt_length",
    "data_seeds": "data_seed",
}
INDIFFERENT = (
    *("out_dir", "cache_dir", "assets_dir", "reuse"),
    *("population", "mesh", "only", "shard", "checkpoint_every"),
    *("select", "tensorboard", "profile"),
)

SHARD = re.compile(r"shard-(\d+)-of-(\d+)")

MEASUREMENTS = "measurements.jsonl"

Measured = dict[str, dict[str, list[dict[str, Any]]]]
"""Rows by what was measured (the name of an experiment) and each measurement's own name."""


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run of a finished job.

    Attributes:
        row: of the job's results.
        folder: of the job.
    """

    row: Row
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """Where the prompt is."""
        return self.folder / "checkpoints" / self.row["id"]


def read(folders: Sequence[Path]) -> list[FinishedRun]:
    """The runs of all jobs in order; one that several have is given once.

    Args:
        folders: of jobs, or of the shards of one.

    Raises:
        InputError: a folder holds no results or not all shards, a row lacks something, or two
            folders disagree on what became of a run.
    """
    found: dict[str, FinishedRun] = {}
    for folder in itertools.chain.from_iterable(map(_of_job, folders)):
        path = folder / "results.jsonl"
        rows = records.read_lines(path)
        if not rows:
            raise InputError(f"{path} is empty: give the --out_dir of a finished job")
        for number, row in enumerate(rows, start=1):
            _check(row, f"{path}:{number}")
            run = found.setdefault(row["id"], FinishedRun(row, folder))
            if names := _differing(run.row, row):
                raise InputError(
                    f"{path}:{number}: run {row['id']} differs from that in {run.folder} in "
                    f"{', '.join(names)}: leave out one of the two folders"
                )
    return list(found.values())


def read_measurements(folders: Sequence[Path]) -> Measured:
    """What all jobs have measured of their runs; what several have is given once.

    Raises:
        InputError: a line is no measurement.
    """
    found: Measured = {}
    for folder in itertools.chain.from_iterable(map(_of_job, folders)):
        path = folder / MEASUREMENTS
        for number, line in enumerate(records.read_lines(path) if path.exists() else [], start=1):
            try:
                found.setdefault(line["measurement"], {}).setdefault(line["key"], line["rows"])
            except (TypeError, KeyError) as error:
                raise InputError(f"{path}:{number}: not a measurement: remove the line") from error
    return found


def shards(folder: Path) -> dict[tuple[int, int], Path]:
    """The folders of shards i of n in a folder, by `(i, n)` and in this order."""
    found = {}
    for path in folder.glob("shard-*") if os.path.isdir(folder) else ():
        if named := SHARD.fullmatch(path.name):
            found[int(named[1]), int(named[2])] = path
    return dict(sorted(found.items()))


def read_flags(folder: Path) -> dict[str, Any]:
    """The flags of a job by their names, but for those that do not decide its runs.

    Raises:
        InputError: they are not there, or broken.
    """
    path = folder / "flags.json"
    try:
        return deciding(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): give the --out_dir of a finished job"
        ) from error


def deciding(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Of flags as they are kept, those that decide a job's runs, by their names."""
    flags = {RENAMED.get(name, name): value for name, value in kept.items()}
    return {name: value for name, value in flags.items() if name not in INDIFFERENT}


def _of_job(folder: Path) -> list[Path]:
    """The folders that hold the results of a job: of its shards or, without any, its own."""
    found = shards(folder)
    for _, count in found:
        if missing := [str(number) for number in range(count) if (number, count) not in found]:
            raise InputError(
                f"{folder} lacks shard {', '.join(missing)} of {count}: run it, or give the "
                "folders of the others one by one"
            )
    return list(found.values()) or [folder]


def _check(row: Any, where: str) -> None:
    if not isinstance(row, dict):
        raise InputError(f"{where}: not a JSON object: give the --out_dir of a finished job")
    if missing := sorted(REQUIRED - row.keys()):
        raise InputError(
            f"{where}: lacks {', '.join(missing)}: run the job again, it is of an older version"
        )


def _differing(first: Row, second: Row) -> list[str]:
    """Names of what differs between two rows of one run; NaN equals NaN."""
    return [
        name
        for name in sorted(first.keys() | second.keys())
        if name not in INCIDENTAL and json.dumps(first.get(name)) != json.dumps(second.get(name))
    ]
