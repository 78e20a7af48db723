"""The few test examples that a report shows, with what prompts answer to them."""

import dataclasses
import itertools
from typing import Any

import numpy as np

from wayward_jax.tasks import Examples
from wayward_jax.training.scoring import EvaluationSet

# Reports show so many test examples, of at most so many characters where there are such.
SHOWN, MOST_CHARACTERS = 4, 300


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """The N test examples of `choose_shown`.

    Attributes:
        examples: the examples.
        numbers: `[N]`, which of the test examples they are.
        labels: the names of the C labels.
        scored: the examples, ready to be scored.
    """

    examples: Examples
    numbers: np.ndarray
    labels: tuple[str, ...]
    scored: EvaluationSet

    def to_json(self) -> list[dict[str, Any]]:
        """For each example its text, or texts, and its label; long texts are cut."""
        pairs = zip(*filter(None, (self.examples.texts, self.examples.texts_b)), strict=True)
        return [
            {"texts": [_cut(text) for text in texts], "label": self.labels[label]}
            for texts, label in zip(pairs, self.examples.labels.tolist(), strict=True)
        ]


def choose_shown(test: Examples) -> np.ndarray:
    """Chooses the first test examples of each label in turn; gives their numbers.

    Examples of more than `MOST_CHARACTERS` are taken only where a label has no shorter ones.
    """
    by_label = []
    for label in np.unique(test.labels):
        own = np.flatnonzero(test.labels == label).tolist()
        by_label.append(sorted(own, key=lambda number: _is_long(test, number)))
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_label))
    return np.array([number for number in in_turn if number is not None][:SHOWN])


def _is_long(examples: Examples, number: int) -> bool:
    texts = filter(None, (examples.texts, examples.texts_b))
    return sum(len(own[number]) for own in texts) > MOST_CHARACTERS


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."
