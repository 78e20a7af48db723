"""Loading a task by its name, with train, dev and test."""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

from wayward_jax.errors import InputError
from wayward_jax.tasks import folders, hub, movies, paper, sampling
from wayward_jax.tasks.readers import Columns
from wayward_jax.tasks.task import Task, TaskData

# Modules of tasks that are known by name. Each has `TASKS`, its tasks by name, and `load`.
SOURCES = (movies, paper)

TASKS: dict[str, Task] = {name: task for source in SOURCES for name, task in source.TASKS.items()}


def load(
    name: str,
    *,
    data_dir: Path | None,
    k_shot: int = -1,
    data_seed: int = 100,
    fetch: Callable[[str], Path],
    text_column: str | None = None,
    label_column: str | None = None,
) -> TaskData:
    """Loads a task with its examples.

    The name is looked up in this order:

    * `reviews` and `plots` are built in, see `movies`;
    * `sst2`, `sst5`, `agnews`, `trec` and `subj` are the paper's, see `paper.load`;
    * `hf:<dataset>` is a dataset of the Hugging Face hub, see `hub`;
    * any other name is a folder with a `task.json`, see `folders.read_task`: its path, or its name
      under `data_dir`.

    If there is no test split, dev is the test split. If there is no dev split, dev is cut from
    train as in the paper: 90/10, shuffled by `data_seed`. The result's notes tell about rows and
    files that are not used, and about texts that are both in train and in test.

    Args:
        name: name of the task.
        data_dir: folder with the user's data.
        k_shot: -1 takes all of train and dev. K > 0 takes K examples per class for train and K
            others for dev, both from train, as LM-BFF does. Built-in tasks take them from dev,
            whose movies are others.
        data_seed: seed of the sample or split, from 0 to 2**32 - 1.
        fetch: maps the name of an asset to its local path.
        text_column: the column of the texts; None is the one that `task.json` names, or else `text`
            or `sentence`. Built-in tasks have columns of their own.
        label_column: the column of the labels; None is the one that `task.json` names, or else
            `label`.

    Raises:
        InputError: the name is unknown, data are missing or bad, or a class has too few examples.
    """
    if k_shot != -1 and k_shot < 1:
        raise InputError("k_shot", k_shot, "give a number of examples per class, or -1 for all")
    if not 0 <= data_seed <= sampling.MAX_SEED:
        raise InputError("data_seed", data_seed, f"choose one from 0 to {sampling.MAX_SEED}")
    given = Columns(text_column, label_column)
    for source in SOURCES:
        if task := source.TASKS.get(name):
            data = source.load(
                task,
                data_dir=data_dir,
                k_shot=k_shot,
                data_seed=data_seed,
                fetch=fetch,
                columns=given,
            )
            return _finish(data, data.notes, k_shot, data_seed)
    if name.startswith(hub.PREFIX):
        where = name
        task, splits, notes = hub.read(name, given)
    elif folder := folders.find_own(name, data_dir):
        where = str(folder)
        task, columns = folders.read_task(folder)
        columns = dataclasses.replace(
            columns, text=given.text or columns.text, label=given.label or columns.label
        )
        splits, notes = folders.read_splits(folder, task, columns=columns)
    else:
        raise InputError(
            "task",
            name,
            f"not one of {', '.join(TASKS)}, not {hub.PREFIX}<dataset>, and no folder of this name "
            f"with a {folders.TASK_FILE}, here or under --data_dir: correct the name",
        )
    data = sampling.sample(task, splits, where, k_shot=k_shot, data_seed=data_seed)
    return _finish(data, notes, k_shot, data_seed)


def _finish(data: TaskData, notes: Sequence[str], k_shot: int, data_seed: int) -> TaskData:
    """Adds what was asked for and the notes, among them about texts of both train and test."""
    train = set(zip_longest(data.train.texts, data.train.texts_b))
    shared = sum(pair in train for pair in zip_longest(data.test.texts, data.test.texts_b))
    if shared:
        name, count = data.task.name, len(data.test)
        notes = [*notes, f"{name}: {shared} of {count} test examples are also in train"]
    return dataclasses.replace(data, k_shot=k_shot, data_seed=data_seed, notes=tuple(notes))
