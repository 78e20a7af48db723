"""A whole job on a tiny model: its task, its flags, and the programs as a user runs them."""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import experiments.analyze
from tests.helpers import toy_models
from tests.helpers.fork_server import Program
from wayward_jax import checkpoints
from wayward_jax.jobs.progress_bar import ProgressReporter
from wayward_jax.jobs.settings import Settings
from wayward_jax.runs import RunRecord


def make(folder: Path) -> Path:
    """Puts a published model `gpt2` and a task `mood`, which one word of each text decides."""
    toy_models.make("gpt2", folder)
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


def flags(folder: Path, **changed: object) -> dict[str, object]:
    """The values of flags of a job on them."""
    return {
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


def arguments(folder: Path, **changed: object) -> list[str]:
    """Flags of a job on them, as words of a command line."""
    return [f"--{name}={value}" for name, value in flags(folder, **changed).items()]


def settings(folder: Path, out_dir: Path | None, **changed: object) -> Settings:
    """The settings of a short job on them, for the program's functions; `changed` are flags."""
    given = {
        "model": folder / "gpt2",
        "dtype": "float32",
        "task": "mood",
        "data_dir": folder,
        "targets": "text=w7 w8 w9",
        "gamma": 0.5,
        "steps": 2,
        "batch_size": 4,
        "template": 0,
        "n_eval": 0,
        "population": 8,
        "mesh": "runs:1",
        "out_dir": out_dir,
        "cache_dir": folder / "cache",
        **changed,
    }
    return Settings.parse(texts(given))


def texts(values: Mapping[str, object]) -> dict[str, str | None]:
    """Values of flags as a user writes them."""

    def text(value: object) -> str | None:
        if isinstance(value, list | tuple):
            return ",".join(map(str, value))
        return None if value is None else str(value).lower() if value is True else str(value)

    return {name: text(value) for name, value in values.items()}


def prompt(out_dir: Path, row: Mapping[str, str]) -> np.ndarray:
    """The prompt of a row of a job's results."""
    return checkpoints.load_prompts(out_dir / row["checkpoint"], [row["id"]])[row["id"]]


def rows(records: Iterable[RunRecord]) -> list[dict]:
    """Records as the lines of `results.jsonl` have them."""
    return [json.loads(json.dumps(record.to_json())) for record in records]


def run(*args: str) -> subprocess.CompletedProcess:
    """`python -m experiments.run`."""
    return _program("experiments.run", *args)


def analyze(*args: str) -> subprocess.CompletedProcess:
    """`python -m experiments.analyze`."""
    return _program("experiments.analyze", *args)


def analyze_here(**given: object) -> None:
    """`experiments.analyze` in this process, because one of its own imports for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")  # the program sets it for good
        experiments.analyze.main(texts(given))


def assert_same_outcome(row: dict, expected: dict) -> None:
    """A run's rows of two jobs agree, but for rounding: it was computed beside other runs."""
    assert row.keys() == expected.keys()
    for name in ("id", "correct", "dev_accuracy", "token_ids", "n_train", "n_eval"):
        assert row[name] == expected[name]
    assert row["task_loss"] == pytest.approx(expected["task_loss"], rel=1e-3)
    if row["target_ids"]:
        assert row["distance"] == pytest.approx(expected["distance"], rel=1e-3, abs=1e-6)


def wait_until_tuning(programs: Sequence[Program], out_dir: Path) -> None:
    """Waits for another checkpoint of the population in flight; none of the programs may end."""

    def found() -> set[Path]:
        return {path for path in out_dir.glob("in_flight/*/*") if path.name.isdecimal()}

    before = found()
    while found() <= before:
        alive = [program.process.is_alive() for program in programs]
        assert all(alive), [program.finish() for program in programs]
        time.sleep(0.02)


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
