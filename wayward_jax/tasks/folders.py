"""Where a task's files lie under `--data_dir`, and what a folder of split files says.

All layouts come down to one: a folder with `train`, `dev` and `test` files in a format of
`readers`. LM-BFF's originals are such a folder without a dev file (SST-2: without a test file), the
paper's preprocessed layout is one per k and seed, and a user's own task is one with a `task.json`.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from wayward_jax.errors import InputError
from wayward_jax.tasks.encoding import TEMPLATE_ROOM
from wayward_jax.tasks.paper import LMBFF_FOLDERS, TASKS
from wayward_jax.tasks.readers import SUFFIXES, read_examples, read_json
from wayward_jax.tasks.task import Examples, Task

SPLITS = ("train", "dev", "test")
TASK_FILE = "task.json"
LABELS_FILE = "labels.json"

# In this order, each first by LM-BFF's name of the task, then by ours.
PARENTS = (".", "original", "lmbff", "jsonl")


def find_prepared(task: Task, data_dir: Path, k_shot: int, data_seed: int) -> Path | None:
    """`k-shot/<task>/<k>-<seed>`, the paper's preprocessed layout, where it exists."""
    folders = (data_dir / "k-shot" / n / f"{k_shot}-{data_seed}" for n in _names(task))
    return next((folder for folder in folders if folder.is_dir()), None)


def find_raw(task: Task, data_dir: Path) -> Path:
    """The first folder of `PARENTS` with a training file of `task`.

    Raises:
      InputError: there is none. The message lists where it was looked for.
    """
    candidates = [Path(parent, name) for parent in PARENTS for name in _names(task)]
    for folder in candidates:
        if _split_file(data_dir / folder, "train"):
            return data_dir / folder
    raise InputError(
        f"--data_dir={data_dir}: no data for --task={task.name}; looked for "
        f"k-shot/{_names(task)[0]}/<k_shot>-<data_seed> and for a train file "
        f"({', '.join(SUFFIXES)}) in {', '.join(map(str, candidates))}"
    )


def find_own(name: str, data_dir: Path | None) -> Path | None:
    """The folder of a user's own task, known by its `task.json`: `data_dir/name` or `name`."""
    candidates = [Path(name)] if data_dir is None else [data_dir / name, Path(name)]
    return next((folder for folder in candidates if os.path.isfile(folder / TASK_FILE)), None)


def read_splits(folder: Path, task: Task) -> dict[str, Examples]:
    """The splits for which `folder` has a file. Label ids are those of `task.labels`.

    A `labels.json`, a list of label names, gives the ids that the files use where they are not the
    task's own.

    Raises:
      InputError: a bad file, see `readers`, or label names that are not the task's.
    """
    labels = task.labels
    if (folder / LABELS_FILE).is_file():
        labels = _read_labels_file(folder)
        if sorted(labels) != sorted(task.labels):
            raise InputError(
                f"{folder / LABELS_FILE}: names {', '.join(labels)}; task {task.name} has "
                f"{', '.join(task.labels)} (in any order)"
            )
    task_ids = np.array([task.labels.index(label) for label in labels], dtype=np.int32)
    splits = {}
    for split in SPLITS:
        if path := _split_file(folder, split):
            examples = read_examples(path, labels, ag_news_csv=task == TASKS["agnews"])
            splits[split] = Examples(examples.texts, task_ids[examples.labels])
    return splits


def read_task(folder: Path) -> Task:
    """The task that `folder/task.json` describes; its name is the folder's.

    `{"templates": ["It was %s . "], "label_words": ["terrible", "great"]}`, and where wanted
    `"labels"` (without it, `labels.json` names them) and `"max_length"` (128).

    Raises:
      InputError: a key is missing, unknown or of the wrong kind.
    """
    path = folder / TASK_FILE
    value = read_json(path)
    known = {"templates", "label_words", "labels", "max_length"}
    if not isinstance(value, dict) or not set(value) <= known:
        raise InputError(f"{path}: expected an object with keys among {', '.join(sorted(known))}")
    if "labels" not in value and not (folder / LABELS_FILE).is_file():
        raise InputError(f'{path}: name the labels, here under "labels" or in {LABELS_FILE}')
    labels = _label_names(value["labels"], path) if "labels" in value else _read_labels_file(folder)
    templates = _strings(value.get("templates"), f'{path}: "templates"')
    for template in templates:
        if template.count("%s") != 1:
            raise InputError(f"{path}: template {template!r} needs one %s for the label word")
    label_words = _strings(value.get("label_words"), f'{path}: "label_words"')
    if len(label_words) != len(labels):
        raise InputError(f"{path}: {len(label_words)} label_words for {len(labels)} labels")
    max_length = value.get("max_length", Task.max_length)
    if type(max_length) is not int or max_length <= TEMPLATE_ROOM:
        raise InputError(f"{path}: max_length must be a whole number above {TEMPLATE_ROOM}")
    return Task(folder.resolve().name, labels, templates, label_words, max_length)


def _names(task: Task) -> list[str]:
    """The names that a folder of the task may have, LM-BFF's first."""
    return list(dict.fromkeys((LMBFF_FOLDERS.get(task.name, task.name), task.name)))


def _split_file(folder: Path, split: str) -> Path | None:
    # LM-BFF-style AG News often comes as a sample of its 120,000 training rows, so named.
    stems = ("train", "train_20k") if split == "train" else (split,)
    files = (folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def _read_labels_file(folder: Path) -> tuple[str, ...]:
    return _label_names(read_json(folder / LABELS_FILE), folder / LABELS_FILE)


def _label_names(value: Any, path: Path) -> tuple[str, ...]:
    labels = _strings(value, f"{path}: the label names")
    if len(labels) < 2:
        raise InputError(f"{path}: a task needs at least two labels")
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"{path}: label name {label!r} occurs twice; rename one")
    return labels


def _strings(value: Any, what: str) -> tuple[str, ...]:
    valid = isinstance(value, list) and value and all(isinstance(v, str) and v for v in value)
    if not valid:
        raise InputError(f"{what} must be a list of non-empty strings")
    return tuple(value)
