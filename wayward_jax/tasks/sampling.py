"""Which rows are used: LM-BFF's k-shot samples and the paper's 90/10 split.

Every function takes the labels (int32 `[N]`) and a seed, and returns indices into them. They
shuffle with NumPy's legacy generator, whose stream is frozen, so that a seed means the rows that it
meant to LM-BFF (Gao et al., 2021, `tools/generate_k_shot_data.py`) and to the paper.
"""

from collections.abc import Iterable

import numpy as np

MAX_SEED = 2**32 - 1

Rows = list[int]


def k_shot(labels: np.ndarray, k: int, seed: int) -> tuple[Rows, Rows]:
    """LM-BFF's sample: shuffle the rows, take `k` of every class, then the `k` after those.

    Returns:
      The train rows and the dev rows, class after class in the order in which the shuffled rows
      first show them. A class that runs out gives fewer.
    """
    classes = _by_class(_shuffled(range(len(labels)), _generator(seed)), labels)
    return _joined(c[:k] for c in classes), _joined(c[k : 2 * k] for c in classes)


def ninety_ten(labels: np.ndarray, seed: int) -> tuple[Rows, Rows]:
    """The paper's split of a whole training set (`k = -1`): shuffle, 90 % train, the rest dev."""
    return _cut(_shuffled(range(len(labels)), _generator(seed)))


def ninety_ten_by_class(labels: np.ndarray, seed: int) -> tuple[Rows, Rows]:
    """`ninety_ten` within each class, as the paper's code splits AG News (`prepro_for_zhang`)."""
    generator = _generator(seed)
    parts = [_cut(_shuffled(c, generator)) for c in _by_class(range(len(labels)), labels)]
    return _joined(train for train, _ in parts), _joined(dev for _, dev in parts)


def _generator(seed: int) -> np.random.RandomState:
    return np.random.RandomState(seed)


def _shuffled(rows: Iterable[int], generator: np.random.RandomState) -> Rows:
    rows = list(rows)
    generator.shuffle(rows)
    return rows


def _by_class(rows: Iterable[int], labels: np.ndarray) -> list[Rows]:
    """`rows` grouped by label, the labels in order of first appearance."""
    classes: dict[int, Rows] = {}
    for row in rows:
        classes.setdefault(int(labels[row]), []).append(row)
    return list(classes.values())


def _joined(parts: Iterable[Rows]) -> Rows:
    return [row for part in parts for row in part]


def _cut(rows: Rows) -> tuple[Rows, Rows]:
    cut = int(0.9 * len(rows))
    return rows[:cut], rows[cut:]
