"""Folders of split files, and users' own tasks.

A folder holds `train`, `dev` and `test` files in a format of `readers`; `dev` may also be called
`validation`, `valid` or `val`. A split may be in several parts, named as on the Hugging Face hub:
`train-00000-of-00002.parquet`. LM-BFF's folders have no dev file (SST-2: no test file), and a
user's own task is a folder with a `task.json`.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wayward_jax.errors import InputError
from wayward_jax.tasks.encoding import TEMPLATE_ROOM
from wayward_jax.tasks.readers import SUFFIXES, USUAL_COLUMNS, Columns, read_examples, read_json
from wayward_jax.tasks.task import Examples, Task

SPLITS = ("train", "dev", "test")

# The names of a split's file. The first one that is there is read.
STEMS = {
    # LM-BFF's AG News often comes as a sample of its 120,000 train rows, in a file of this name.
    "train": ("train", "train_20k"),
    "dev": ("dev", "validation", "valid", "val"),
    "test": ("test",),
}
PART = re.compile(r"-([0-9]{5})-of-([0-9]{5})")
TASK_FILE = "task.json"
LABELS_FILE = "labels.json"

# Entries of a `task.json` that name columns.
COLUMNS = {"text_column": "text", "label_column": "label", "text_b_column": "text_b"}


def find_own(name: str, data_dir: Path | None) -> Path | None:
    """Finds the folder of a user's own task: `data_dir/name` or `name` with a `task.json`."""
    candidates = [Path(name)] if data_dir is None else [data_dir / name, Path(name)]
    return next((folder for folder in candidates if os.path.isfile(folder / TASK_FILE)), None)


def find_split(folder: Path, split: str) -> list[Path]:
    """Finds the files of a split: none, one, or all parts in order.

    Raises:
        InputError: a part is missing.
    """
    for stem in STEMS[split]:
        for suffix in SUFFIXES:
            if (file := folder / f"{stem}{suffix}").is_file():
                return [file]
            parts = {
                match[1]: (file, int(match[2]))
                for file in sorted(folder.glob(f"{stem}-*{suffix}"))
                if (match := PART.fullmatch(file.name[len(stem) : -len(suffix)]))
            }
            if parts:
                files, (count, *_) = zip(*parts.values(), strict=True)
                if len(files) != count:
                    remedy = f"this is one of {count} parts, and {len(files)} are here: bring all"
                    raise InputError(None, files[0], remedy)
                return list(files)
    return []


def read_splits(
    folder: Path,
    task: Task,
    *,
    columns: Columns = USUAL_COLUMNS,
    paper: bool = False,
    ag_news_csv: bool = False,
) -> tuple[dict[str, Examples], list[str]]:
    """Reads the splits for which `folder` has a file. Label ids are those of `task.labels`.

    If there is a `labels.json`, a list of label names, the files use its ids and not the task's.
    Rows without a label are left out, as in the test sets of competitions.

    Args:
        folder: the folder.
        task: the task.
        columns: the columns that are read.
        paper: TSV files follow the rules of the paper's code, see `readers`.
        ag_news_csv: CSV files have AG News's own columns, see `readers`.

    Returns:
        The splits that have examples, and notes about rows and files that are not read.

    Raises:
        InputError: a file is bad (see `readers`), or label names are not the task's.
    """
    labels = task.labels
    if (folder / LABELS_FILE).is_file():
        labels = _read_labels_file(folder)
        if sorted(labels) != sorted(task.labels):
            raise InputError(
                None,
                folder / LABELS_FILE,
                f"names {', '.join(labels)}; task {task.name} has {', '.join(task.labels)}: use "
                "these names in any order",
            )
    task_ids = np.array([task.labels.index(label) for label in labels], dtype=np.int32)
    splits, notes, read = {}, [], {TASK_FILE, LABELS_FILE}
    for split in SPLITS:
        parts = []
        for path in find_split(folder, split):
            examples, unlabeled = read_examples(
                path, labels, columns=columns, paper=paper, ag_news_csv=ag_news_csv
            )
            read.add(path.name)
            if unlabeled:
                notes.append(f"{path}: {unlabeled} row(s) have no label and are left out")
            parts.append(dataclasses.replace(examples, labels=task_ids[examples.labels]))
        if any(map(len, parts)):
            splits[split] = _join(parts)
        elif parts and split == "train":
            remedy = (
                f"no row has a label in {columns.labels!r}: name the column with --label_column"
            )
            raise InputError(None, path, remedy)
    files = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    if others := [name for name in files if name not in read]:
        notes.append(f"{folder}: not read: {', '.join(others)}")
    return splits, notes


def _join(parts: Sequence[Examples]) -> Examples:
    return Examples(
        tuple(text for part in parts for text in part.texts),
        np.concatenate([part.labels for part in parts]),
        tuple(text for part in parts for text in part.texts_b),
    )


def read_task(folder: Path) -> tuple[Task, Columns]:
    """Reads the task that `folder/task.json` describes. Its name is the name of the folder.

    The file is `{"templates": ["It was %s . "], "label_words": ["terrible", "great"]}`. A label may
    have several words, as in `[["terrible", "bad"], "great"]`. The file may add
    `"labels"` (by default, `labels.json` names them), `"max_length"` (128 by default), and the
    names of columns, `"text_column"`, `"label_column"` and `"text_b_column"`. The examples are
    pairs if a template has `{text_b}`.

    Raises:
        InputError: a key is missing, unknown or of the wrong type.
    """
    path = folder / TASK_FILE
    value = read_json(path)
    known = {"templates", "label_words", "labels", "max_length", *COLUMNS}
    if not isinstance(value, dict) or not set(value) <= known:
        remedy = f"expected an object with keys among {', '.join(sorted(known))}"
        raise InputError(None, path, remedy)
    if "labels" not in value and not (folder / LABELS_FILE).is_file():
        raise InputError(None, path, f'name the labels, here under "labels" or in {LABELS_FILE}')
    labels = _label_names(value["labels"], path) if "labels" in value else _read_labels_file(folder)
    templates = _strings(value.get("templates"), '"templates"', path)
    for template in templates:
        if template.count("%s") != 1:
            raise InputError(None, path, f"template {template!r} needs one %s for the label word")
    label_words = _label_words(value.get("label_words"), path)
    if len(label_words) != len(labels):
        remedy = f"{len(label_words)} label_words for {len(labels)} labels: give one for each label"
        raise InputError(None, path, remedy)
    max_length = value.get("max_length", Task.max_length)
    if type(max_length) is not int or max_length <= TEMPLATE_ROOM:
        raise InputError(None, path, f"max_length must be a whole number above {TEMPLATE_ROOM}")
    columns = {COLUMNS[key]: value[key] for key in COLUMNS if key in value}
    if any("{text_b}" in template for template in templates):
        columns.setdefault("text_b", "text_b")
    if not all(isinstance(name, str) and name for name in columns.values()):
        raise InputError(None, path, "the name of a column must be a string that is not empty")
    task = Task(folder.resolve().name, labels, templates, label_words, max_length)
    return task, Columns(**columns)


def _read_labels_file(folder: Path) -> tuple[str, ...]:
    return _label_names(read_json(folder / LABELS_FILE), folder / LABELS_FILE)


def _label_names(value: Any, path: Path) -> tuple[str, ...]:
    labels = _strings(value, "the label names", path)
    if len(labels) < 2:
        raise InputError(None, path, "a task needs at least two labels")
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(None, path, f"label name {label!r} occurs twice: rename one")
    return labels


def _label_words(value: Any, path: Path) -> tuple[str | tuple[str, ...], ...]:
    nested = isinstance(value, list) and any(isinstance(own, list) for own in value)
    if not nested:
        return _strings(value, '"label_words"', path)
    return tuple(
        own if isinstance(own, str) and own else _strings(own, 'each of "label_words"', path)
        for own in value
    )


def _strings(value: Any, what: str, path: Path) -> tuple[str, ...]:
    valid = isinstance(value, list) and value and all(isinstance(v, str) and v for v in value)
    if not valid:
        raise InputError(None, path, f"{what} must be a list of non-empty strings")
    return tuple(value)
