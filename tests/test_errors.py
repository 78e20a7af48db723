"""The one line that a user reads, in a program and in Python."""

import pickle

import pytest

from wayward_jax.errors import LONGEST_VALUE, InputError


@pytest.mark.parametrize(
    ("error", "in_python", "in_a_program"),
    [
        (InputError("gamma", -1, "give 0 or more"), "gamma=-1: give 0 or more",
         "--gamma=-1: give 0 or more"),
        (InputError("model", "gpt5", "check --cache_dir"), "model='gpt5': check cache_dir",
         "--model=gpt5: check --cache_dir"),
        (InputError(None, "a.tsv:3", "no label: mend it"), "a.tsv:3: no label: mend it",
         "a.tsv:3: no label: mend it"),
        (InputError("runs", None, "give folders"), "runs: give folders", "--runs: give folders"),
        (InputError("task", "x", "try 'pip download --no-deps y'"),
         "task='x': try 'pip download --no-deps y'", "--task=x: try 'pip download --no-deps y'"),
    ],
)  # fmt: skip
def test_a_program_shows_flags_and_python_shows_arguments(error, in_python, in_a_program):
    assert str(error) == in_python
    assert error.as_flag() == in_a_program


def test_a_message_is_one_line_however_long_or_broken_the_value():
    error = InputError("targets", "a\nb" * 10**6, "give a shorter text")
    assert len(error.as_flag().splitlines()) == len(str(error).splitlines()) == 1
    assert len(error.as_flag()) < LONGEST_VALUE + 100


def test_the_file_and_line_of_a_long_path_stay():
    path = "/".join(["scratch", *["deep"] * 100, "train.jsonl:17"])
    said = InputError(None, path, "no label: mend it").as_flag()
    assert said.startswith("scratch/deep/")
    assert said.endswith("/deep/train.jsonl:17: no label: mend it")


def test_an_error_crosses_processes_as_it_is():
    error = pickle.loads(pickle.dumps(InputError("gamma", -1.5, "give 0 or more")))
    assert (error.argument, error.value, error.remedy) == ("gamma", -1.5, "give 0 or more")
