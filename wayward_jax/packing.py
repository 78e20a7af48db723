"""Packing of encoded examples into batches of fixed shape (NumPy, on the host).

The labels of an example share its context. The context is therefore stored once, and the labels'
continuations branch off it: every token attends to the context before it and to its own branch
alone. The examples of several runs are laid end to end in one packed batch, a pack for short, and
no example attends to another.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from wayward_jax.models.attention import AttentionLayout
from wayward_jax.tasks.encoding import Encoded

# All sizes of a pack are multiples of this.
GRAIN = 8


class PackedShape(NamedTuple):
    """The sizes of a pack. They decide what it costs and which program computes it.

    Attributes:
        tokens: T, the tokens of all examples of all runs.
        queries: Q, the tokens whose hidden states predict something.
        predictions: K, the predicted tokens.
        rows: W, the rows of all runs.
        run_rows: n, the most rows of one run.
        slots: S, the slots of a row.
    """

    tokens: int
    queries: int
    predictions: int
    rows: int
    run_rows: int
    slots: int


@struct.dataclass
class PackedBatch:
    """The examples of R runs, end to end. All arrays are int32, except `weight`.

    For attention the tokens stand in rows of slots; a row holds whole examples of one run. A -1
    stands for nothing: an empty token, slot or row.

    ids: `[T]`, the tokens.
    positions: `[T]`, their positions, counted from the end of the prompt.
    slot: `[T]`, which of the `W * S` slots each token has.
    token: `[W, S]`, which token each slot has.
    segment: `[W, S]`, which example of the pack each slot belongs to.
    branch: `[W, S]`, 0 in a context and `1 + label` in that label's continuation.
    run: `[W]`, which run each row belongs to.
    rows: `[R, n]`, the rows of each run.
    query: `[Q]`, the tokens whose hidden states predict.
    of: `[K]`, which of the queries makes each prediction.
    target: `[K]`, the token that is predicted.
    score: `[K]`, the number of the label, among all labels of all examples, that it counts for.
    weight: `[K]` float32, 1 / tokens of the continuation; 0 for unused predictions.
    """

    ids: np.ndarray
    positions: np.ndarray
    slot: np.ndarray
    token: np.ndarray
    segment: np.ndarray
    branch: np.ndarray
    run: np.ndarray
    rows: np.ndarray
    query: np.ndarray
    of: np.ndarray
    target: np.ndarray
    score: np.ndarray
    weight: np.ndarray

    def layout(self, prompt_mask: jax.Array) -> AttentionLayout:
        """The layout of these examples behind prompts of mask `prompt_mask` `[R, L]`."""
        slots = self.token.shape[-1]
        to, of = (..., None, slice(None)), (..., slice(None), None)
        same = self.segment[to] == self.segment[of]
        own_branch = (self.branch[to] == 0) | (self.branch[to] == self.branch[of])
        causal = jnp.tril(jnp.ones((slots, slots), bool))
        lengths = prompt_mask.sum(axis=1, dtype=jnp.int32)
        return AttentionLayout(
            prompt_mask=prompt_mask,
            positions=self.positions + lengths[self.token_run()],
            slot=self.slot,
            token=self.token,
            run=self.run,
            rows=self.rows,
            attention_mask=same & own_branch & causal,
        )

    def token_run(self) -> jax.Array:
        """The run of each token: `[T]` int32; that of an empty token means nothing."""
        return jnp.asarray(self.run)[self.slot // self.token.shape[1]]


class Segment(NamedTuple):
    """One context and its continuations, which will be placed in a pack.

    It has `[n]` tokens, `[q]` queries and `[k]` predictions, with the meanings of a `PackedBatch`.
    The last token of a continuation is predicted and never read, so it is not among the tokens.
    """

    ids: np.ndarray
    positions: np.ndarray
    branch: np.ndarray
    query: np.ndarray
    of: np.ndarray
    target: np.ndarray
    score: np.ndarray
    weight: np.ndarray


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
    arrays = (np.asarray(x, np.int32) for x in (ids, positions, branch, query, of, target, score))
    return Segment(*arrays, np.asarray(weight, np.float32))


def gold_segments(encoded: Sequence[Encoded], labels: Sequence[int]) -> list[Segment]:
    """Makes the segments of training: an example with its gold label alone, which has number 0."""
    return [
        make_segment(example.contexts[label], {0: example.continuations[label]}, 0)
        for example, label in zip(encoded, labels, strict=True)
    ]


def label_segments(encoded: Sequence[Encoded]) -> list[Segment]:
    """Makes the segments of scoring: every label, number `example * C + label`, of every example.

    Labels with equal contexts share a segment.
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
    return segments


def sizes(segments: Sequence[Segment]) -> np.ndarray:
    """Counts the tokens, queries and predictions of each segment: `[E, 3]`."""
    found = [(len(p.ids), len(p.query), len(p.of)) for p in segments]
    return np.array(found, np.int64).reshape(-1, 3)


def first_fit(lengths: np.ndarray, slots: int) -> np.ndarray:
    """Packs segments into rows, the longest first, each into the first row with room for it.

    Args:
        lengths: `[M, B]`, lengths of the segments of M packings, none above `slots`.
        slots: the length of a row.

    Returns:
        `[M, B]`, the slot where each segment starts; its row is `slot // slots`.
    """
    packing = np.arange(len(lengths))
    filled, start = np.zeros_like(lengths), np.zeros_like(lengths)
    for segment in np.argsort(-lengths, axis=1, kind="stable").T:
        length = lengths[packing, segment]
        row = (filled + length[:, None] <= slots).argmax(axis=1)
        start[packing, segment] = row * slots + filled[packing, row]
        filled[packing, row] += length
    return start


def spread(segments: Sequence[Segment], parts: int) -> list[list[Segment]]:
    """Spreads segments over parts with about as many tokens: the longest first, to the emptiest."""
    spread: list[list[Segment]] = [[] for _ in range(parts)]
    filled = [0] * parts
    for item in sorted(segments, key=lambda p: -len(p.ids)):
        emptiest = filled.index(min(filled))
        spread[emptiest].append(item)
        filled[emptiest] += len(item.ids)
    return spread


def padded(size: int | np.ndarray) -> int | np.ndarray:
    """Rounds a size up to a multiple of `GRAIN`, at least `GRAIN`."""
    return np.maximum(-(-size // GRAIN), 1) * GRAIN


def size_classes(sizes: np.ndarray, most: int, enough: float = 0.95) -> list[int]:
    """Chooses a few sizes to which the given sizes can be padded with the least waste.

    Args:
        sizes: `[n]` positive int, each as often as it occurs.
        most: the most classes.
        enough: no further class is added once this share of the padded sizes is needed.

    Returns:
        Some of the sizes, sorted; the last is the largest.
    """
    values, counts = np.unique(sizes, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    # cost[i, j] is the cost of padding the sizes i to j - 1 to the largest of them.
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


def fitting_shape(packs: Sequence[Sequence[Sequence[Segment]]]) -> PackedShape:
    """Finds the least shape that fits each pack; a pack is a list of segments for each run."""
    totals, rows, run_rows = [], 1, 1
    slots = int(padded(max(len(s.ids) for pack in packs for run in pack for s in run)))
    for pack in packs:
        totals.append(sizes([segment for run in pack for segment in run]).sum(axis=0))
        starts = [first_fit(sizes(run)[None, :, 0], slots).max(initial=-1) for run in pack]
        of_runs = [int(last // slots) + 1 for last in starts]
        rows, run_rows = max(rows, sum(of_runs)), max(run_rows, *of_runs)
    tokens, queries, predictions = (int(padded(size)) for size in np.max(totals, axis=0))
    return PackedShape(tokens, queries, predictions, rows=rows, run_rows=run_rows, slots=slots)


def pack_segments(runs: Sequence[Sequence[Segment]], shape: PackedShape) -> PackedBatch:
    """Packs the segments of R runs into a batch of a shape that fits them."""
    segments = [segment for run in runs for segment in run]
    tokens, queries, _ = sizes(segments).T
    first_token, first_query = np.cumsum(tokens) - tokens, np.cumsum(queries) - queries

    first_slot: list[np.ndarray] = []
    row_run: list[int] = []
    rows = np.full((len(runs), shape.run_rows), -1, np.int32)
    for number, run in enumerate(runs):
        start = first_fit(sizes(run)[None, :, 0], shape.slots)[0]
        used = start.max(initial=-1) // shape.slots + 1
        first_slot.append(len(row_run) * shape.slots + start)
        rows[number, :used] = len(row_run) + np.arange(used)
        row_run += [number] * used
    slot = np.repeat(np.concatenate(first_slot) - first_token, tokens) + np.arange(tokens.sum())

    def in_order(field: str, size: int, shift: np.ndarray | int = 0) -> np.ndarray:
        values = [getattr(segment, field) for segment in segments]
        shifts = np.broadcast_to(shift, len(segments))
        row = np.concatenate([[], *(v + s for v, s in zip(values, shifts, strict=True))])
        return np.pad(row.astype(np.int32), (0, size - len(row)))

    def in_slots(values: np.ndarray, empty: int) -> np.ndarray:
        slots = np.full(shape.rows * shape.slots, empty, np.int32)
        slots[slot] = values
        return slots.reshape(shape.rows, shape.slots)

    branch = in_order("branch", len(slot))
    weight = np.concatenate([np.zeros(0, np.float32), *(segment.weight for segment in segments)])
    return PackedBatch(
        ids=in_order("ids", shape.tokens),
        positions=in_order("positions", shape.tokens),
        slot=_filled(slot.astype(np.int32), shape.tokens),
        token=in_slots(np.arange(len(slot)), -1),
        segment=in_slots(np.repeat(np.arange(len(segments)), tokens), -1),
        branch=in_slots(branch, 0),
        run=_filled(np.asarray(row_run, np.int32), shape.rows),
        rows=rows,
        query=in_order("query", shape.queries, first_token),
        of=in_order("of", shape.predictions, first_query),
        target=in_order("target", shape.predictions),
        score=in_order("score", shape.predictions),
        weight=np.pad(weight, (0, shape.predictions - len(weight))),
    )


def _filled(values: np.ndarray, size: int) -> np.ndarray:
    """Appends -1 to `values` up to `[size]`."""
    return np.pad(values, (0, size - len(values)), constant_values=-1)


def example_order(n_examples: int, count: int, seed: int) -> np.ndarray:
    """Draws `[count]` example numbers: one random order of all after another, by `seed` alone."""
    rng = np.random.default_rng(seed)
    epochs = -(-count // n_examples)
    return np.concatenate([rng.permutation(n_examples) for _ in range(epochs)])[:count]
