"""Runs and their ids depend on what files hold, and not on where they lie."""

import json
import shutil

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from experiments import main
from tests.helpers import toy_job, toy_models
from wayward_jax import checkpoints
from wayward_jax.errors import InputError
from wayward_jax.jobs import job
from wayward_jax.jobs.progress_bar import ProgressReporter

pytestmark = pytest.mark.slow

STEPS = {"steps": 4, "seeds": (1, 2)}
PROMPT = np.ones((3, toy_models.WIDTH), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = toy_job.make(tmp_path_factory.mktemp("places"))
    (made / "words.txt").write_text("w7 w8 w9\n")
    checkpoints.save_prompts(made / "start", {"p": PROMPT})
    run_job(made, made / "job", **everything(made))
    return made


def everything(folder):
    """Flags with every kind of path."""
    return {"targets": f"{folder / 'words.txt'}", "init": ("target", folder / "start")}


def run_job(folder, out_dir, **changed):
    """The rows of a job, and how many steps it took."""
    settings = toy_job.settings(folder, out_dir, **{**STEPS, **changed})
    with toy_job.CountingReporter() as watch:
        records = job.run_job(settings, main.EXPERIMENT, out_dir, watch).records
    return toy_job.rows(records), watch.steps


@pytest.fixture
def moved(folder, tmp_path):
    """All that the job reads, elsewhere; and a copy of the job."""
    return shutil.copytree(folder, tmp_path / "elsewhere", copy_function=shutil.copy)


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_moved_job_is_found_finished(folder, moved):
    before = snapshot(moved / "job")
    rows, steps = run_job(moved, moved / "job", **everything(moved))
    assert steps == 0
    assert rows == run_job(folder, folder / "job", **everything(folder))[0]
    assert snapshot(moved / "job") == before


def test_a_job_on_moved_files_has_the_same_runs_and_takes_them_over(folder, moved, tmp_path):
    changed = {**everything(moved), "reuse": (folder / "job",)}
    rows, steps = run_job(moved, tmp_path / "again", **changed)
    assert steps == 0
    given, _ = run_job(folder, folder / "job", **everything(folder))
    assert [row | {"checkpoint": ""} for row in rows] == [row | {"checkpoint": ""} for row in given]
    assert {row["model"] for row in rows} == {"gpt2"}
    assert {row["task"] for row in rows} == {"mood"}
    assert not [row for row in rows if str(folder) in json.dumps(row)]


def test_a_task_may_be_given_by_its_path(folder):
    by_name, _ = run_job(folder, folder / "job", **everything(folder))
    by_path, steps = run_job(folder, folder / "job", **everything(folder), task=folder / "mood")
    assert steps == 0
    assert by_path == by_name


def change_weights(folder):
    weights = load_file(folder / "gpt2" / "model.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name] + np.float32(1e-3)
    save_file(weights, folder / "gpt2" / "model.safetensors", {"format": "pt"})


def change_examples(folder):
    path = folder / "mood" / "train.jsonl"
    first, rest = path.read_text().split("\n", maxsplit=1)
    example = json.loads(first)
    path.write_text(f"{json.dumps({**example, 'label': 1 - example['label']})}\n{rest}")


def change_templates(folder):
    path = folder / "mood" / "task.json"
    path.write_text(path.read_text().replace("It was %s .", "was It %s ."))


def change_targets(folder):
    (folder / "words.txt").write_text("w7 w8 w8\n")


def change_start(folder):
    shutil.rmtree(folder / "start")
    checkpoints.save_prompts(folder / "start", {"p": 2 * PROMPT})


@pytest.mark.parametrize(
    "change", [change_weights, change_examples, change_templates, change_targets, change_start]
)
def test_a_job_whose_files_have_changed_is_refused(moved, change):
    change(moved)
    before = snapshot(moved / "job")
    with pytest.raises(InputError, match=r"^out_dir=.*: is a job of other runs or examples \("):
        run_job(moved, moved / "job", **everything(moved))
    assert snapshot(moved / "job") == before


def test_other_runs_are_refused_with_the_flags_that_differ(folder, moved):
    with pytest.raises(InputError) as error:
        run_job(folder, moved / "job", **everything(folder), gamma=0.25)
    assert "(--gamma was 0.5 and is 0.25)" in error.value.as_flag()
    with pytest.raises(InputError) as error:
        run_job(folder, moved / "job")
    said = error.value.as_flag()
    assert f"--targets was {folder / 'words.txt'} and is text=w7 w8 w9" in said
    assert f"--init was target,{folder / 'start'} and is target" in said


@pytest.mark.parametrize("flag", ["model", "task"])
def test_two_of_one_name_are_refused_before_anything_is_loaded_or_written(folder, moved, flag):
    name = {"model": "gpt2", "task": "mood"}[flag]
    paths = (folder / name, moved / name)
    settings = toy_job.settings(folder, moved / "new", **{flag: paths})
    with (
        pytest.raises(InputError, match=rf"^{flag}=.*: is called {name} in the results"),
        ProgressReporter(Console(quiet=True)) as watch,
    ):
        job.run_job(settings, main.EXPERIMENT, moved / "new", watch)
    assert not (moved / "new").exists()


def test_one_start_given_twice_is_refused(folder, moved):
    starts = (folder / "start", moved / "start")
    with pytest.raises(InputError, match=r"^init=.*: holds the same prompt as init="):
        run_job(folder, moved / "new", init=starts)
