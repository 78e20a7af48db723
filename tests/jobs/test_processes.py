"""Jobs of several processes on CPUs: the table of one, and how they end when one of them does."""

import signal
import socket
import time

import numpy as np
import pytest
from rich.console import Console

from experiments import main
from tests.helpers import fork_server, toy_job
from wayward_jax.jobs import job, processes, records
from wayward_jax.jobs.exit_codes import LOST, STOPPED
from wayward_jax.jobs.progress_bar import ProgressReporter

# A job of this many steps is still running when a test stops it.
STEPS = 200
SECONDS = 300
FLAGS = {"gamma": "0.5", "batch_size": 4, "steps": STEPS, "n_eval": 0, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_job.make(tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def alone(folder):
    """The job's folder after one process has done it."""
    out_dir = folder / "alone"
    settings = toy_job.settings(folder, out_dir, gamma=(0.5,), steps=STEPS)
    with ProgressReporter(Console(quiet=True)) as watch:
        job.run_job(settings, main.EXPERIMENT, out_dir, watch)
    return out_dir


def free_address():
    """A host and port at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()


@pytest.fixture
def start(fork, folder, tmp_path_factory):
    """Starts the processes of a job; `of_one` are flags of the last alone."""
    started = []

    def start(count, out_dir, of_one=None, **changed):
        host, port = free_address()
        place = {"coordinator": f"{host}:{port}", "num_processes": count, "out_dir": out_dir}
        for number in range(count):
            own = (of_one or {}) if number == count - 1 else {}
            flags = {**FLAGS, **place, **changed, **own, "process_id": number}
            words = toy_job.arguments(folder, **flags)
            output = tmp_path_factory.mktemp("output")
            started.append(fork_server.start(fork, "experiments.run", words, output, SECONDS))
        return started[-count:]

    yield start
    for program in started:
        program.process.kill()


def finish(programs):
    """Their exit codes, and what each said at last."""
    ended = [program.finish() for program in programs]
    return [each.code for each in ended], [(each.out, each.err) for each in ended]


def assert_same_table(out_dir, alone):
    expected = {row["id"]: row for row in records.read_lines(alone / "results.jsonl")}
    rows = records.read_lines(out_dir / "results.jsonl")
    assert sorted(row["id"] for row in rows) == sorted(expected)
    for row in rows:
        toy_job.assert_same_outcome(row, other := expected[row["id"]])
        prompt, of_other = toy_job.prompt(out_dir, row), toy_job.prompt(alone, other)
        np.testing.assert_allclose(prompt, of_other, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_four_processes_on_a_mesh_of_runs_and_data_give_the_table_of_one(start, folder, alone):
    out_dir = folder / "four"
    codes, said = finish(start(4, out_dir, mesh="runs:2,data:2", checkpoint_every=STEPS))
    assert codes == [0] * 4, said
    assert_same_table(out_dir, alone)
    first, *others = [output for output, _ in said]
    assert str(out_dir) in first.replace("\n", "")
    assert not any(line for each in others for line in each.splitlines() if "[Gloo]" not in line)


@pytest.mark.slow
@pytest.mark.usefixtures("no_signal_ignored")
def test_when_one_process_ends_so_do_the_others_and_the_same_command_continues(
    start, folder, alone
):
    """One of two is told to stop, and then each is killed once."""
    out_dir = folder / "ended"
    started = start(2, out_dir)
    toy_job.wait_until_tuning(started, out_dir)
    started[1].send_signal(signal.SIGINT)
    codes, said = finish(started)
    assert codes == [STOPPED] * 2, said
    assert f"stopped: the same command with --out_dir={out_dir} continues it\n" in said[0][1]

    for killed in (1, 0):
        started = start(2, out_dir)
        toy_job.wait_until_tuning(started, out_dir)
        started[killed].process.kill()
        began = time.monotonic()
        codes, said = finish(started)
        assert time.monotonic() - began < processes.HEARTBEAT
        assert codes[killed] == -signal.SIGKILL
        assert codes[1 - killed] == LOST == 76
        *_, last = said[1 - killed][1].splitlines()
        assert last.startswith("error: the processes of this job have lost each other: ")

    codes, said = finish(start(2, out_dir))
    assert codes == [0, 0], said
    assert_same_table(out_dir, alone)
    assert not (out_dir / "in_flight").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("no_signal_ignored")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_that_waits_for_the_others(fork, folder, tmp_path, number):
    host, port = free_address()
    place = {"coordinator": f"{host}:{port}", "num_processes": 2, "process_id": 0}
    words = toy_job.arguments(folder, **place, out_dir=tmp_path / "job")
    program = fork_server.start(fork, "experiments.run", words, tmp_path, SECONDS)
    while socket.socket().connect_ex((host, port)):
        assert program.process.is_alive(), program.finish()
        time.sleep(0.02)
    program.send_signal(number)
    ended = program.finish()
    assert ended.code == STOPPED, ended.err
    assert ended.err.splitlines()[-1] == "stopped"
    assert not (tmp_path / "job").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "of_one", "named"),
    [
        ({}, {"targets": "nothing"}, "--process_id=1: this process cannot use"),
        ({}, {"shard": "1/2"}, "--process_id=1: this process cannot use"),
        ({"out_dir": "TAKEN"}, {}, "--out_dir="),
    ],
)
def test_bad_input_of_any_ends_all_with_exit_code_2(start, folder, alone, changed, of_one, named):
    """A flag of one process, and a folder that the first alone looks at."""
    out_dir = folder / "refused"
    changed = {name: str(folder) if v == "TAKEN" else v for name, v in changed.items()}
    codes, said = finish(start(2, **{"out_dir": out_dir, **changed}, of_one=of_one))
    assert codes == [2, 2], said
    assert named in said[0][1]
    assert not out_dir.exists()
