"""Jobs that are ended in every way and started again end with the table of an undisturbed one."""

import contextlib
import errno
import fcntl
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console

from experiments import main
from tests.helpers import fork_server, toy_job
from wayward_jax.checkpoints import load_prompts
from wayward_jax.errors import InputError
from wayward_jax.jobs import job, records
from wayward_jax.jobs.exit_codes import STOPPED
from wayward_jax.jobs.progress_bar import ProgressReporter
from wayward_jax.locks import locked
from wayward_jax.training.trainer import tune_population

pytestmark = pytest.mark.slow

# Entries that may differ after a crash, since runs are then finished apart from others.
INCIDENTAL = ("seconds", "checkpoint")

# Two populations of three runs, and two checkpoints each before the last step.
CHANGED = {"gamma": (0.5,), "seeds": (1, 2), "steps": 20, "population": 3}
FLAGS = {"gamma": "0.5", "seeds": "1,2", "population": 3, "checkpoint_every": 5, "n_eval": 0}
LONG = {**FLAGS, "steps": 200, "batch_size": 4, "dtype": "float32"}


class Listening(ProgressReporter):
    """Keeps the notes, and does something once after so many steps."""

    def __init__(self, after, do):
        super().__init__(Console(quiet=True))
        self.said, self.steps, self.total = [], 0, None
        self.after, self.do = after, do

    def note(self, what):
        self.said.append(what)

    def planned(self, steps):
        self.total = steps

    def stepped(self, steps, figures):
        self.steps += steps
        if self.after is not None and self.steps >= self.after:
            self.after = None
            self.do()


def terminate():
    """Sends this process a signal."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)  # for the thread that listens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_job.make(tmp_path_factory.mktemp("resume"))


def run_job(folder, out_dir, after=None, do=terminate, **changed):
    """The job in this process, and what it said."""
    settings = toy_job.settings(folder, out_dir, **{**CHANGED, "checkpoint_every": 5, **changed})
    with Listening(after, do) as watch:
        job.run_job(settings, main.EXPERIMENT, out_dir, watch)
    return watch


@pytest.fixture(scope="module")
def undisturbed(folder):
    run_job(folder, folder / "undisturbed")
    return folder / "undisturbed"


@pytest.fixture
def out_dir(tmp_path):
    return tmp_path / "job"


@pytest.fixture(scope="module")
def stopped(folder):
    """The folder of a job that a signal stopped amid its second population."""
    with pytest.raises(KeyboardInterrupt, match="same command"):
        run_job(folder, folder / "stopped", after=CHANGED["steps"] + 10)
    return folder / "stopped"


def checkpoints_of(out_dir):
    """The checkpoints of the only population in flight, in order."""
    (population,) = (out_dir / "in_flight").iterdir()
    return sorted(population.iterdir(), key=lambda path: int(path.name))


def table(out_dir):
    rows = records.read_lines(out_dir / "results.jsonl")
    return [{name: row[name] for name in row if name not in INCIDENTAL} for row in rows]


def assert_same(out_dir, undisturbed):
    """Rows and prompts to the bit, and nothing left over."""
    assert table(out_dir) == table(undisturbed)
    here, there = (records.read_lines(each / "results.jsonl") for each in (out_dir, undisturbed))
    for row, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(
            toy_job.prompt(out_dir, row), toy_job.prompt(undisturbed, other)
        )
    assert sorted(os.listdir(out_dir)) == sorted(os.listdir(undisturbed))


def test_a_job_stopped_in_each_population_continues_where_it_was(folder, out_dir, undisturbed):
    with pytest.raises(KeyboardInterrupt):
        run_job(folder, out_dir, after=10)
    with pytest.raises(KeyboardInterrupt):
        run_job(folder, out_dir, after=30)
    assert len(table(out_dir)) == 3
    watch = run_job(folder, out_dir)
    assert watch.total == CHANGED["steps"]
    assert watch.said == []
    assert_same(out_dir, undisturbed)


def test_a_finished_job_is_not_done_again(folder, undisturbed):
    before = {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}
    assert run_job(folder, undisturbed).total == 0
    assert {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()} == before


def test_a_broken_checkpoint_gives_way_to_the_one_before(
    folder, out_dir, stopped, undisturbed, monkeypatch
):
    steps_before = []

    def tune(*args, resume_from, **others):
        task_losses, _ = resume_from["losses"]
        steps_before.append(len(task_losses))
        return tune_population(*args, resume_from=resume_from, **others)

    monkeypatch.setattr(job, "tune_population", tune)
    shutil.copytree(stopped, out_dir)
    before, last = checkpoints_of(out_dir)
    for path in last.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])
    watch = run_job(folder, out_dir)
    assert watch.said == [
        f"the checkpoint of step {last.name} is broken: continuing from the one before it"
    ]
    assert steps_before == [int(before.name)]
    assert_same(out_dir, undisturbed)


def test_without_a_sound_checkpoint_the_population_starts_again(
    folder, out_dir, stopped, undisturbed
):
    shutil.copytree(stopped, out_dir)
    for checkpoint in checkpoints_of(out_dir):
        shutil.rmtree(checkpoint / "progress")
    assert len(run_job(folder, out_dir).said) == 2
    assert_same(out_dir, undisturbed)


def test_a_crash_amid_the_rows_of_a_population_is_repaired(folder, out_dir, undisturbed):
    """One of its three rows is whole, one is cut, and one is missing."""
    shutil.copytree(undisturbed, out_dir)
    path = out_dir / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:100])
    watch = run_job(folder, out_dir)
    assert watch.said == [f"dropped half a line at the end of {path}"]
    assert_same(out_dir, undisturbed)


def test_the_prompts_of_a_population_are_one_checkpoint(undisturbed):
    written = list((undisturbed / "checkpoints").iterdir())
    assert len(written) == 2
    for place in written:
        rows = records.read_lines(undisturbed / "results.jsonl")
        own = {row["id"] for row in rows if undisturbed / row["checkpoint"] == place}
        assert len(own) == 3
        assert load_prompts(place).keys() == own
        assert sum(path.is_file() for path in place.rglob("*")) < 2 * 8


def test_a_crash_between_the_prompts_and_the_rows_changes_nothing(
    folder, out_dir, undisturbed, monkeypatch
):
    append = records.append_lines

    def crash(path, objects):
        if path == out_dir / "results.jsonl":
            raise KeyboardInterrupt
        append(path, objects)

    monkeypatch.setattr(records, "append_lines", crash)
    with pytest.raises(KeyboardInterrupt):
        run_job(folder, out_dir)
    assert len(list((out_dir / "checkpoints").iterdir())) == 1
    assert not (out_dir / "results.jsonl").exists()
    monkeypatch.setattr(records, "append_lines", append)
    run_job(folder, out_dir)
    assert_same(out_dir, undisturbed)
    assert len(list((out_dir / "checkpoints").iterdir())) == 2


def test_a_checkpoint_that_rows_name_is_never_written_again(folder, out_dir, undisturbed):
    """Though a run that was finished with others lacks its row."""
    shutil.copytree(undisturbed, out_dir)
    path = out_dir / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    files = (out_dir / "checkpoints").rglob("*")
    before = {path: path.read_bytes() for path in files if path.is_file()}
    run_job(folder, out_dir)
    assert {path: path.read_bytes() for path in before} == before
    assert_same(out_dir, undisturbed)


def test_a_job_with_rows_of_the_old_format_is_not_continued(folder, out_dir, undisturbed):
    shutil.copytree(undisturbed, out_dir)
    path = out_dir / "results.jsonl"
    path.write_text(path.read_text().replace('"text"', '"projected_text"'))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"results.jsonl:1: lacks text: .* run the job again$"):
        run_job(folder, out_dir)
    assert path.read_bytes() == before


@pytest.mark.parametrize("lost", ["flags.json", "plan.json"])
def test_a_crash_amid_the_first_files_is_repaired(folder, out_dir, undisturbed, lost):
    out_dir.mkdir()
    (out_dir / ".lock").touch()
    if lost == "plan.json":  # which is written after the flags
        shutil.copy(undisturbed / "flags.json", out_dir)
    (out_dir / f".{lost}").write_bytes((undisturbed / lost).read_bytes()[:100])
    run_job(folder, out_dir)
    assert table(out_dir) == table(undisturbed)


def test_another_population_size_keeps_what_is_finished_and_does_the_rest(
    folder, out_dir, stopped, undisturbed
):
    shutil.copytree(stopped, out_dir)
    finished = (out_dir / "results.jsonl").read_bytes()
    assert run_job(folder, out_dir, population=2).total == 2 * CHANGED["steps"]
    assert (out_dir / "results.jsonl").read_bytes().startswith(finished)
    ids = [row["id"] for row in table(out_dir)]
    assert sorted(ids) == sorted(row["id"] for row in table(undisturbed))


def test_a_part_of_the_runs_can_be_done_first(folder, out_dir, undisturbed):
    """By `--only`, which is another plan."""
    chosen = tuple(row["id"] for row in table(undisturbed)[1:3])
    run_job(folder, out_dir, only=chosen)
    assert sorted(row["id"] for row in table(out_dir)) == sorted(chosen)
    run_job(folder, out_dir)
    ids = [row["id"] for row in table(out_dir)]
    assert sorted(ids) == sorted(row["id"] for row in table(undisturbed))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"steps": 30}, "--steps was 20 and is 30"),
        ({"gamma": (0.5, 0.1)}, "--gamma was 0.5 and is 0.5,0.1"),
        ({"n_eval": 5}, "--n_eval was 0 and is 5"),
    ],
)
def test_other_flags_are_refused_with_the_difference(folder, undisturbed, changed, said):
    before = {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"^out_dir=") as error:
        run_job(folder, undisturbed, **changed)
    assert said in error.value.as_flag()
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()} == before


def test_a_job_of_another_precision_under_the_same_flags_is_refused(folder, out_dir, undisturbed):
    """As if auto had been bfloat16 on the machine where the job began."""
    shutil.copytree(undisturbed, out_dir)
    for file, meant in (("flags.json", "auto"), ("plan.json", "bfloat16")):
        written = (out_dir / file).read_text()
        assert '"dtype": "float32"' in written
        (out_dir / file).write_text(written.replace('"dtype": "float32"', f'"dtype": "{meant}"'))
    with pytest.raises(InputError, match="is a job of dtype=bfloat16, and here it is float32"):
        run_job(folder, out_dir, dtype="auto")


def test_flags_that_do_not_decide_results_may_change(folder, undisturbed):
    given = {"cache_dir": folder / "another", "checkpoint_every": 7, "mesh": "runs:1"}
    assert run_job(folder, undisturbed, **given).total == 0


def test_a_folder_of_something_else_is_left_alone(folder, out_dir):
    out_dir.mkdir()
    (out_dir / "thesis.tex").write_text("all my work")
    with pytest.raises(InputError, match=r"out_dir=.*not empty"):
        run_job(folder, out_dir)
    assert [path.name for path in out_dir.iterdir()] == ["thesis.tex"]


def test_two_jobs_in_one_folder_are_told_apart(folder, out_dir, undisturbed):
    shutil.copytree(undisturbed, out_dir)
    with locked(out_dir / ".lock"), pytest.raises(InputError, match=r"out_dir=.*in use"):
        run_job(folder, out_dir)


def test_a_disk_that_cannot_be_read_ends_the_job_and_nothing_is_deleted(
    folder, out_dir, stopped, undisturbed
):
    """Files are replaced by one whose reading is an error of the disk, and put back."""
    shutil.copytree(stopped, out_dir)
    *_, last = checkpoints_of(out_dir)
    progress = [path for path in last.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in out_dir.rglob("*") if path.is_file()}
    alone = [[out_dir / name] for name in ("results.jsonl", "plan.json", "flags.json")]
    for files in [progress, *alone]:
        for path in files:
            path.unlink()
            path.symlink_to("/proc/self/mem")
        with pytest.raises(InputError, match=r"cannot be read \(.*Input/output error"):
            run_job(folder, out_dir)
        for path in files:
            path.unlink()
            path.write_bytes(before[path])
        after = {path: path.read_bytes() for path in out_dir.rglob("*") if path.is_file()}
        assert after == before, files
    assert run_job(folder, out_dir).said == []
    assert_same(out_dir, undisturbed)


def test_a_file_system_without_locks_and_syncing_of_folders_will_do(
    folder, out_dir, undisturbed, monkeypatch
):
    sync = os.fsync

    def flock(file, operation):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(os, "fsync", fsync)
    (said,) = run_job(folder, out_dir, cache_dir=out_dir.with_name("cache")).said
    assert said.startswith(f"the file system of {out_dir} has no locks: ")
    assert_same(out_dir, undisturbed)


def test_a_quota_is_named_as_a_full_disk_is(folder, out_dir, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=r"out_dir=.*\(Disk quota exceeded\): make room"):
        run_job(folder, out_dir)


@contextlib.contextmanager
def mounted(folder, options):
    """A file system of its own at a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_read_only_folder_is_refused_before_training(folder, out_dir):
    with mounted(out_dir, "ro"), pytest.raises(InputError, match=r"out_dir=.*Read-only"):
        run_job(folder, out_dir)


def assert_ends_of_a_full_disk(folder, out_dir, larger, undisturbed, **filling):
    """Checks that finished runs stay and that the job continues elsewhere; returns their number."""
    with pytest.raises(InputError, match=r"out_dir=.*No space left on device"):
        run_job(folder, out_dir, **filling)
    shutil.copytree(out_dir, larger, ignore=shutil.ignore_patterns("filler"))
    rows = table(larger) if (larger / "results.jsonl").exists() else []
    assert rows == table(undisturbed)[: len(rows)]
    run_job(folder, larger)
    assert_same(larger, undisturbed)
    return len(rows)


@pytest.mark.parametrize("kilobytes", [4, 60, 120, 160, 200])
def test_a_small_disk_ends_the_job_wherever_it_is(folder, tmp_path, undisturbed, kilobytes):
    out_dir = tmp_path / "small"
    with mounted(out_dir, f"size={kilobytes}k"):
        assert_ends_of_a_full_disk(folder, out_dir, tmp_path / "larger", undisturbed)


def test_a_disk_that_fills_up_ends_the_job_and_leaves_what_was_finished(
    folder, tmp_path, undisturbed
):
    out_dir = tmp_path / "filling"

    def fill():
        with contextlib.suppress(OSError), (out_dir / "filler").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    with mounted(out_dir, "size=4m"):
        finished = assert_ends_of_a_full_disk(
            *(folder, out_dir, tmp_path / "larger", undisturbed),
            after=CHANGED["steps"] + 1,
            do=fill,
        )
    assert finished == 3


@pytest.fixture
def begin(fork, folder, out_dir, tmp_path_factory):
    """Starts the command."""

    def begin():
        words = toy_job.arguments(folder, **LONG, out_dir=out_dir)
        output = tmp_path_factory.mktemp("output")
        return fork_server.start(fork, "experiments.run", words, output, limit=300)

    return begin


@pytest.mark.usefixtures("no_signal_ignored")
def test_kills_at_random_moments_and_a_signal_change_nothing(begin, folder, out_dir):
    rng = random.Random(time.time_ns())
    for _ in range(2):
        program = begin()
        toy_job.wait_until_tuning([program], out_dir)
        time.sleep(rng.uniform(0, 1.5))
        program.process.kill()
        program.finish()

    program = begin()
    toy_job.wait_until_tuning([program], out_dir)
    program.process.terminate()
    ended = program.finish()
    assert ended.code == STOPPED == 75
    assert ended.err == f"stopped: the same command with --out_dir={out_dir} continues it\n"

    # The rest is done in this process, which has the programs.
    for each in (folder / "long", out_dir):
        run_job(folder, each, steps=LONG["steps"], checkpoint_every=1000)
    assert_same(out_dir, folder / "long")


@pytest.mark.usefixtures("no_signal_ignored")
def test_a_second_interrupt_ends_the_process_though_it_waits_for_the_device():
    """The main thread waits in C, where Python's own handlers do not run."""
    program = """
import ctypes, os, signal
from wayward_jax.jobs.preemption import Interruption
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start jobs that ignore it
interruption = Interruption()
with interruption.heed():
    signal.siginterrupt(signal.SIGINT, False)
    print("waiting", flush=True)
    ctypes.CDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == STOPPED
    process.stdout.close()
