"""Encoded examples to packs of fixed shape (NumPy, on the host).

An example's labels share its context, so the context is stored once and the labels' continuations
branch off it: every token sees the context before it and its own branch alone. The examples of
several runs are laid end to end in a pack, which none of them notices.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from wayward_jax.models.attention import Layout
from wayward_jax.tasks.encoding import Encoded

# Sizes are multiples of this.
GRAIN = 8


class PackShape(NamedTuple):
    """The sizes of a pack, which decide what it costs and which program computes it.

    Attributes:
        tokens: T, of all examples of all runs.
        queries: Q, tokens whose hidden state predicts something.
        predictions: K.
        windows: W, of all runs.
        run_windows: n, the most of one run.
        slots: S a window.
    """

    tokens: int
    queries: int
    predictions: int
    windows: int
    run_windows: int
    slots: int


@struct.dataclass
class Pack:
    """The examples of R runs, end to end. All arrays are int32 but `weight`.

    A -1 stands for nothing: an empty token, slot or window.

    ids: `[T]` tokens.
    positions: `[T]` counted from the end of the prompt.
    slot: `[T]` which of the `W * S` slots a token has.
    token: `[W, S]` which token a slot has.
    segment: `[W, S]` which example of the pack a slot belongs to.
    branch: `[W, S]` 0 in a context, `1 + label` in that label's continuation.
    run: `[W]` which run a window belongs to.
    windows: `[R, n]` the windows of each run.
    query: `[Q]` tokens whose hidden states predict.
    of: `[K]` which of the queries predicts ...
    target: `[K]` ... this token.
    score: `[K]` number of the score that the prediction counts for.
    weight: `[K]` float32, 1 / tokens of the continuation; 0 for unused predictions.
    """

    ids: np.ndarray
    positions: np.ndarray
    slot: np.ndarray
    token: np.ndarray
    segment: np.ndarray
    branch: np.ndarray
    run: np.ndarray
    windows: np.ndarray
    query: np.ndarray
    of: np.ndarray
    target: np.ndarray
    score: np.ndarray
    weight: np.ndarray

    def layout(self, prompt_mask: jax.Array) -> Layout:
        """The layout of these examples behind prompts of mask `prompt_mask` `[R, L]`."""
        slots = self.token.shape[-1]
        to, of = (..., None, slice(None)), (..., slice(None), None)
        same = self.segment[to] == self.segment[of]
        own_branch = (self.branch[to] == 0) | (self.branch[to] == self.branch[of])
        causal = jnp.tril(jnp.ones((slots, slots), bool))
        lengths = prompt_mask.sum(axis=1, dtype=jnp.int32)
        return Layout(
            prompt_mask=prompt_mask,
            positions=self.positions + lengths[self.token_run()],
            slot=self.slot,
            token=self.token,
            run=self.run,
            windows=self.windows,
            visible=same & own_branch & causal,
        )

    def token_run(self) -> jax.Array:
        """`[T]` int32, the run that a token belongs to; for empty tokens any."""
        return jnp.asarray(self.run)[self.slot // self.token.shape[1]]


class Piece(NamedTuple):
    """One context and its continuations, to be placed in a pack.

    `[n]` tokens, `[q]` queries and `[k]` predictions, as in a `Pack`. The last token of a
    continuation is only ever predicted, so it is none of the tokens.
    """

    ids: np.ndarray
    positions: np.ndarray
    branch: np.ndarray
    query: np.ndarray
    of: np.ndarray
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
    query = [len(context) - 1]  # its prediction begins every continuation
    of, target, score, weight = [], [], [], []
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
    arrays = (np.asarray(x, np.int32) for x in (ids, positions, branch, query, of, target, score))
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


def sizes(pieces: Sequence[Piece]) -> np.ndarray:
    """`[E, 3]`: each piece's tokens, queries and predictions."""
    found = [(len(p.ids), len(p.query), len(p.of)) for p in pieces]
    return np.array(found, np.int64).reshape(-1, 3)


def first_fit(lengths: np.ndarray, slots: int) -> np.ndarray:
    """Where pieces start that are packed into windows: first-fit by falling length.

    Args:
        lengths: `[M, B]` of the pieces of M packings, none above `slots`.
        slots: of a window.

    Returns:
        `[M, B]` slots; the window is `slot // slots`.
    """
    packing = np.arange(len(lengths))
    filled, start = np.zeros_like(lengths), np.zeros_like(lengths)
    for piece in np.argsort(-lengths, axis=1, kind="stable").T:
        length = lengths[packing, piece]
        window = (filled + length[:, None] <= slots).argmax(axis=1)
        start[packing, piece] = window * slots + filled[packing, window]
        filled[packing, window] += length
    return start


def spread(pieces: Sequence[Piece], parts: int) -> list[list[Piece]]:
    """Spreads pieces over parts of about equally many tokens: longest first, to the emptiest."""
    spread: list[list[Piece]] = [[] for _ in range(parts)]
    filled = [0] * parts
    for item in sorted(pieces, key=lambda p: -len(p.ids)):
        emptiest = filled.index(min(filled))
        spread[emptiest].append(item)
        filled[emptiest] += len(item.ids)
    return spread


def padded(size: int | np.ndarray) -> int | np.ndarray:
    """The least multiple of `GRAIN` that is no less than `size`, and no less than `GRAIN`."""
    return np.maximum(-(-size // GRAIN), 1) * GRAIN


def size_classes(sizes: np.ndarray, most: int, enough: float = 0.95) -> list[int]:
    """A few sizes to which given ones can be padded up with the least waste.

    Args:
        sizes: `[n]` positive int, each as often as it occurs.
        most: at most so many classes.
        enough: no more classes than it takes for so much of what is computed to be needed.

    Returns:
        Some of the sizes, rising; the last is the largest.
    """
    values, counts = np.unique(sizes, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    # cost[i, j]: of padding the sizes i to j - 1 to the largest of them.
    cost = np.concatenate([[0], values]) * (before - before[:, None]).astype(float)
    cost[np.tri(len(before), dtype=bool)] = np.inf
    least, ends = cost[0], [[i] for i in range(len(before))]
    for _ in range(most - 1):
        if np.sum(sizes) >= enough * least[-1]:
            break
        split = (least[:, None] + cost).argmin(axis=0)
        least = (least[:, None] + cost).min(axis=0)
        ends = [[*ends[i], j] for j, i in enumerate(split)]
    return [int(values[end - 1]) for end in ends[-1]]


def make_pack(runs: Sequence[Sequence[Piece]], shape: PackShape) -> Pack:
    """Lays out the pieces of R runs as a pack of a shape that they fit."""
    pieces = [piece for run in runs for piece in run]
    tokens, queries, _ = sizes(pieces).T
    first_token, first_query = np.cumsum(tokens) - tokens, np.cumsum(queries) - queries

    first_slot, window_run = [], []
    windows = np.full((len(runs), shape.run_windows), -1, np.int32)
    for number, run in enumerate(runs):
        start = first_fit(sizes(run)[None, :, 0], shape.slots)[0]
        used = start.max(initial=-1) // shape.slots + 1
        first_slot.append(len(window_run) * shape.slots + start)
        windows[number, :used] = len(window_run) + np.arange(used)
        window_run += [number] * used
    slot = np.repeat(np.concatenate(first_slot) - first_token, tokens) + np.arange(tokens.sum())

    def in_order(field: str, size: int, shift: np.ndarray | int = 0) -> np.ndarray:
        values = [getattr(piece, field) for piece in pieces]
        shifts = np.broadcast_to(shift, len(pieces))
        row = np.concatenate([[], *(v + s for v, s in zip(values, shifts, strict=True))])
        return np.pad(row.astype(np.int32), (0, size - len(row)))

    def in_slots(values: np.ndarray, empty: int) -> np.ndarray:
        slots = np.full(shape.windows * shape.slots, empty, np.int32)
        slots[slot] = values
        return slots.reshape(shape.windows, shape.slots)

    branch = in_order("branch", len(slot))
    weight = np.concatenate([np.zeros(0, np.float32), *(piece.weight for piece in pieces)])
    return Pack(
        ids=in_order("ids", shape.tokens),
        positions=in_order("positions", shape.tokens),
        slot=_filled(slot.astype(np.int32), shape.tokens),
        token=in_slots(np.arange(len(slot)), -1),
        segment=in_slots(np.repeat(np.arange(len(pieces)), tokens), -1),
        branch=in_slots(branch, 0),
        run=_filled(np.asarray(window_run, np.int32), shape.windows),
        windows=windows,
        query=in_order("query", shape.queries, first_token),
        of=in_order("of", shape.predictions, first_query),
        target=in_order("target", shape.predictions),
        score=in_order("score", shape.predictions),
        weight=np.pad(weight, (0, shape.predictions - len(weight))),
    )


def _filled(values: np.ndarray, size: int) -> np.ndarray:
    """`values` and then -1, `[size]`."""
    return np.pad(values, (0, size - len(values)), constant_values=-1)


def example_order(n_examples: int, count: int, seed: int) -> np.ndarray:
    """`[count]` example numbers: one random order of all after another, decided by `seed` alone."""
    rng = np.random.default_rng(seed)
    epochs = -(-count // n_examples)
    return np.concatenate([rng.permutation(n_examples) for _ in range(epochs)])[:count]
