"""Jobs in shards: each run is in one of them and comes out as in the whole job; merging them."""

import dataclasses
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from experiments import main
from tests.helpers import fork_server, toy_job
from wayward_jax.errors import InputError
from wayward_jax.jobs import job, records
from wayward_jax.jobs.parts import select_part
from wayward_jax.jobs.progress_bar import ProgressReporter
from wayward_jax.jobs.records import read_jobs
from wayward_jax.runs import Run

TARGETS = "w7 w8 w9\n" + " ".join(["w1 w2"] * 28) + "\n"
FLAGS = {"seeds": (1, 2), "steps": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With targets so short and long that texts are cut for the long one."""
    folder = toy_job.make(tmp_path_factory.mktemp("shards"))
    (folder / "words.txt").write_text(TARGETS)
    return folder


def run_job(folder, out_dir, **changed):
    changed = {**FLAGS, "targets": str(folder / "words.txt"), **changed}
    settings = toy_job.settings(folder, out_dir, **changed)
    with ProgressReporter(Console(quiet=True)) as watch:
        return job.run_job(settings, main.EXPERIMENT, out_dir, watch)


@pytest.fixture(scope="module")
def whole(folder):
    return toy_job.rows(run_job(folder, folder / "whole").records)


@pytest.fixture(scope="module")
def in_shards(folder):
    for number in range(2):
        run_job(folder, folder / "in_shards", shard=f"{number}/2")
    return folder / "in_shards"


@pytest.mark.slow
def test_shards_are_merged_to_the_rows_of_the_whole_job(in_shards, whole):
    found = {run.record.id: run for run in read_jobs([in_shards])}
    assert len(whole) == 12
    assert found.keys() == {row["id"] for row in whole}
    for row in whole:
        run = found[row["id"]]
        assert run.checkpoint.is_dir()
        toy_job.assert_same_outcome(*toy_job.rows([run.record]), row)


@pytest.mark.slow
def test_the_tasks_of_one_step_do_a_shard_each(fork, folder, whole, tmp_path_factory):
    """Both tasks of one `srun` run at once, with all variables by which they could join."""
    out_dir = folder / "step"
    changed = {**FLAGS, "seeds": "1,2", "targets": folder / "words.txt", "out_dir": out_dir}
    started = []
    for number in range(2):
        slurm = {
            "SLURM_JOB_ID": "77",
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": f"{number}",
            "SLURM_LOCALID": f"{number}",
            "SLURM_NODEID": "0",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_TASKS_PER_NODE": "2",
        }
        # The two ways to write it are one.
        shard = ("auto", "1/2")[number]
        flags = toy_job.arguments(folder, **changed, shard=shard, n_eval=0, batch_size=4)
        output = tmp_path_factory.mktemp("output")
        started.append(fork_server.start(fork, "experiments.run", flags, output, 300, slurm))
    ended = [program.finish() for program in started]
    assert [each.code for each in ended] == [0, 0], ended
    assert {path.name for path in out_dir.iterdir()} == {"shard-0-of-2", "shard-1-of-2"}
    found = {run.record.id: run.record for run in read_jobs([out_dir])}
    assert found.keys() == {row["id"] for row in whole}
    for row in whole:
        toy_job.assert_same_outcome(*toy_job.rows([found[row["id"]]]), row)


@pytest.mark.slow
def test_a_run_done_alone_sees_the_texts_that_it_sees_in_the_whole_job(folder, whole):
    """Though the longest prompt, for which texts are cut, is another's."""
    short = next(row for row in whole if row["prompt_length"] == 3)
    (row,) = toy_job.rows(run_job(folder, folder / "alone", only=(short["id"],)).records)
    toy_job.assert_same_outcome(row, short)


@given(st.integers(0, 30), st.integers(1, 12))
def test_every_run_is_in_one_shard_and_shards_are_equally_large(tmp_path_factory, count, shards):
    runs = [Run("tiny", "task", 3, seed=seed) for seed in range(count)]
    folder = tmp_path_factory.getbasetemp()
    settings = toy_job.settings(folder, folder / "out")
    parts = [dataclasses.replace(settings, shard=(number, shards)) for number in range(shards)]
    if shards > count:
        for each in parts:
            with pytest.raises(InputError, match=r"^shard=.*give at most"):
                select_part(each, runs)
        return
    found = [select_part(each, runs) for each in parts]
    assert list(itertools.chain.from_iterable(found)) == runs
    sizes = [len(each) for each in found]
    assert max(sizes) - min(sizes) <= 1


def test_a_missing_shard_is_named(tmp_path):
    for number in (0, 2):
        (tmp_path / f"shard-{number}-of-4").mkdir()
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}: lacks shard 1, 3 of 4: ")):
        read_jobs([tmp_path])


@pytest.mark.slow
def test_another_number_of_shards_or_none_is_refused(folder, in_shards, whole):
    before = sorted(in_shards.rglob("*"))
    with pytest.raises(InputError, match=r"out_dir=.* has shards of 2: "):
        run_job(folder, in_shards, shard="0/3")
    with pytest.raises(InputError, match=r"out_dir=.* not empty"):
        run_job(folder, in_shards)
    assert sorted(in_shards.rglob("*")) == before
    with pytest.raises(InputError, match=r"out_dir=.* without shard: "):
        run_job(folder, folder / "whole", shard="0/2")
    assert len(records.read_lines(folder / "whole" / "results.jsonl")) == len(whole)


@pytest.mark.slow
def test_a_shard_of_other_flags_is_refused(folder, in_shards):
    with pytest.raises(InputError, match=r"\(steps was 4 and is 5\)"):
        run_job(folder, in_shards, shard="1/2", steps=5)
