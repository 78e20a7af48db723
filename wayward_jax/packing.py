"""Packing of prompts and encoded examples into batches of fixed shape (NumPy, on the host).

A batch consists of rows of slots. In a row stand a run's prompt, examples of the run, then perhaps
the prompt of another run and its examples. Attention is causal, so a prompt does not depend on the
examples behind it: every example attends to the copy of its prompt in its row. Prompts of any
lengths stand beside each other.

The labels of an example share its context. The context is therefore stored once, and the labels'
continuations branch off it: every token attends to the context before it and to its own branch
alone. No example attends to another.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from wayward_jax.tasks.encoding import Encoded

# All sizes of a batch but the number of rows and copies are multiples of this.
GRAIN = 8

# In rows of so many slots, attention takes about as long as the rest of a layer.
COSTLY_SLOTS = 2400

# Longer rows are used only if an example needs them.
MAX_SLOTS = 512

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


@struct.dataclass
class PackedBatch:
    """The prompts and examples of R runs. All arrays are int32, except `weight`.

    ids: `[W, S]`, the tokens; 0 in empty slots and where a prompt stands.
    positions: `[W, S]`, counted from the start of the prompt.
    run: `[W, S]`, the run of each slot; -1 in empty slots.
    segment: `[W, S]`, 0 in prompts and empty slots, and `1 + example` in the examples of the batch.
    branch: `[W, S]`, 0 in a context and `1 + word` in the continuation of that label word.
    prompt_lengths: `[R]`, the vectors of each run's prompt.
    copies: `[R, n]`, the slots where the copies of each run's prompt start, counted through all
        rows; -1 where there are fewer copies.
    query: `[Q]`, the slots whose hidden states predict, counted through all rows.
    of: `[K]`, which of the queries makes each prediction.
    target: `[K]`, the token that is predicted.
    score: `[K]`, the number of the label word, among those of its example or of all, that it counts
        for.
    weight: `[K]` float32, 1 / tokens of the continuation; 0 for unused predictions.
    """

    ids: np.ndarray
    positions: np.ndarray
    run: np.ndarray
    segment: np.ndarray
    branch: np.ndarray
    prompt_lengths: np.ndarray
    copies: np.ndarray
    query: np.ndarray
    of: np.ndarray
    target: np.ndarray
    score: np.ndarray
    weight: np.ndarray

    def is_prompt(self) -> jax.Array:
        """Finds the slots in which a prompt's vectors stand: `[W, S]` bool."""
        return (self.segment == 0) & (self.run >= 0)

    def attention_mask(self) -> jax.Array:
        """Finds the slots (last axis) of its row that each slot attends to: `[W, S, S]` bool.

        Every slot attends to itself, also an empty one.
        """
        to, of = (..., None, slice(None)), (..., slice(None), None)
        causal = jnp.tril(jnp.ones((self.run.shape[-1],) * 2, bool))
        own_run = self.run[to] == self.run[of]
        own_example = (self.segment[to] == 0) | (self.segment[to] == self.segment[of])
        own_branch = (self.branch[to] == 0) | (self.branch[to] == self.branch[of])
        return causal & own_run & own_example & own_branch

    def prediction_runs(self) -> jax.Array:
        """Finds the run of each prediction: `[K]` int32; that of an unused one means nothing."""
        return jnp.asarray(self.run).ravel()[self.query[self.of]]


class Segment(NamedTuple):
    """One context and its continuations, which will be placed in a batch.

    Positions are counted from the end of the prompt.

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


def gold_segments(
    encoded: Sequence[Encoded], labels: Sequence[int], word_labels: Sequence[int]
) -> list[Segment]:
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
    return [
        make_segment(
            example.contexts[words[label][0]],
            {number: example.continuations[word] for number, word in enumerate(words[label])},
            0,
        )
        for example, label in zip(encoded, np.asarray(labels).tolist(), strict=True)
    ]


def label_segments(encoded: Sequence[Encoded]) -> list[Segment]:
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
    return segments


def sizes(segments: Sequence[Segment]) -> np.ndarray:
    """Counts the tokens, queries and predictions of each segment: `[E, 3]`."""
    found = [(len(p.ids), len(p.query), len(p.of)) for p in segments]
    return np.array(found, np.int64).reshape(-1, 3)


def fill_rows(
    lengths: np.ndarray, prompt_lengths: np.ndarray, slots: int
) -> tuple[np.ndarray, np.ndarray]:
    """Puts the segments of M batches into rows, each segment behind a copy of its run's prompt.

    Runs come one after the other, and the longest segments of a run first. A segment comes into the
    first row with a copy of its prompt and room for it, else into the first row with room for both.

    Args:
        lengths: `[M, R, B]`, tokens of the segments of R runs; 0 where a run has fewer.
        prompt_lengths: `[M, R]`, vectors of the runs' prompts. No segment and its prompt are
            together longer than `slots`.
        slots: S, the length of a row.

    Returns:
        The slot where each segment starts, and the slot where the copy of its prompt starts if the
        segment is the first behind that copy, else -1. Both are `[M, R, B]`, and the row is
        `slot // S`. The starts of segments without tokens are -1.
    """
    every = np.arange(len(lengths))
    starts, copies = np.full_like(lengths, -1), np.full_like(lengths, -1)
    filled = np.zeros((len(lengths), 1), np.int64)
    for run, prompt in enumerate(prompt_lengths.T):
        longest_first = np.argsort(-lengths[:, run], axis=1, kind="stable").T
        most = (lengths[:, run] > 0).sum(axis=1).max(initial=0)
        has_prompt = np.zeros_like(filled, bool)
        for segment in longest_first[:most]:
            if filled[:, -1].any():  # there is always an empty row
                filled, has_prompt = (np.pad(x, ((0, 0), (0, 1))) for x in (filled, has_prompt))
            length = lengths[every, run, segment]
            missing = np.where(has_prompt, 0, prompt[:, None])
            fits = filled + missing + length[:, None] <= slots
            row = (fits.astype(np.int8) + (fits & has_prompt)).argmax(axis=1)
            real, is_first = length > 0, ~has_prompt[every, row]
            free, added = row * slots + filled[every, row], missing[every, row]
            starts[every, run, segment] = np.where(real, free + added, -1)
            copies[every, run, segment] = np.where(real & is_first, free, -1)
            filled[every, row] += np.where(real, added + length, 0)
            has_prompt[every, row] |= real
    return starts, copies


def spread(segments: Sequence[Segment], parts: int) -> list[list[Segment]]:
    """Spreads segments over parts with about as many tokens: the longest first, to the emptiest."""
    spread: list[list[Segment]] = [[] for _ in range(parts)]
    filled = [0] * parts
    for item in sorted(segments, key=lambda p: -len(p.ids)):
        emptiest = filled.index(min(filled))
        spread[emptiest].append(item)
        filled[emptiest] += len(item.ids)
    return spread


def padded(sizes: np.ndarray) -> np.ndarray:
    """Rounds sizes up to multiples of `GRAIN`, at least `GRAIN`."""
    return np.maximum(-(-sizes // GRAIN), 1) * GRAIN


def row_sizes(prompt_length: int, longest: int, grain: int) -> list[int]:
    """Lists the lengths of rows to choose from.

    Args:
        prompt_length: vectors of the longest prompt.
        longest: tokens of the longest example.
        grain: lengths are multiples of it.
    """
    shortest = -(-(prompt_length + longest) // grain)
    # Behind a long prompt there must be room for several examples, for each row repeats the prompt.
    enough = max(MAX_SLOTS, prompt_length + MAX_SLOTS // 2) // grain
    return [grain * n for n in range(shortest, max(shortest, enough) + 1)]


def choose_shapes(needed: np.ndarray, most: int) -> tuple[tuple[PackedShape, ...], float]:
    """Chooses a few shapes so that batches are computed at little cost.

    Args:
        needed: `[C, M, 5]`, from `needed_shapes` for M batches with rows of each of C lengths.
        most: the most shapes. None is added that saves less than `MIN_SAVING`.

    Returns:
        Shapes sorted by cost, and the mean cost of a batch. Every batch fits one of the shapes and
        is to be computed in the first that it fits.
    """
    slots = needed[:, 0, 1]
    rows, counts = np.unique(needed[..., 0], axis=1, return_counts=True)
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


def segment_sizes(batches: Sequence[Sequence[Sequence[Segment]]]) -> np.ndarray:
    """The `sizes` of the segments of M batches of R runs: `[M, R, B, 3]`, 0 for no segment."""
    runs = [run for batch in batches for run in batch]
    counts = np.array([len(run) for run in runs], np.int64)
    found = np.zeros((len(runs), counts.max(initial=0), 3), np.int64)
    found[np.repeat(np.arange(len(runs)), counts), _ranges(counts)] = sizes(
        [segment for run in runs for segment in run]
    )
    return found.reshape(len(batches), len(batches[0]), *found.shape[1:])


def needed_shapes(
    segments: np.ndarray, prompt_lengths: np.ndarray, slots: int, packs: int = 1
) -> np.ndarray:
    """Finds the least shape with rows of so many slots for the packs of each of M steps.

    Args:
        segments: `[M, R, B, 3]`, from `segment_sizes`.
        prompt_lengths: `[M, R]`.
        slots: S.
        packs: P, into which the rows of a step are divided.

    Returns:
        `[M, 5]`, each a `PackedShape`.
    """
    starts, copies = fill_rows(segments[..., 0], prompt_lengths, slots)
    rows = _rows_per_pack(starts, slots, packs)
    slots_per_pack = rows[:, None, None] * slots
    numbers = np.arange(packs)[:, None, None, None]
    own = starts // slots_per_pack == numbers  # [P, M, R, B]
    own_copies = copies // slots_per_pack == numbers
    most_copies = own_copies.sum(axis=3).max(axis=(0, 2), initial=1)
    counts = np.einsum("pmrb,mrbk->pmk", own, segments[..., 1:], dtype=np.int64)
    queries, predictions = padded(counts.max(axis=0)).T
    return np.stack([rows, np.full_like(rows, slots), most_copies, queries, predictions], axis=1)


def _rows_per_pack(starts: np.ndarray, slots: int, packs: int) -> np.ndarray:
    """Counts the rows of each pack of M steps: `[M]`. The rows of a step are divided evenly."""
    rows = starts.max(axis=(1, 2), initial=0) // slots + 1
    return -(-rows // packs)


def fitting_shape(
    batches: Sequence[Sequence[Sequence[Segment]]], prompt_lengths: np.ndarray, slots: int
) -> PackedShape:
    """Finds the least shape that fits each of M batches.

    Args:
        batches: for each batch, the segments of R runs.
        prompt_lengths: `[M, R]`.
        slots: S.
    """
    needed = needed_shapes(segment_sizes(batches), prompt_lengths, slots)
    return PackedShape(*needed.max(axis=0).tolist())


def pack_segments(
    steps: Sequence[Sequence[Sequence[Segment]]],
    prompt_lengths: np.ndarray,
    shape: PackedShape,
    packs: int = 1,
) -> PackedBatch:
    """Packs the segments of M steps, each into P packs of a shape that fits them.

    The rows of a step are divided among its packs. A run may have rows in several of them.

    Args:
        steps: for each step, the segments of R runs.
        prompt_lengths: `[M, R]`.
        shape: of each pack.
        packs: P.

    Returns:
        The packs of one step after those of another, `[M * P, ...]`. Each knows all R runs.
    """
    starts, copies = fill_rows(segment_sizes(steps)[..., 0], prompt_lengths, shape.slots)
    own_slots = _rows_per_pack(starts, shape.slots, packs) * shape.slots  # of each pack of a step
    count, stream = len(steps) * packs, shape.rows * shape.slots

    def located(slots: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The pack, the run and the slot of what starts somewhere, sorted by pack."""
        step, run, _ = np.nonzero(slots >= 0)
        pack_of_step, slot = np.divmod(slots[slots >= 0], own_slots[step])
        pack = step * packs + pack_of_step
        order = np.argsort(pack, kind="stable")
        return order, pack[order], run[order], slot[order]

    order, of_batch, of_run, start = located(starts)
    segments = [segment for step in steps for run in step for segment in run]
    segments = [segments[number] for number in order]
    tokens, queries, predictions = sizes(segments).T

    in_slots = {
        name: np.zeros(count * stream, np.int32)
        for name in ("ids", "positions", "run", "segment", "branch")
    }
    in_slots["run"][:] = -1

    def put(slots: np.ndarray, **values: np.ndarray) -> None:
        for name, array in values.items():
            in_slots[name][slots] = array

    _, copy_batch, copy_run, copy_slot = located(copies)
    length_of = prompt_lengths.repeat(packs, axis=0)  # [M * P, R]
    lengths = length_of[copy_batch, copy_run]
    vectors = _ranges(lengths)
    put(
        np.repeat(copy_batch * stream + copy_slot, lengths) + vectors,
        positions=vectors,
        run=np.repeat(copy_run, lengths),
    )
    copies_of = np.zeros(length_of.shape, np.int64)
    np.add.at(copies_of, (copy_batch, copy_run), 1)
    copy_starts = np.full((*length_of.shape, shape.copies), -1, np.int32)
    copy_starts[copy_batch, copy_run, _ranges(copies_of[copies_of > 0])] = copy_slot
    put(
        np.repeat(of_batch * stream + start, tokens) + _ranges(tokens),
        ids=_joined(segments, "ids"),
        positions=_joined(segments, "positions") + np.repeat(length_of[of_batch, of_run], tokens),
        run=np.repeat(of_run, tokens),
        segment=np.repeat(1 + np.arange(len(segments)), tokens),
        branch=_joined(segments, "branch"),
    )

    def in_order(
        field: str, counts: np.ndarray, size: int, shift: np.ndarray | int = 0
    ) -> np.ndarray:
        """Puts a field of all segments, each with its own shift, into `[M, size]`."""
        values = _joined(segments, field)
        batch = np.repeat(of_batch, counts)
        made = np.zeros((count, size), values.dtype)
        place = _ranges(np.bincount(batch, minlength=count))
        made[batch, place] = values + np.repeat(np.broadcast_to(shift, counts.shape), counts)
        return made

    first_query = np.cumsum(queries) - queries
    first_query -= first_query[np.searchsorted(of_batch, of_batch)]  # counted within the batch
    return PackedBatch(
        **{name: x.reshape(count, shape.rows, shape.slots) for name, x in in_slots.items()},
        prompt_lengths=length_of.astype(np.int32),
        copies=copy_starts,
        query=in_order("query", queries, shape.queries, start),
        of=in_order("of", predictions, shape.predictions, first_query),
        target=in_order("target", predictions, shape.predictions),
        score=in_order("score", predictions, shape.predictions),
        weight=in_order("weight", predictions, shape.predictions),
    )


def _ranges(lengths: np.ndarray) -> np.ndarray:
    """Counts from 0 up to each length, one range after the other: `[sum of lengths]`."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _joined(segments: Sequence[Segment], field: str) -> np.ndarray:
    """Joins a field of all segments; float32 for weights and int32 for the rest."""
    dtype = np.float32 if field == "weight" else np.int32
    return np.concatenate([np.zeros(0, dtype), *(getattr(s, field) for s in segments)])


def example_order(n_examples: int, count: int, seed: int) -> np.ndarray:
    """Draws `[count]` example numbers: one random order of all after another, by `seed` alone."""
    rng = np.random.default_rng(seed)
    epochs = -(-count // n_examples)
    return np.concatenate([rng.permutation(n_examples) for _ in range(epochs)])[:count]
