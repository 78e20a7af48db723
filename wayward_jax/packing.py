"""Packing of prompts and encoded examples into batches of fixed shape (NumPy, on the host).

A batch consists of rows of slots. In a row stand a run's prompt, examples of the run, then perhaps
the prompt of another run and its examples. Attention is causal, so a prompt does not depend on the
examples behind it: every example attends to the copy of its prompt in its row. Prompts of any
lengths stand beside each other.

Every token attends to its prompt, to the context before it and to its own branch alone. No example
attends to another.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from wayward_jax.rows import count_rows, fill_rows
from wayward_jax.segments import Segments, make_segment
from wayward_jax.shapes import PackedShape, padded


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


class Placement(NamedTuple):
    """Where the segments and the copies of prompts of M packs start.

    pack: `[E]`, the pack of each segment; never falling.
    run: `[E]`, its run.
    number: `[E]`, which of some `Segments` it is.
    slot: `[E]`, where it starts, counted through all rows of the pack.
    copy_pack: `[C]`, the pack of each copy of a prompt. Those of one run and pack stand together.
    copy_run: `[C]`, the run whose prompt it is.
    copy_slot: `[C]`, where it starts.
    """

    pack: np.ndarray
    run: np.ndarray
    number: np.ndarray
    slot: np.ndarray
    copy_pack: np.ndarray
    copy_run: np.ndarray
    copy_slot: np.ndarray


def place_segments(
    numbers: np.ndarray, starts: np.ndarray, copies: np.ndarray, slots: int, packs: int = 1
) -> Placement:
    """Divides the filled rows of M steps among P packs.

    A run may have rows in several packs of a step.

    Args:
        numbers: `[M, R, B]`, the segments of each run at each step; -1 for none.
        starts: `[M, R, B]`, from `fill_rows`.
        copies: `[M, R, B]`, from `fill_rows`.
        slots: S, the length of a row.
        packs: P.

    Returns:
        The placement in the packs `[M * P]` of one step after those of another.
    """
    own_slots = -(-count_rows(starts, slots) // packs) * slots  # of each pack of a step

    def located(where: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The place in `where`, the pack, run and slot of what starts somewhere, by pack."""
        flat = np.flatnonzero(where.ravel() >= 0)
        step, run = np.divmod(flat // where.shape[2], where.shape[1])
        pack, slot = np.divmod(where.ravel()[flat], own_slots[step])
        pack += step * packs
        order = np.argsort(pack, kind="stable") if packs > 1 else slice(None)
        return flat[order], pack[order], run[order], slot[order]

    flat, pack, run, slot = located(starts)
    _, *of_copies = located(copies)
    return Placement(pack, run, numbers.ravel()[flat], slot, *of_copies)


def pack_segments(
    segments: Segments,
    numbers: np.ndarray,
    prompt_lengths: np.ndarray,
    shape: PackedShape,
    packs: int = 1,
) -> PackedBatch:
    """Packs the segments of M steps, each into P packs of a shape that fits them.

    Args:
        segments: of which the steps have some.
        numbers: `[M, R, B]`, those of each run at each step; -1 for none.
        prompt_lengths: `[M, R]`, vectors of the runs' prompts.
        shape: of each pack.
        packs: P.

    Returns:
        The packs of one step after those of another, `[M * P, ...]`. Each knows all R runs.
    """
    filled = fill_rows(segments.lengths(numbers), prompt_lengths, shape.slots)
    placed = place_segments(numbers, *filled, shape.slots, packs)
    return pack_placed(segments, placed, prompt_lengths.repeat(packs, axis=0), shape)


def pack_placed(
    segments: Segments, placed: Placement, prompt_lengths: np.ndarray, shape: PackedShape
) -> PackedBatch:
    """Packs segments that are placed in M packs: `[M, ...]`.

    Args:
        segments: of which the placement has some.
        placed: their places.
        prompt_lengths: `[M, R]`.
        shape: of each pack. The placement fits it.
    """
    count, stream = len(prompt_lengths), shape.rows * shape.slots
    joined, firsts = segments.joined, segments.firsts[placed.number].T
    tokens, queries, predictions = segments.sizes[placed.number].T

    # For each slot, the number of the placed segment and its token. Slots without a token have 0,
    # and the first token of all, whose position and branch are 0.
    slots = ranges(placed.pack * stream + placed.slot, tokens)
    segment, token = np.zeros((2, count * stream), np.int64)
    segment[slots] = np.repeat(np.arange(1, 1 + len(tokens)), tokens)
    token[slots] = ranges(firsts[0], tokens)
    ids = np.where(segment > 0, joined.ids.take(token), 0)
    positions, branch = joined.positions.take(token), joined.branch.take(token)
    run = np.insert(placed.run.astype(np.int32), 0, -1).take(segment)
    before = prompt_lengths[placed.pack, placed.run].astype(np.int32)
    positions += np.insert(before, 0, 0).take(segment)

    lengths = prompt_lengths[placed.copy_pack, placed.copy_run]
    slots = ranges(placed.copy_pack * stream + placed.copy_slot, lengths)
    positions[slots] = ranges(np.zeros_like(lengths), lengths)
    run[slots] = np.repeat(placed.copy_run, lengths)

    copies = np.full((*prompt_lengths.shape, shape.copies), -1, np.int32)
    of_run = _before_in_group(placed.copy_pack * prompt_lengths.shape[1] + placed.copy_run)
    copies[placed.copy_pack, placed.copy_run, of_run] = placed.copy_slot

    first_query = _before_in_group(placed.pack, queries)

    def in_order(
        field: str, source: np.ndarray, slots: np.ndarray, size: int, shift: np.ndarray | int = 0
    ) -> np.ndarray:
        """Puts a field of all segments, with a shift, into `[M, size]`."""
        values = getattr(joined, field)
        made = np.zeros(count * size, values.dtype)
        made[slots] = values[source] + shift
        return made.reshape(count, size)

    query_slots = ranges(placed.pack * shape.queries + first_query, queries)
    first_prediction = _before_in_group(placed.pack, predictions)
    slots = ranges(placed.pack * shape.predictions + first_prediction, predictions)
    source = ranges(firsts[2], predictions)

    def in_rows(x: np.ndarray) -> np.ndarray:
        return x.astype(np.int32, copy=False).reshape(count, shape.rows, shape.slots)

    return PackedBatch(
        ids=in_rows(ids),
        positions=in_rows(positions),
        run=in_rows(run),
        segment=in_rows(segment),
        branch=in_rows(branch),
        prompt_lengths=prompt_lengths.astype(np.int32),
        copies=copies,
        query=in_order(
            "query",
            ranges(firsts[1], queries),
            query_slots,
            shape.queries,
            np.repeat(placed.slot, queries),
        ),
        of=in_order("of", source, slots, shape.predictions, np.repeat(first_query, predictions)),
        target=in_order("target", source, slots, shape.predictions),
        score=in_order("score", source, slots, shape.predictions),
        weight=in_order("weight", source, slots, shape.predictions),
    )


def needed_shapes(
    segments: Segments,
    numbers: np.ndarray,
    prompt_lengths: np.ndarray,
    slots: int,
    packs: int = 1,
) -> np.ndarray:
    """Finds the least shape for the packs of each of M steps: `[M, 5]`, each a `PackedShape`.

    The arguments are those of `pack_segments`, with rows of S slots.
    """
    filled = fill_rows(segments.lengths(numbers), prompt_lengths, slots)
    placed = place_segments(numbers, *filled, slots, packs)
    steps, runs = prompt_lengths.shape
    _, queries, predictions = segments.sizes[placed.number].T
    of_step = np.zeros((5, steps), np.int64)
    np.maximum.at(of_step[0], placed.pack // packs, placed.slot // slots + 1)
    before = _before_in_group(placed.copy_pack * runs + placed.copy_run)
    np.maximum.at(of_step[2], placed.copy_pack // packs, before + 1)
    for size, each in ((3, queries), (4, predictions)):
        counts = np.bincount(placed.pack, each, minlength=steps * packs)
        of_step[size] = padded(counts.reshape(steps, packs).max(axis=1).astype(np.int64))
    of_step = np.maximum(of_step, 1)
    of_step[1] = slots
    return of_step.T


def empty_pack(runs: int, shape: PackedShape) -> PackedBatch:
    """Makes a pack of R runs without examples."""
    segments = Segments.join([make_segment([0], {0: [0]}, 0)])
    numbers = np.full((1, runs, 1), -1)
    packs = pack_segments(segments, numbers, np.zeros((1, runs), np.int64), shape)
    return jax.tree.map(lambda x: x[0], packs)


def fitting_shape(
    segments: Segments, numbers: np.ndarray, prompt_lengths: np.ndarray, slots: int
) -> PackedShape:
    """Finds the least shape that fits each of M batches; see `needed_shapes`."""
    needed = needed_shapes(segments, numbers, prompt_lengths, slots)
    return PackedShape(*needed.max(axis=0).tolist())


def ranges(firsts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Counts from each of `firsts`, one range of `lengths` after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(firsts - before, lengths) + np.arange(lengths.sum())


def _before_in_group(groups: np.ndarray, sizes: np.ndarray | None = None) -> np.ndarray:
    """Sums the sizes (1 each by default) of what stands before in the same group: `[E]`.

    Members of a group stand together.
    """
    sizes = np.ones_like(groups) if sizes is None else sizes
    before = np.cumsum(sizes) - sizes
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    return before - np.repeat(before[starts], np.diff(starts, append=len(groups)))
