"""Folders of split files, and users' own tasks.

A folder holds `train`, `dev` and `test` files in a format of `readers`. LM-BFF's folders have no
dev file (SST-2: no test file), and a user's own task is a folder with a `task.json`.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from wayward_jax.errors import InputError
from wayward_jax.tasks.encoding import TEMPLATE_ROOM
from wayward_jax.tasks.readers import SUFFIXES, read_examples, read_json
from wayward_jax.tasks.task import Examples, Task

SPLITS = ("train", "dev", "test")
TASK_FILE = "task.json"
LABELS_FILE = "labels.json"


def find_own(name: str, data_dir: Path | None) -> Path | None:
    """Finds the folder of a user's own task: `data_dir/name` or `name` with a `task.json`."""
    candidates = [Path(name)] if data_dir is None else [data_dir / name, Path(name)]
    return next((folder for folder in candidates if os.path.isfile(folder / TASK_FILE)), None)


def find_split(folder: Path, split: str) -> Path | None:
    """Finds the file of a split, if there is one."""
    # LM-BFF's AG News often comes as a sample of its 120,000 train rows, in a file of this name.
    stems = ("train", "train_20k") if split == "train" else (split,)
    files = (folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def read_splits(folder: Path, task: Task, *, ag_news_csv: bool = False) -> dict[str, Examples]:
    """Reads the splits for which `folder` has a file. Label ids are those of `task.labels`.

    If there is a `labels.json`, a list of label names, the files use its ids and not the task's.

    Args:
        folder: the folder.
        task: the task.
        ag_news_csv: CSV files have AG News's own columns, see `readers`.

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
    splits = {}
    for split in SPLITS:
        if path := find_split(folder, split):
            examples = read_examples(path, labels, ag_news_csv=ag_news_csv)
            splits[split] = Examples(examples.texts, task_ids[examples.labels])
    return splits


def read_task(folder: Path) -> Task:
    """Reads the task that `folder/task.json` describes. Its name is the name of the folder.

    The file is `{"templates": ["It was %s . "], "label_words": ["terrible", "great"]}`. It may add
    `"labels"` (by default, `labels.json` names them) and `"max_length"` (128 by default).

    Raises:
        InputError: a key is missing, unknown or of the wrong type.
    """
    path = folder / TASK_FILE
    value = read_json(path)
    known = {"templates", "label_words", "labels", "max_length"}
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
    label_words = _strings(value.get("label_words"), '"label_words"', path)
    if len(label_words) != len(labels):
        remedy = f"{len(label_words)} label_words for {len(labels)} labels: give one for each label"
        raise InputError(None, path, remedy)
    max_length = value.get("max_length", Task.max_length)
    if type(max_length) is not int or max_length <= TEMPLATE_ROOM:
        raise InputError(None, path, f"max_length must be a whole number above {TEMPLATE_ROOM}")
    return Task(folder.resolve().name, labels, templates, label_words, max_length)


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


def _strings(value: Any, what: str, path: Path) -> tuple[str, ...]:
    valid = isinstance(value, list) and value and all(isinstance(v, str) and v for v in value)
    if not valid:
        raise InputError(None, path, f"{what} must be a list of non-empty strings")
    return tuple(value)
