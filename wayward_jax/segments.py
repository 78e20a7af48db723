"""Encoded examples as arrays of tokens (NumPy, on the host).

The labels of an example share its context. The context is therefore stored once, and the labels'
continuations branch off it.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np

from wayward_jax.tasks.encoding import Encoded


class Segment(NamedTuple):
    """One context and its continuations.

    It has `[n]` tokens, `[q]` queries and `[k]` predictions. The last token of a continuation is
    predicted and never read, so it is not among the tokens. All arrays are int32, except `weight`.

    ids: `[n]`.
    positions: `[n]`, counted from the end of the prompt.
    branch: `[n]`, 0 in the context and `1 + word` in the continuation of that label word.
    query: `[q]`, the tokens whose hidden states predict something.
    of: `[k]`, which of the queries makes each prediction.
    target: `[k]`, the token that is predicted.
    score: `[k]`, the number of the label word that it counts for.
    weight: `[k]` float32, 1 / tokens of the continuation.
    """

    ids: np.ndarray
    positions: np.ndarray
    branch: np.ndarray
    query: np.ndarray
    of: np.ndarray
    target: np.ndarray
    score: np.ndarray
    weight: np.ndarray


# Which of the sizes of a segment each of its arrays has: tokens, queries or predictions.
_SIZES = (0, 0, 0, 1, 2, 2, 2, 2)


@dataclasses.dataclass(frozen=True, eq=False)
class Segments:
    """E segments, whose arrays are joined end to end.

    Attributes:
        joined: for each array of `Segment`, those of all segments.
        sizes: `[E, 3]`, the tokens, queries and predictions of each segment.
        firsts: `[E, 3]`, where the arrays of each segment begin.
    """

    joined: Segment
    sizes: np.ndarray
    firsts: np.ndarray

    @classmethod
    def join(cls, segments: Sequence[Segment]) -> Self:
        """Joins single segments."""
        sizes = np.array([(len(s.ids), len(s.query), len(s.of)) for s in segments], np.int64)
        return cls._of(segments, sizes.reshape(-1, 3))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Joins the segments of several parts."""
        if len(parts) == 1:
            return parts[0]
        return cls._of([part.joined for part in parts], np.concatenate([p.sizes for p in parts]))

    @classmethod
    def _of(cls, arrays: Sequence[Segment], sizes: np.ndarray) -> Self:
        joined = {
            name: np.concatenate(
                [
                    np.zeros(0, np.float32 if name == "weight" else np.int32),
                    *(getattr(each, name) for each in arrays),
                ]
            )
            for name in Segment._fields
        }
        return cls(Segment(**joined), sizes, np.cumsum(sizes, axis=0) - sizes)

    @functools.cached_property
    def pairs(self) -> np.ndarray:
        """The pairs of a token and a token of the segment that it attends to: `[E]`."""
        return np.add.reduceat(self.joined.positions + 1, self.firsts[:, 0])

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """The tokens of segments by number, 0 for the number -1: int64 of the same shape."""
        return np.where(numbers < 0, 0, self.sizes[:, 0][numbers])

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, number: int) -> Segment:
        firsts, ends = self.firsts[number], self.firsts[number] + self.sizes[number]
        return Segment(*(x[firsts[i] : ends[i]] for x, i in zip(self.joined, _SIZES, strict=True)))

    def __iter__(self) -> Iterator[Segment]:
        return (self[number] for number in range(len(self)))


def make_segment(
    context: Sequence[int], continuations: dict[int, Sequence[int]], first_score: int
) -> Segment:
    """Makes the segment in which `continuations` (by label) branch off `context`.

    A label has the number `first_score + label`; its NLL is a mean over its continuation.
    """
    ids, positions = list(context), list(range(len(context)))
    branch = [0] * len(context)
    query = [len(context) - 1]  # it predicts the first token of every continuation
    of: list[int] = []
    target: list[int] = []
    score: list[int] = []
    weight: list[float] = []
    for label, tokens in continuations.items():
        inner = range(len(ids), len(ids) + len(tokens) - 1)
        of += [0, *range(len(query), len(query) + len(inner))]
        query += inner
        target += tokens
        score += [first_score + label] * len(tokens)
        weight += [1 / len(tokens)] * len(tokens)
        ids += tokens[:-1]
        positions += range(len(context), len(context) + len(inner))
        branch += [1 + label] * len(inner)
    lists = (ids, positions, branch, query, of, target, score)
    arrays = (*(np.asarray(x, np.int32) for x in lists), np.asarray(weight, np.float32))
    return Segment(*arrays)


def gold_segments(
    encoded: Sequence[Encoded], labels: Sequence[int], word_labels: Sequence[int]
) -> Segments:
    """Makes the segments of training: an example with its gold label alone.

    Args:
        encoded: N examples.
        labels: `[N]`, their gold labels.
        word_labels: `[W]`, the label of each label word. The words of a gold label have the numbers
            0, 1, ...
    """
    words = {
        label: [word for word, own in enumerate(word_labels) if own == label]
        for label in set(word_labels)
    }
    return Segments.join(
        [
            make_segment(
                example.contexts[words[label][0]],
                {number: example.continuations[word] for number, word in enumerate(words[label])},
                0,
            )
            for example, label in zip(encoded, np.asarray(labels).tolist(), strict=True)
        ]
    )


def label_segments(encoded: Sequence[Encoded]) -> Segments:
    """Makes the segments of scoring: every word, number `example * W + word`, of every example.

    Words with equal contexts share a segment.
    """
    segments = []
    for number, example in enumerate(encoded):
        shared: dict[tuple[int, ...], dict[int, Sequence[int]]] = {}
        for label, context in enumerate(example.contexts):
            shared.setdefault(context, {})[label] = example.continuations[label]
        first_score = number * len(example.contexts)
        segments += [
            make_segment(context, by_label, first_score) for context, by_label in shared.items()
        ]
    return Segments.join(segments)


def example_order(n_examples: int, count: int, seed: int) -> np.ndarray:
    """Draws `[count]` example numbers: one random order of all after another, by `seed` alone."""
    rng = np.random.default_rng(seed)
    epochs = -(-count // n_examples)
    return np.concatenate([rng.permutation(n_examples) for _ in range(epochs)])[:count]
