"""What a job makes of its flags and files before it tunes anything."""

import json
import shutil

import pytest
from rich.console import Console

from experiments import main
from tests.helpers import toy_job
from wayward_jax.errors import InputError
from wayward_jax.jobs.inputs import read_inputs
from wayward_jax.jobs.loader import Loader
from wayward_jax.jobs.progress_bar import ProgressReporter


class Noting(ProgressReporter):
    """Keeps the notes."""

    def __init__(self):
        super().__init__(Console(quiet=True))
        self.said = []

    def note(self, what):
        self.said.append(what)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a task of one template, and one of two and of texts that are cut."""
    folder = toy_job.make(tmp_path_factory.mktemp("inputs"))
    long = shutil.copytree(folder / "mood", folder / "long")
    task = json.loads((long / "task.json").read_text())
    task |= {"templates": ["It was %s .", "w5 It was %s ."], "max_length": 20}
    (long / "task.json").write_text(json.dumps(task))
    return folder


def read(folder, **changed):
    settings = toy_job.settings(folder, None, **changed)
    with Noting() as watch:
        inputs = read_inputs(settings, main.EXPERIMENT, Loader(settings), {}, watch)
    return inputs, watch.said


def test_each_task_has_its_own_default_template_and_cut_texts_are_counted(folder):
    """All texts have five tokens, and four fit."""
    inputs, said = read(folder, task="mood,long", template="auto")
    templates = {(run.task, run.template) for run in inputs.runs.values()}
    assert templates == {("mood", 0), ("long", 1)}
    (note,) = [line for line in said if "too long" in line]
    assert note.startswith("long: 20 of 20 test examples (100%) are too long for gpt2; the tail")
    with pytest.raises(InputError, match=r"^template=1: task mood has templates 0 to 0"):
        read(folder, task="mood,long", template=1)


def test_runs_know_the_tokens_before_their_prompt(folder):
    """The tokenizer begins no text with BOS, and the model's configuration names token 0."""
    without, _ = read(folder)
    assert {run.bos_ids for run in without.runs.values()} == {()}
    behind_bos, _ = read(folder, bos="yes")
    assert {run.bos_ids for run in behind_bos.runs.values()} == {(0,)}
    assert not without.runs.keys() & behind_bos.runs.keys()
