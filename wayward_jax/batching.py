"""Encoded examples to rows of token slots (NumPy, on the host).

An example's labels share its context, so the context is stored once and the labels' continuations
branch off it: every token sees the context before it and its own branch alone. Several examples
are packed into a row, which none of them notices.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from wayward_jax.models.attention import Layout
from wayward_jax.tasks.encoding import Encoded


@struct.dataclass
class Batch:
    """Rows of packed examples. All arrays are int32 but `weight`.

    ids: `[R, N, S]` tokens.
    positions: `[R, N, S]` counted from the end of the prompt.
    segment: `[R, N, S]` which example of the row a token belongs to; -1 in empty slots.
    branch: `[R, N, S]` 0 in a context, `1 + label` in that label's continuation.
    source: `[R, N, K]` slot in the row whose hidden state predicts ...
    target: `[R, N, K]` ... this token.
    score: `[R, N, K]` index of the score that the prediction counts for.
    weight: `[R, N, K]` float32, 1 / tokens of the continuation; 0 in unused predictions.
    """

    ids: np.ndarray
    positions: np.ndarray
    segment: np.ndarray
    branch: np.ndarray
    source: np.ndarray
    target: np.ndarray
    score: np.ndarray
    weight: np.ndarray

    def layout(self, prompt_mask: jax.Array) -> Layout:
        """The layout of these rows behind prompts of mask `prompt_mask` `[R, L]`."""
        slots = self.ids.shape[-1]
        to, of = (..., None, slice(None)), (..., slice(None), None)
        same = self.segment[to] == self.segment[of]
        own_branch = (self.branch[to] == 0) | (self.branch[to] == self.branch[of])
        causal = jnp.tril(jnp.ones((slots, slots), bool))
        lengths = prompt_mask.sum(axis=1, dtype=jnp.int32)
        return Layout(
            prompt_mask=prompt_mask,
            positions=self.positions + lengths[:, None, None],
            visible=same & own_branch & causal,
        )


class Piece(NamedTuple):
    """One context and its continuations, to be placed somewhere in a row; `[n]` and `[k]` int32.

    The last token of a continuation is only ever predicted, so it has no slot.
    """

    ids: np.ndarray
    positions: np.ndarray
    branch: np.ndarray
    source: np.ndarray
    target: np.ndarray
    score: np.ndarray
    weight: np.ndarray


def piece(
    context: Sequence[int], continuations: dict[int, Sequence[int]], first_score: int
) -> Piece:
    """The piece in which `continuations` (by label) branch off `context`.

    The score of a label is number `first_score + label`: its mean NLL over the continuation.
    """
    ids, positions = list(context), list(range(len(context)))
    branch = [0] * len(context)
    source, target, score, weight = [], [], [], []
    for label, tokens in continuations.items():
        inner = range(len(ids), len(ids) + len(tokens) - 1)
        source += [len(context) - 1, *inner]
        target += tokens
        score += [first_score + label] * len(tokens)
        weight += [1 / len(tokens)] * len(tokens)
        ids += tokens[:-1]
        positions += range(len(context), len(context) + len(inner))
        branch += [1 + label] * len(inner)
    arrays = (np.asarray(x, np.int32) for x in (ids, positions, branch, source, target, score))
    return Piece(*arrays, np.asarray(weight, np.float32))


def gold_pieces(encoded: Sequence[Encoded], labels: Sequence[int]) -> list[Piece]:
    """One piece an example with its gold label alone, as score 0: what training reads."""
    return [
        piece(example.contexts[label], {0: example.continuations[label]}, 0)
        for example, label in zip(encoded, labels, strict=True)
    ]


def label_pieces(encoded: Sequence[Encoded]) -> list[Piece]:
    """Every label of every example, score `example * C + label`; equal contexts are shared."""
    pieces = []
    for number, example in enumerate(encoded):
        shared: dict[tuple[int, ...], dict[int, Sequence[int]]] = {}
        for label, context in enumerate(example.contexts):
            shared.setdefault(context, {})[label] = example.continuations[label]
        first_score = number * len(example.contexts)
        pieces += [piece(context, by_label, first_score) for context, by_label in shared.items()]
    return pieces


def fill_rows(pieces: Sequence[Piece], slots: int) -> list[list[Piece]]:
    """Packs pieces, none longer than `slots`, into rows: first-fit by falling length."""
    rows: list[list[Piece]] = []
    room: list[int] = []
    for item in sorted(pieces, key=lambda p: -len(p.ids)):
        fits = next((i for i, free in enumerate(room) if free >= len(item.ids)), None)
        if fits is None:
            rows.append([])
            room.append(slots)
            fits = -1
        rows[fits].append(item)
        room[fits] -= len(item.ids)
    return rows


def spread(pieces: Sequence[Piece], n_rows: int) -> list[list[Piece]]:
    """Spreads pieces over `n_rows` rows of about equal length: longest first, to the emptiest."""
    rows: list[list[Piece]] = [[] for _ in range(n_rows)]
    filled = [0] * n_rows
    for item in sorted(pieces, key=lambda p: -len(p.ids)):
        emptiest = filled.index(min(filled))
        rows[emptiest].append(item)
        filled[emptiest] += len(item.ids)
    return rows


def widths(
    rows: Iterable[Sequence[Piece]], of_slots: int = 8, of_predictions: int = 8
) -> tuple[int, int]:
    """The least S and K that fit every row's tokens and predictions, multiples of two numbers."""
    sizes = [(sum(len(p.ids) for p in row), sum(len(p.target) for p in row)) for row in rows]
    tokens, predictions = map(max, zip(*sizes, strict=True))
    return -(-tokens // of_slots) * of_slots, -(-predictions // of_predictions) * of_predictions


def to_batch(rows: Sequence[Sequence[Piece]], slots: int, predictions: int) -> Batch:
    """Lays out rows of pieces as a `Batch` of `[N, S]` and `[N, K]` arrays, empty slots zero."""

    def empty(width: int, fill: int = 0, dtype: type = np.int32) -> np.ndarray:
        return np.full((len(rows), width), fill, dtype)

    batch = Batch(
        ids=empty(slots),
        positions=empty(slots),
        segment=empty(slots, -1),
        branch=empty(slots),
        source=empty(predictions),
        target=empty(predictions),
        score=empty(predictions),
        weight=empty(predictions, dtype=np.float32),
    )
    for n, row in enumerate(rows):
        token, prediction = 0, 0
        for number, item in enumerate(row):
            here = slice(token, token + len(item.ids))
            there = slice(prediction, prediction + len(item.target))
            batch.ids[n, here] = item.ids
            batch.positions[n, here] = item.positions
            batch.segment[n, here] = number
            batch.branch[n, here] = item.branch
            batch.source[n, there] = item.source + token
            batch.target[n, there] = item.target
            batch.score[n, there] = item.score
            batch.weight[n, there] = item.weight
            token, prediction = here.stop, there.stop
    return batch


def example_order(n_examples: int, count: int, seed: int) -> np.ndarray:
    """`[count]` example numbers: one random order of all after another, decided by `seed` alone."""
    rng = np.random.default_rng(seed)
    epochs = -(-count // n_examples)
    return np.concatenate([rng.permutation(n_examples) for _ in range(epochs)])[:count]
