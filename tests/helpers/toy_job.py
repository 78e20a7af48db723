"""A whole job on a tiny model: its task, its flags, and the programs as a user runs them."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments.flags import Settings
from tests.helpers.toy_models import make as make_model
from wayward_jax.jobs.progress_bar import ProgressReporter


def make(folder: Path) -> Path:
    """Puts a published model `gpt2` and a task `mood`, which one word of each text decides."""
    make_model("gpt2", folder)
    task = folder / "mood"
    task.mkdir()
    (task / "task.json").write_text(
        json.dumps(
            {
                "labels": ["bad", "good"],
                "templates": ["It was %s ."],
                "label_words": ["terrible", "great"],
            }
        )
    )
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("dev", 12), ("test", 20)):
        lines = []
        for _ in range(count):
            label = int(rng.integers(2))
            words = [f"w{i}" for i in rng.integers(10, 70, 4)]
            words.insert(int(rng.integers(4)), f"w{label}")
            lines.append(json.dumps({"text": " ".join(words), "label": label}))
        (task / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def arguments(folder: Path, **changed: object) -> list[str]:
    """Flags of a job on them."""
    given = {
        "model": folder / "gpt2",
        "task": "mood",
        "data_dir": folder,
        "targets": "text=w7 w8 w9",
        "template": 0,
        "gamma": "0.5",
        "steps": 10,
        "cache_dir": folder / "cache",
        **changed,
    }
    return [f"--{name}={value}" for name, value in given.items()]


def settings(folder: Path, out_dir: Path, **changed: object) -> Settings:
    """Those of a job on them, for the program's functions."""
    given = Settings(
        experiment="main",
        models=(str(folder / "gpt2"),),
        dtype="float32",
        tasks=("mood",),
        data_dir=folder,
        targets="text=w7 w8 w9",
        constraints=("penalty",),
        gammas=(0.5,),
        margin=0.01,
        seeds=(1,),
        steps=2,
        batch_size=4,
        learning_rate=0.01,
        method="direct",
        template=0,
        inits=("target",),
        prompt_lengths=(),
        k_shot=-1,
        data_seeds=(100,),
        n_eval=0,
        population=8,
        mesh={"runs": 1},
        out_dir=out_dir,
        cache_dir=folder / "cache",
        assets_dir=None,
    )
    return dataclasses.replace(given, **changed)


def run(*args: str) -> subprocess.CompletedProcess:
    """`python -m experiments.run`."""
    return _program("experiments.run", *args)


def analyze(*args: str) -> subprocess.CompletedProcess:
    """`python -m experiments.analyze`."""
    return _program("experiments.analyze", *args)


def assert_same_outcome(row: dict, expected: dict) -> None:
    """A run's rows of two jobs agree, but for rounding: it was computed beside other runs."""
    assert row.keys() == expected.keys()
    for name in ("id", "correct", "dev_accuracy", "token_ids", "n_train", "n_eval"):
        assert row[name] == expected[name]
    assert row["task_loss"] == pytest.approx(expected["task_loss"], rel=1e-3)
    if row["target_ids"]:
        assert row["distance"] == pytest.approx(expected["distance"], rel=1e-3, abs=1e-6)


def _program(module: str, *args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", module, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


class CountingReporter(ProgressReporter):
    """Counts the steps."""

    def __init__(self):
        super().__init__(Console(quiet=True))
        self.steps = 0

    def stepped(self, steps, task_loss):
        self.steps += steps
