"""The folder of a job: what is in it, and how an earlier start of the job is continued."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wayward_jax import checkpoints
from wayward_jax.errors import InputError
from wayward_jax.jobs import records
from wayward_jax.jobs.kept_flags import differing, read_flags
from wayward_jax.jobs.layout import JobLayout
from wayward_jax.jobs.object_stores import Mirror
from wayward_jax.jobs.processes import on_primary, primary_context
from wayward_jax.jobs.records import FinishedRun, Measured
from wayward_jax.jobs.settings import Settings
from wayward_jax.locks import locked
from wayward_jax.runs import Run, RunRecord
from wayward_jax.training.population import PopulationPlan
from wayward_jax.training.progress import TrainProgress

Plans = list[tuple[str, PopulationPlan]]
"""Populations with the names of their tasks."""


@contextlib.contextmanager
def writing(folder: Path | str) -> Iterator[None]:
    """Turns an `OSError` into an `InputError` on a job's folder."""
    try:
        yield
    except OSError as error:
        raise InputError(
            "out_dir",
            str(folder),
            f"cannot be written ({error.strerror or error}): make room or name another folder; "
            "what is finished stays, and the same command continues it",
        ) from error


@on_primary
def shard_of(job: JobLayout, shard: tuple[int, int]) -> JobLayout:
    """The folder of a shard `(i, n)` in the `--out_dir` that it shares with the others.

    Raises:
        InputError: that folder belongs to a whole job, or to another number of shards.
    """
    number, count = shard
    with writing(job.folder):
        if job.flags.exists():
            raise InputError(
                "out_dir",
                str(job.folder),
                "is a job without --shard: leave out --shard to continue it, or name a new folder",
            )
        others = {found for _, found in job.shards()} - {count}
    if others:
        raise InputError(
            "out_dir",
            str(job.folder),
            f"has shards of {others.pop()}: give --shard={number} of as many, or name a new folder",
        )
    return job.shard(number, count)


class JobFolder:
    """Reads and writes the folder that `--out_dir` names, whose files `layout` has.

    All processes of a job call the public methods together. The primary process does the work, and
    the result is shared.
    """

    def __init__(self, layout: JobLayout, settings: Settings, mirror: Mirror | None = None) -> None:
        """Touches nothing yet; a mirror is told when something was written."""
        self.layout = layout
        self._flags, self._mirror = settings.texts(), mirror

    @on_primary
    def validate(self) -> None:
        """Checks that this job may use the folder, and writes nothing but the file of the lock.

        Raises:
            InputError: the folder is another job's, in use, or of something else.
        """
        folder, half = self.layout.folder, _half(self.layout.flags)
        with writing(folder):
            if folder.exists() and not folder.is_dir():
                raise InputError(
                    "out_dir", str(folder), "is not a folder: name a folder, or a new one"
                )
            if self.layout.flags.exists():
                self._check_flags()
                with self._locked():
                    pass
            elif folder.exists() and set(folder.iterdir()) - {self.layout.lock, half}:
                raise InputError(
                    "out_dir", str(folder), "is not empty, and holds no job: name a new folder"
                )

    def lock(
        self, decisive: Mapping[str, str], note: Callable[[str], None]
    ) -> contextlib.AbstractContextManager[None]:
        """Makes the folder, and keeps other processes out for a while.

        Args:
            decisive: `content`, a digest of the job's runs and examples, and `dtype`, that of the
                weights. They are compared with those of an earlier start, whose files and devices
                may have been others.
            note: is told what had to be repaired.

        Raises:
            InputError: the folder is another job's or in use, or it cannot be written.
        """
        return primary_context(self._lock_folder(decisive, note))

    @on_primary
    def records(self) -> dict[str, RunRecord]:
        """The records of all finished runs by run id, in the order they came, without prompts."""
        return self._records()

    @on_primary
    def meshes(self) -> dict[str, dict[str, int]]:
        """The sizes of the meshes of the last start, by the model's name; none without plans."""
        plan = self._read_plan()
        try:
            return dict(plan["made_for"]["meshes"])
        except (KeyError, TypeError):
            return {}

    @on_primary
    def load_prompt(self, record: RunRecord) -> np.ndarray:
        """The prompt `[L, D]` of a finished run."""
        return records.load_prompts([FinishedRun(record, self.layout)])[record.id]

    @on_primary
    def plans(
        self,
        made_for: Mapping[str, Any],
        runs: Mapping[str, Run],
        make: Callable[[set[str]], Plans],
    ) -> Plans:
        """The populations to tune; those that are finished may be among them.

        They are those of an earlier start, unless that was made for something else or lacks a run:
        plans depend on the memory that is free and on what else is planned, and only with the same
        plans do populations continue from their checkpoints and come to the very same numbers.

        Args:
            made_for: what the plans depend on beside the runs, and what `lock` compares.
            runs: the runs of this job, or of the part of it that is carried out, by id.
            make: makes plans for the runs of these ids.
        """
        done = self._records().keys()
        plans = self._read_plans(made_for, runs, runs.keys() - done)
        if plans is None:
            plans = make(runs.keys() - done)
            populations = [{"task": task, **plan.to_json()} for task, plan in plans]
            with writing(self.layout.folder):
                _write(self.layout.plan, {"made_for": made_for, "populations": populations})
        return plans

    @contextlib.contextmanager
    def in_flight(self, task: str, plan: PopulationPlan) -> Iterator["InFlight"]:
        """The progress of a population, which is removed once the population is finished.

        Progress of any other population is removed at once.
        """
        with primary_context(self._progress_checkpoints(task, plan)) as kept:
            yield InFlight(kept, self.layout.folder, self._mirror)

    @on_primary
    def add(self, finished: Sequence[RunRecord]) -> None:
        """Writes the prompts of finished runs in one checkpoint, then their records, none twice."""
        self._add(finished)

    @on_primary
    def take_over(self, finished: Sequence[FinishedRun]) -> None:
        """Copies runs that other jobs have finished."""
        done = self._records()
        new = [run for run in finished if run.record.id not in done]
        prompts = records.load_prompts(new)
        self._add([dataclasses.replace(run.record, prompt=prompts[run.record.id]) for run in new])

    @on_primary
    def measured(self) -> Measured:
        """The measurements of the runs, by this process or an earlier one."""
        return records.read_measurements([self.layout.folder])

    @on_primary
    def add_measurement(self, measurement: str, key: str, rows: Sequence[dict[str, Any]]) -> None:
        """Writes the rows of one measurement, all in a line."""
        with writing(self.layout.folder):
            line = {"measurement": measurement, "key": key, "rows": rows}
            records.append_lines(self.layout.measurements, [line])
        self._send()

    @contextlib.contextmanager
    def _lock_folder(
        self, decisive: Mapping[str, str], note: Callable[[str], None]
    ) -> Iterator[None]:
        with writing(self.layout.folder):
            self.layout.folder.mkdir(parents=True, exist_ok=True)
        with self._locked() as is_locked:
            if not is_locked:
                note(
                    f"the file system of {self.layout.folder} has no locks: make sure that no two "
                    "jobs share the folder"
                )
            with writing(self.layout.folder):
                if self.layout.flags.exists():
                    self._check_flags()
                    self._check_content(decisive)
                else:
                    _write(self.layout.flags, self._flags)
                for path in (self.layout.results, self.layout.measurements):
                    if path.exists() and records.repair(path):
                        note(f"dropped half a line at the end of {path}")
            yield

    @contextlib.contextmanager
    def _progress_checkpoints(
        self, task: str, plan: PopulationPlan
    ) -> Iterator[checkpoints.ProgressCheckpoints]:
        key = hashlib.sha256(json.dumps([task, plan.to_json()]).encode()).hexdigest()[:12]
        folder = self.layout.in_flight
        with writing(self.layout.folder):
            for other in folder.glob("*"):
                if other.name != key:
                    shutil.rmtree(other)
            kept = checkpoints.ProgressCheckpoints(folder / key)
        try:
            yield kept
        finally:
            with writing(self.layout.folder):
                kept.close()
        shutil.rmtree(folder)
        self._send()

    def _records(self) -> dict[str, RunRecord]:
        found = records.read_records(self.layout) if self.layout.results.exists() else []
        return {record.id: record for record in found}

    def _read_plans(
        self, made_for: Mapping[str, Any], runs: Mapping[str, Run], left: set[str]
    ) -> Plans | None:
        kept = self._read_plan()
        try:
            planned = {run for population in kept["populations"] for run in population["runs"]}
            if kept["made_for"] != made_for or not left <= planned:
                return None
            return [
                (population.pop("task"), PopulationPlan.from_json(population, runs))
                for population in kept["populations"]
            ]
        except (ValueError, KeyError, TypeError):
            return None

    def _read_plan(self) -> Any:
        """The content of the file of plans; None if there is none, or not all of it."""
        with records.reading(self.layout.plan):
            try:
                return json.loads(self.layout.plan.read_text(encoding="utf-8"))
            except (FileNotFoundError, NotADirectoryError, ValueError):
                return None

    def _add(self, finished: Sequence[RunRecord]) -> None:
        """See `add`.

        The name of a checkpoint is a digest of the runs whose prompts it has. A crash before their
        records leaves a checkpoint that is replaced; one that records name is never written again.
        """
        with writing(self.layout.folder):
            done = self._records()
            new = {record.id: record for record in finished if record.id not in done}
            if not new:
                return
            name = hashlib.sha256(json.dumps([*new]).encode()).hexdigest()[:12]
            path = self.layout.checkpoints / name
            checkpoints.save_prompts(path, {id_: record.prompt for id_, record in new.items()})
            place = path.relative_to(self.layout.folder).as_posix()
            rows = [
                dataclasses.replace(record, checkpoint=place).to_json() for record in new.values()
            ]
            records.append_lines(self.layout.results, rows)

    def _send(self) -> None:
        if self._mirror is not None:
            self._mirror.send()

    def _check_flags(self) -> None:
        then = read_flags(self.layout)
        if differences := differing(then, self._flags, "results"):
            raise self._other_job(f"of other flags ({', '.join(differences)})")

    def _check_content(self, decisive: Mapping[str, str]) -> None:
        plan = self._read_plan()
        try:
            content, dtype = plan["made_for"]["content"], plan["made_for"]["dtype"]
        except (KeyError, TypeError):
            return  # nothing was begun
        if dtype != decisive["dtype"]:
            raise self._other_job(f"of --dtype={dtype}, and here it is {decisive['dtype']}")
        if content != decisive["content"]:
            differences = differing(read_flags(self.layout), self._flags, "results by content")
            reasons = ", ".join(differences) or "what its flags name has changed since"
            raise self._other_job(f"of other runs or examples ({reasons})")

    def _other_job(self, difference: str) -> InputError:
        return InputError(
            "out_dir",
            str(self.layout.folder),
            f"is a job {difference}: give the same to continue it, or name a new folder",
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        with contextlib.ExitStack() as stack:
            with writing(self.layout.folder):
                try:
                    is_locked = stack.enter_context(locked(self.layout.lock, wait=False))
                except BlockingIOError:
                    raise InputError(
                        "out_dir",
                        str(self.layout.folder),
                        "is in use by another process: wait for it, or name another folder",
                    ) from None
            yield is_locked


class InFlight:
    """The progress of the population that is being tuned, as it is kept in the job's folder.

    As in `JobFolder`, all processes call the methods together.
    """

    def __init__(
        self,
        kept: checkpoints.ProgressCheckpoints | None,
        folder: Path,
        mirror: Mirror | None,
    ) -> None:
        """`kept` is None on processes other than the primary one."""
        self._kept, self._folder, self._mirror = kept, folder, mirror

    @on_primary
    def restore(self, on_broken: Callable[[int], None]) -> dict[str, Any] | None:
        """The last progress that is not broken, as `TrainProgress.to_tree`; None without any.

        Args:
            on_broken: is told the step of each checkpoint that is broken.

        Raises:
            InputError: the disk does not let a checkpoint be read.
        """
        with records.reading(self._kept.folder):
            return self._kept.restore(on_broken)

    @on_primary
    def save_progress(self, progress: TrainProgress) -> None:
        """Writes progress that is on the host, in the background unless there is a mirror."""
        with writing(self._folder):
            self._kept.save(progress.step, progress.to_tree())
            if self._mirror is not None:
                self._kept.wait()
        if self._mirror is not None:
            self._mirror.send()


def _half(path: Path) -> Path:
    """The file that `_write` renames to `path` once it is complete. A crash may leave it."""
    return path.with_name(f".{path.name}")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes all of a file of JSON or nothing."""
    half = _half(path)
    with half.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)
