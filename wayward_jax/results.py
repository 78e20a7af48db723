"""Results as JSON lines: one object a run, appended."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from wayward_jax.errors import InputError
from wayward_jax.sweep import Result


def to_row(result: Result, labels: np.ndarray) -> dict[str, Any]:
    """A result as a flat object of plain values: what defines the run, then what became of it.

    The prompt itself is not in it (see `checkpoints`). Of the predictions it has which are right.

    Args:
        result: of a run.
        labels: `[n_eval]`, the right ones of the test examples.
    """
    reading = result.reading
    return {
        "id": result.run.id,
        **dataclasses.asdict(result.run),
        "n_train": result.n_train,
        "n_dev": result.n_dev,
        "n_eval": result.n_eval,
        "accuracy": result.accuracy,
        "macro_f1": result.macro_f1,
        "correct": np.packbits(result.predictions == labels).tobytes().hex(),
        "dev_accuracy": result.dev_accuracy,
        "prompt_f1": reading.prompt_f1,
        "token_f1": reading.token_f1,
        "projected_text": reading.text,
        "projected_ids": list(reading.ids),
        "distance": result.distance,
        "task_loss": result.task_loss,
        "diverged_at": result.diverged_at,
        "seconds": result.seconds,
        "curve": [dataclasses.asdict(point) for point in result.curve],
    }


def correct(row: dict[str, Any]) -> np.ndarray:
    """Which test examples a row's run predicted right: `[n_eval]` bool, in the task's order."""
    bits = np.frombuffer(bytes.fromhex(row["correct"]), np.uint8)
    return np.unpackbits(bits, count=row["n_eval"]).astype(bool)


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Adds rows to a results file, which is made if need be."""
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file.

    Raises:
        InputError: there is no such file, or a line of it is no JSON object.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the --out_dir of a finished job")
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{number}: not a JSON object ({error.msg})") from error
    return rows
