"""The shapes of packed batches, and the choice of a few that fit many (NumPy, on the host)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# The numbers of queries and predictions are multiples of this.
GRAIN = 8

# In rows of so many slots, attention takes about as long as the rest of a layer.
COSTLY_SLOTS = 2400

# A further shape must save this share of the cost to be worth its compilation.
MIN_SAVING = 0.01


class PackedShape(NamedTuple):
    """The sizes of a batch. They decide what it costs and which program computes it.

    Attributes:
        rows: W.
        slots: S, the slots of a row.
        copies: n, the most copies of one run's prompt.
        queries: Q, the slots whose hidden states predict something.
        predictions: K, the predicted tokens.
    """

    rows: int
    slots: int
    copies: int
    queries: int
    predictions: int

    @property
    def cost(self) -> float:
        """About how long a batch takes, in slots of a short row."""
        return self.rows * self.slots * (1 + self.slots / COSTLY_SLOTS)


def padded(sizes: np.ndarray) -> np.ndarray:
    """Rounds sizes up to multiples of `GRAIN`, at least `GRAIN`."""
    return np.maximum(-(-sizes // GRAIN), 1) * GRAIN


def choose_shapes(
    needed: np.ndarray, most: int, weights: np.ndarray | None = None
) -> tuple[tuple[PackedShape, ...], float]:
    """Chooses a few shapes so that batches are computed at little cost.

    Args:
        needed: `[C, M, 5]`, from `needed_shapes` for M batches with rows of each of C lengths.
        most: the most shapes. None is added that saves less than `MIN_SAVING`.
        weights: `[M]`, how often each batch is computed; None is once.

    Returns:
        Shapes sorted by cost, and the mean cost of a batch. Every batch fits one of the shapes and
        is to be computed in the first that it fits.
    """
    slots = needed[:, 0, 1]
    rows, same = np.unique(needed[..., 0], axis=1, return_inverse=True)
    counts = np.bincount(same, weights)
    choices = [(c, n) for c in range(len(slots)) for n in np.unique(rows[c])]
    costs = np.array([PackedShape(n, slots[c], 0, 0, 0).cost for c, n in choices])
    fits = np.array([rows[c] <= n for c, n in choices])
    each = np.where(fits, costs[:, None], np.inf)  # [choices, different batches]
    chosen: list[int] = []
    cost = np.inf
    while len(chosen) < most:
        more = _exchanged([*chosen, _cheapest(chosen, each, counts)], each, counts)
        with_more = (each[more].min(axis=0) * counts).sum()
        if with_more > (1 - MIN_SAVING) * cost:
            break
        chosen, cost = more, with_more

    shapes, left = [], np.ones(needed.shape[1], bool)
    for best in sorted(chosen, key=lambda choice: costs[choice]):
        c, n = choices[best]
        own = left & (needed[c, :, 0] <= n)
        if own.any():
            shapes.append(PackedShape(int(n), *needed[c, own, 1:].max(axis=0).tolist()))
        left &= ~own
    return tuple(shapes), float(cost / counts.sum())


def first_fitting(shapes: Sequence[PackedShape], needed: np.ndarray) -> np.ndarray:
    """Finds the first of the shapes that each batch fits: `[M]`; `needed` as in `choose_shapes`."""
    by_slots = {int(own[0, 1]): own for own in needed}
    fits = np.array([(by_slots[shape.slots] <= np.array(shape)).all(axis=1) for shape in shapes])
    return fits.argmax(axis=0)


def _cheapest(others: Sequence[int], each: np.ndarray, counts: np.ndarray) -> int:
    """Finds the choice that costs least together with the others.

    Args:
        others: choices that are made.
        each: `[choices, C]`, what each of C different batches costs with each choice.
        counts: `[C]`, how often each batch occurs.
    """
    least = each[list(others)].min(axis=0, initial=np.inf)
    return int((np.minimum(least, each) * counts).sum(axis=1).argmin())


def _exchanged(chosen: Sequence[int], each: np.ndarray, counts: np.ndarray) -> list[int]:
    """Exchanges one choice after the other for the cheapest beside the rest."""
    better = list(chosen)
    for i in range(len(better)):
        better[i] = _cheapest(better[:i] + better[i + 1 :], each, counts)
    return better
