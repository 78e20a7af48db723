"""Results as JSON lines: one object a run, appended."""

import dataclasses
import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from wayward_jax.errors import InputError, reason
from wayward_jax.training.trainer import Result


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
        "final_gamma": result.final_gamma,
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
    """Adds rows to a results file, which is made if need be: all of them or, on an error, none.

    Raises:
        OSError: they cannot be written.
    """
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def repair(path: Path) -> bool:
    """Drops what a crash left of a row at the end of a results file; whether there was any."""
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        file.truncate(whole)
    return whole < len(content)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file.

    Raises:
        InputError: there is no such file, or a line of it is no JSON object.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path} does not exist: give the --out_dir of a finished job")
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{path}:{number}: not a JSON object ({reason(error)}): mend or remove the line"
                ) from error
    return rows
