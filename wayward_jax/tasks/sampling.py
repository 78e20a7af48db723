"""The choice of train and dev examples: LM-BFF's k-shot samples and the paper's 90/10 split.

All functions shuffle with NumPy's legacy generator, whose stream is frozen. So a seed selects the
rows that it selects in LM-BFF (Gao et al., 2021, `tools/generate_k_shot_data.py`) and in the paper.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from wayward_jax.errors import InputError
from wayward_jax.tasks.task import Examples, Task, TaskData

MAX_SEED = 2**32 - 1

Rows = list[int]


def sample(
    task: Task,
    splits: Mapping[str, Examples],
    where: str,
    *,
    k_shot: int,
    data_seed: int,
    by_class: bool = False,
) -> TaskData:
    """Makes train, dev and test of the splits that a source has.

    Test is the split of that name, or dev where there is none. With a `k_shot` above 0, train and
    dev are both drawn from the train split. With -1 they are the splits of those names; if one of
    dev and test is missing, dev is cut from train.

    Args:
        task: the task.
        splits: examples by split: `train`, and at least one of `dev` and `test`.
        where: the source of the splits, for messages.
        k_shot: number of examples per class in train and in dev, or -1 for all.
        data_seed: seed of the sample or of the cut.
        by_class: cut dev from each class of train (see `ninety_ten_by_class`).

    Raises:
        InputError: a split is missing, or there are too few examples.
    """
    if "train" not in splits or len(splits) < 2:
        found = ", ".join(splits) or "no split"
        raise InputError(None, where, f"has {found}, and needs train and at least one of dev, test")
    train, test = splits["train"], splits.get("test", splits.get("dev"))
    assert test is not None
    if k_shot > 0:
        require_per_class(task, train, 2 * k_shot, f"{where} (train)", k_shot)
        train_rows, dev_rows = draw_k_shot(train.labels, k_shot, data_seed)
    elif len(splits) == 3:
        return TaskData(task, splits["train"], splits["dev"], splits["test"])
    else:
        cut = ninety_ten_by_class if by_class else ninety_ten
        train_rows, dev_rows = cut(train.labels, data_seed)
        if not train_rows:
            remedy = "too few examples in train to cut a dev split from it: add some"
            raise InputError(None, where, remedy)
    return TaskData(task, train.take(train_rows), train.take(dev_rows), test)


def require_per_class(task: Task, examples: Examples, needed: int, where: str, k_shot: int) -> None:
    """Raises an `InputError` if a class has fewer than `needed` examples, which `k_shot` takes."""
    counts = np.bincount(examples.labels, minlength=len(task.labels))
    for label, count in zip(task.labels, counts, strict=True):
        if count < needed:
            raise InputError(
                "k_shot",
                k_shot,
                f"{where} has {count} example(s) of {label!r} and needs {needed}: lower it or add "
                "examples",
            )


def draw_k_shot(labels: np.ndarray, k: int, seed: int) -> tuple[Rows, Rows]:
    """Draws LM-BFF's sample: shuffles the rows, takes `k` of every class, then the next `k`.

    Args:
        labels: label ids, int32 `[N]`.
        k: number of rows per class in each of the two parts. A class that runs out gives fewer.
        seed: seed of the shuffle.

    Returns:
        The train rows and the dev rows, class by class in the order in which classes first appear
        among the shuffled rows.
    """
    classes = _group_by_class(_shuffle(range(len(labels)), _generator(seed)), labels)
    return _join(c[:k] for c in classes), _join(c[k : 2 * k] for c in classes)


def ninety_ten(labels: np.ndarray, seed: int) -> tuple[Rows, Rows]:
    """Splits a whole training set as in the paper (`k = -1`): 90 % train, the rest dev.

    Args:
        labels: label ids, int32 `[N]`.
        seed: seed of the shuffle.

    Returns:
        The train rows and the dev rows, in shuffled order.
    """
    return _cut(_shuffle(range(len(labels)), _generator(seed)))


def ninety_ten_by_class(labels: np.ndarray, seed: int) -> tuple[Rows, Rows]:
    """Splits each class as `ninety_ten`, as the paper's code does for AG News (`prepro_for_zhang`).

    Arguments and results are those of `ninety_ten`, class by class.
    """
    generator = _generator(seed)
    classes = _group_by_class(range(len(labels)), labels)
    parts = [_cut(_shuffle(rows, generator)) for rows in classes]
    return _join(train for train, _ in parts), _join(dev for _, dev in parts)


def _generator(seed: int) -> np.random.RandomState:
    return np.random.RandomState(seed)


def _shuffle(rows: Iterable[int], generator: np.random.RandomState) -> Rows:
    rows = list(rows)
    generator.shuffle(rows)
    return rows


def _group_by_class(rows: Iterable[int], labels: np.ndarray) -> list[Rows]:
    """Groups `rows` by label, with the labels in order of first appearance."""
    classes: dict[int, Rows] = {}
    for row in rows:
        classes.setdefault(int(labels[row]), []).append(row)
    return list(classes.values())


def _join(parts: Iterable[Rows]) -> Rows:
    return [row for part in parts for row in part]


def _cut(rows: Rows) -> tuple[Rows, Rows]:
    cut = int(0.9 * len(rows))
    return rows[:cut], rows[cut:]
