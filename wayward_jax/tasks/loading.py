"""`load`: a task by its name, with train, dev and test."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from wayward_jax.errors import InputError
from wayward_jax.tasks import folders, hub, movies, paper, sampling
from wayward_jax.tasks.task import Examples, Task, TaskData

TASKS: dict[str, Task] = {**movies.TASKS, **paper.TASKS}


def load(
    name: str,
    *,
    data_dir: Path | None,
    k_shot: int = -1,
    data_seed: int = 100,
    fetch: Callable[[str], Path],
) -> TaskData:
    """Loads a task.

    `name` is, in the order in which it is looked up:
      * `reviews` or `plots`, built in, from the file that `fetch` gives;
      * a task of the paper (`sst2 sst5 agnews trec subj`) under `data_dir`, which is searched in
        this order: the paper's preprocessed `k-shot/<task>/<k>-<seed>/` of this very k and seed,
        taken as it is; then a folder of whole splits (TSV, CSV, JSONL or JSONL.gz), `<task>`,
        `original/<task>`, `lmbff/<task>` or `jsonl/<task>`, under LM-BFF's spelling or ours;
      * `hf:<dataset>`, see `hub`;
      * a user's own task, a folder with a `task.json` (see `folders.read_task`): its path, or its
        name under `data_dir`.

    Where there is no test split, dev is the test, as always for sst2. Where there is no dev split
    it is cut from train as in the paper: 90/10, shuffled by `data_seed`.

    Args:
      name: what to load.
      data_dir: where the user's data lie.
      k_shot: -1 takes all of train and dev. K > 0 takes K examples per class for each of them, both
        from train, as LM-BFF does; the built-in tasks take dev's from dev, whose movies are others.
      data_seed: of the sample or split.
      fetch: from the name of an asset to its local path.

    Raises:
      InputError: unknown name, missing or bad data, too few examples of a class.
    """
    if k_shot != -1 and k_shot < 1:
        raise InputError(f"--k_shot={k_shot}: give a number of examples per class, or -1 for all")
    if not 0 <= data_seed <= sampling.MAX_SEED:
        raise InputError(f"--data_seed={data_seed}: choose one from 0 to {sampling.MAX_SEED}")
    if name in movies.TASKS:
        return _load_movies(movies.TASKS[name], fetch(movies.ASSET), k_shot, data_seed)
    if name in paper.TASKS:
        return _load_paper(paper.TASKS[name], data_dir, k_shot, data_seed)
    if name.startswith(hub.PREFIX):
        task, splits = hub.read(name)
        return _sample(task, splits, name, k_shot, data_seed)
    if folder := folders.find_own(name, data_dir):
        task = folders.read_task(folder)
        return _sample(task, folders.read_splits(folder, task), str(folder), k_shot, data_seed)
    raise InputError(
        f"--task={name}: not one of {', '.join(TASKS)}, not {hub.PREFIX}<dataset>, and no folder "
        f"{name} with a {folders.TASK_FILE}, here or under --data_dir={data_dir or ''}"
    )


def _load_movies(task: Task, path: Path, k_shot: int, data_seed: int) -> TaskData:
    splits = movies.read_splits(task, path)
    if k_shot > 0:
        for split in ("train", "dev"):
            examples = splits[split]
            _require_per_class(task, examples, k_shot, k_shot, f"{path} ({split})")
            rows, _ = sampling.k_shot(examples.labels, k_shot, data_seed)
            splits[split] = examples.take(rows)
    return TaskData(task, **splits)


def _load_paper(task: Task, data_dir: Path | None, k_shot: int, data_seed: int) -> TaskData:
    if data_dir is None:
        raise InputError(f"--task={task.name}: set --data_dir to the folder with the paper's data")
    if folder := folders.find_prepared(task, data_dir, k_shot, data_seed):
        splits = folders.read_splits(folder, task)
        if missing := [split for split in folders.SPLITS if split not in splits]:
            raise InputError(f"{folder}: no {' and no '.join(missing)} file; restore or remove it")
        return TaskData(task, **splits)
    folder = folders.find_raw(task, data_dir)
    splits = folders.read_splits(folder, task)
    if task.name == "sst2" and "dev" in splits:
        splits.pop("test", None)  # LM-BFF and the paper report dev, whatever else is there
    return _sample(task, splits, str(folder), k_shot, data_seed)


def _sample(
    task: Task, splits: dict[str, Examples], where: str, k_shot: int, data_seed: int
) -> TaskData:
    """Whole splits to what is tuned on, chosen on and reported on. `where` is for messages."""
    if "train" not in splits or len(splits) < 2:
        found = ", ".join(splits) or "no split"
        raise InputError(f"{where}: has {found}, and needs train and at least one of dev and test")
    train, test = splits["train"], splits.get("test", splits.get("dev"))
    if k_shot > 0:
        _require_per_class(task, train, 2 * k_shot, k_shot, f"{where} (train)")
        train_rows, dev_rows = sampling.k_shot(train.labels, k_shot, data_seed)
    elif len(splits) == 3:
        return TaskData(task, **splits)
    else:
        by_class = task == paper.TASKS["agnews"]
        cut = sampling.ninety_ten_by_class if by_class else sampling.ninety_ten
        train_rows, dev_rows = cut(train.labels, data_seed)
        if not train_rows:
            raise InputError(f"{where}: too few examples in train to cut a dev split from it")
    return TaskData(task, train.take(train_rows), train.take(dev_rows), test)


def _require_per_class(
    task: Task, examples: Examples, needed: int, k_shot: int, where: str
) -> None:
    counts = np.bincount(examples.labels, minlength=len(task.labels))
    for label, count in zip(task.labels, counts, strict=True):
        if count < needed:
            raise InputError(
                f"{where}: {count} example(s) of {label!r} where --k_shot={k_shot} needs {needed}; "
                "lower --k_shot or add examples"
            )
