"""Prompts made of tokens: calibration, and demonstrations of a task (on the host)."""

from collections.abc import Sequence

import numpy as np

from wayward_jax.packing import Segment

CONTENT_FREE = "N/A"
"""A text that says nothing, whatever the task."""

# More of them cost time and, in the models of the paper's size, hardly change anything.
MOST_DEMONSTRATIONS = 32


def calibrated(scores: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Scores as they would be if a text without content had made all labels equally likely.

    Contextual calibration (Zhao et al., 2021, section 5): the probability of a label is divided by
    that which it has for a content-free text. Scores are negative logarithms, so those are
    subtracted.

    Args:
        scores: `[N, E, C]` of N prompts, from `evaluation.scores`.
        prior: `[N, 1, C]` of a content-free text.
    """
    return scores - prior


def demonstrations(
    train: Sequence[Segment], separator: Sequence[int], *, room: int, seed: int
) -> list[int]:
    """Training examples with their labels in random order, each followed by `separator`.

    As many as `room` tokens hold, up to `MOST_DEMONSTRATIONS`.

    Args:
        train: from `batching.gold_segments`.
        separator: tokens.
        room: the most tokens.
        seed: of the choice and order.
    """
    ids: list[int] = []
    order = np.random.default_rng(seed).permutation(len(train))
    for index in order[:MOST_DEMONSTRATIONS]:
        more = [*train[index].ids.tolist(), *separator]
        if len(ids) + len(more) > room:
            break
        ids += more
    return ids
