"""The folder of a job: what is in it, and how an earlier job is taken up again."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from wayward_jax import checkpoints
from wayward_jax.errors import InputError
from wayward_jax.jobs import finished, records
from wayward_jax.jobs.layout import JobLayout
from wayward_jax.jobs.object_stores import Mirror
from wayward_jax.runs import Run
from wayward_jax.training.planning import PopulationPlan
from wayward_jax.training.progress import TrainProgress

Plans = list[tuple[str, PopulationPlan]]
"""Populations with the names of their tasks."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an `OSError` into an `InputError` on a job's folder."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"--out_dir={path} cannot be written ({error.strerror or error}): make room or name "
            "another folder; what is finished stays, and the same command continues it"
        ) from error


def of_shard(out_dir: Path, shard: tuple[int, int]) -> Path:
    """The folder of a shard `(i, n)` in the `--out_dir` that it shares with the others.

    Raises:
        InputError: that folder is of a whole job, or of another number of shards.
    """
    number, shards = shard
    with writing(out_dir):
        if (out_dir / "flags.json").exists():
            raise InputError(
                f"--out_dir={out_dir} is a job without --shard: leave out --shard to continue it, "
                "or name a new folder"
            )
        others = {count for _, count in JobLayout(out_dir).shards()} - {shards}
    if others:
        raise InputError(
            f"--out_dir={out_dir} has shards of {others.pop()}: give --shard={number} of as many, "
            "or name a new folder"
        )
    return out_dir / f"shard-{number}-of-{shards}"


class JobFolder:
    """What `--out_dir` names.

    It holds `flags.json` of the first start, `plan.json` (which runs are tuned together),
    `records.jsonl`, `checkpoints/<run id>`, in `in_flight` a folder of checkpoints for the
    population being tuned, and `measurements.jsonl` if an experiment measures prompts.
    """

    def __init__(self, path: Path, flags: Mapping[str, Any], mirror: Mirror | None = None) -> None:
        """See `look` and `claimed`; a mirror is told of what is written."""
        self.path = path
        self._flags, self._mirror = flags, mirror
        self._lock = FileLock(path / ".lock")

    def look(self) -> None:
        """Looks what is there, and writes nothing but the file of the lock.

        Raises:
            InputError: the folder is another job's, in use, or of something else.
        """
        path = self.path
        with writing(path):
            if path.exists() and not path.is_dir():
                raise InputError(f"--out_dir={path} is not a folder: name one, or a new one")
            if (path / "flags.json").exists():
                self._check_flags()
                with self._locked():
                    pass
            elif path.exists() and any(each != path / ".lock" for each in path.iterdir()):
                raise InputError(f"--out_dir={path} is not empty, and no job's: name a new folder")

    @contextlib.contextmanager
    def claimed(self, note: Callable[[str], None]) -> Iterator[None]:
        """Makes the folder, keeps other processes out, and notes what had to be repaired.

        Raises:
            InputError: another has it, or it cannot be written.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with self._locked():
            with writing(self.path):
                if (self.path / "flags.json").exists():
                    self._check_flags()
                else:
                    self._write("flags.json", dict(self._flags))
                for path in (self._results, self._measurements):
                    if path.exists() and records.repair(path):
                        note(f"dropped half a row at the end of {path}")
            yield

    def rows(self) -> dict[str, dict]:
        """The rows of all finished runs by run id, in the order they came."""
        rows = records.read_lines(self._results) if self._results.exists() else []
        return {row["id"]: row for row in rows}

    def checkpoint(self, run: str) -> Path:
        """Where the prompt of a finished run is, by its id."""
        return self.path / "checkpoints" / run

    def read_plans(self, made_for: Mapping[str, Any], runs: Mapping[str, Run]) -> Plans | None:
        """The plans that were kept, unless they were made for something else or lack a run."""
        try:
            kept = json.loads((self.path / "plan.json").read_text(encoding="utf-8"))
            planned = {run for each in kept["populations"] for run in each["runs"]}
            if kept["made_for"] != made_for or not runs.keys() - self.rows().keys() <= planned:
                return None
            return [
                (record.pop("task"), PopulationPlan.from_json(record, runs))
                for record in kept["populations"]
            ]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_plans(self, made_for: Mapping[str, Any], plans: Plans) -> None:
        """Keeps plans for `read_plans`; checkpoints of any other population are removed."""
        with writing(self.path):
            records = [{"task": task, **plan.to_json()} for task, plan in plans]
            self._write("plan.json", {"made_for": made_for, "populations": records})

    @contextlib.contextmanager
    def in_flight(
        self, task: str, plan: PopulationPlan
    ) -> Iterator[checkpoints.ProgressCheckpoints]:
        """The checkpoints of a population, which are removed once it is finished."""
        key = hashlib.sha256(json.dumps([task, plan.to_json()]).encode()).hexdigest()[:12]
        folder = self.path / "in_flight"
        with writing(self.path):
            for other in folder.glob("*"):
                if other.name != key:
                    shutil.rmtree(other)
            kept = checkpoints.ProgressCheckpoints(folder / key)
        try:
            yield kept
        finally:
            with writing(self.path):
                kept.close()
        shutil.rmtree(folder)
        self._send()

    def keep(self, kept: checkpoints.ProgressCheckpoints, progress: TrainProgress) -> None:
        """Writes how far a population has come, in the background unless there is a mirror."""
        with writing(self.path):
            kept.save(progress.step, progress.to_tree())
            if self._mirror is not None:
                kept.wait()
        self._send()

    def add(self, rows: Sequence[dict], load_prompt: Callable[[str], np.ndarray]) -> None:
        """Writes prompts, which are given by run id, and then rows of finished runs; none twice."""
        with writing(self.path):
            done = self.rows()
            new = [row for row in rows if row["id"] not in done]
            for row in new:
                checkpoints.save_prompt(self.checkpoint(row["id"]), load_prompt(row["id"]))
            records.append_lines(self._results, new)

    def measured(self) -> records.Measured:
        """What was measured of the runs, in this process or before."""
        return records.read_measurements([self.path])

    def add_measurement(self, measurement: str, key: str, rows: Sequence[dict[str, Any]]) -> None:
        """Writes the rows of one measurement, all in a line."""
        with writing(self.path):
            line = {"measurement": measurement, "key": key, "rows": rows}
            records.append_lines(self._measurements, [line])
        self._send()

    def _send(self) -> None:
        if self._mirror is not None:
            self._mirror.send()

    @property
    def _measurements(self) -> Path:
        return JobLayout(self.path).measurements

    @property
    def _results(self) -> Path:
        return self.path / "results.jsonl"

    def _check_flags(self) -> None:
        then = finished.read_flags(self.path)
        now = finished.deciding(json.loads(json.dumps(self._flags)))
        changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        if changed:
            differences = ", ".join(
                f"--{name} was {_shown(then.get(name))} and is {_shown(now.get(name))}"
                for name in changed
            )
            raise InputError(
                f"--out_dir={self.path} is a job of other flags ({differences}): give the same to "
                "continue it, or name a new folder"
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with writing(self.path):
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise InputError(
                    f"--out_dir={self.path} is in use by another process: wait for it, or name "
                    "another folder"
                ) from None
        try:
            yield
        finally:
            self._lock.release()

    def _write(self, name: str, content: dict[str, Any]) -> None:
        """All of a file or nothing."""
        half = self.path / f".{name}"
        with half.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        half.replace(self.path / name)


def _shown(value: object) -> str:
    """A flag's value as it is given on a command line."""
    values = value if isinstance(value, list) else [value]
    return ",".join(str(each) for each in values)
