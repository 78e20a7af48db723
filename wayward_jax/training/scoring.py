"""Plans how examples are scored: which rows and packs they stand in (NumPy, on the host).

Each run has its own set of examples. They fill rows behind copies of its prompt, and the rows of
all runs are divided among packs of one shape, whatever the runs and the sets are.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from wayward_jax.packing import PackedBatch, Placement, pack_placed
from wayward_jax.rows import count_rows, fill_rows, row_sizes
from wayward_jax.segments import Segments
from wayward_jax.shapes import GRAIN, PackedShape, padded
from wayward_jax.training.population import PopulationPlan

# Packs with a smaller share of the tokens that are asked for do not keep a device busy.
LEAST_SHARE = 0.25

# A pack takes about as long as its slots and this share of the tokens that are asked for.
PACK_COST = 0.02

# Lengths of rows closer than this to each other are not worth trying.
ROW_GRAIN = 64


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
    """E examples with all their W words, ready to be scored under any prompt.

    Attributes:
        segments: their word numbers count up to `E * W`.
        shape: of the packs in which they are scored.
        labels: `[E]` int32, the gold labels.
        word_labels: `[W]`, the label of each label word.
    """

    segments: Segments
    shape: PackedShape
    labels: np.ndarray
    word_labels: tuple[int, ...]


def scoring_shape(
    sets: Sequence[Segments], *, prompt_length: int, tokens: int, row_grain: int = GRAIN
) -> PackedShape:
    """Chooses a shape of packs in which all sets are scored, so that one program does it.

    Args:
        sets: the segments of each.
        prompt_length: vectors of the longest prompt.
        tokens: the most tokens of a pack; the number that leaves fewest slots unused is chosen.
        row_grain: see `rows.row_sizes`.
    """
    longest = max(int(each.sizes[:, 0].max()) for each in sets)
    lengths = np.array([each.sizes[:, 0].sum() for each in sets])
    choices = []
    for slots in row_sizes(prompt_length, longest, max(row_grain, ROW_GRAIN)):
        needed = np.array([len(_fill(each, [prompt_length], slots)[0].counts) for each in sets])
        most = max(1, tokens // slots)
        for rows in range(max(1, round(LEAST_SHARE * most)), most + 1):
            shape = PackedShape(rows, slots, rows, 0, 0)
            packs = -(-needed // rows)
            # Small sets count for more than their size, because they are scored more often.
            cost = (packs / np.sqrt(lengths)).sum() * (shape.cost + PACK_COST * tokens)
            choices.append((cost, shape))
    _, shape = min(choices)
    # Behind short prompts, rows have room for more examples.
    counts = [
        np.add.reduceat(of_set.counts, range(0, len(of_set.counts), shape.rows)).max(axis=0)
        for each in sets
        for of_set in _fill(each, [0, prompt_length], shape.slots)
    ]
    counts += [_most_in_row(each, shape.slots) for each in sets]
    queries, predictions = padded(np.max(counts, axis=0)).tolist()
    return shape._replace(queries=queries, predictions=predictions)


def with_room(
    examples: EvaluationSet, prompt_length: int, *, tokens: int, row_grain: int = GRAIN
) -> EvaluationSet:
    """The same examples with packs that have room for longer prompts; see `scoring_shape`."""
    shape = scoring_shape(
        [examples.segments], prompt_length=prompt_length, tokens=tokens, row_grain=row_grain
    )
    return dataclasses.replace(examples, shape=shape)


def _most_in_row(segments: Segments, slots: int) -> list[int]:
    """At least the queries and the predictions that a row can have."""
    found = []
    for counts in segments.sizes.T[1:]:
        densest = np.argsort(-counts / segments.sizes[:, 0])
        in_row = 1 + np.searchsorted(np.cumsum(segments.sizes[densest, 0]), slots)
        found.append(int(counts[densest[:in_row]].sum()))
    return found


class _Rows(NamedTuple):
    """The rows that a set fills behind a prompt; each begins with a copy of the prompt.

    number: `[N]`, which of the set's segments; row after row.
    slot: `[N]`, where it starts in its row.
    sizes: `[rows]`, the segments of each row.
    counts: `[rows, 2]`, the queries and predictions of each row.
    """

    number: np.ndarray
    slot: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray


def _fill(segments: Segments, prompt_lengths: Sequence[int], slots: int) -> list[_Rows]:
    """Fills rows with a set behind a prompt of each of some lengths."""
    lengths = np.tile(segments.sizes[:, 0], (len(prompt_lengths), 1, 1))
    starts, _ = fill_rows(lengths, np.array(prompt_lengths)[:, None], slots)
    found = []
    for start, n_rows in zip(starts[:, 0], count_rows(starts, slots), strict=True):
        row, slot = np.divmod(start, slots)
        counts = np.zeros((n_rows, 2), np.int64)
        np.add.at(counts, row, segments.sizes[:, 1:])
        # Rows with few and with many predictions take turns, so that all packs have as many.
        turns = np.argsort(counts[:, 1], kind="stable")
        turns[1::2] = turns[1::2][::-1]
        place = np.empty_like(turns)
        place[turns] = np.arange(n_rows)
        number = np.argsort(place[row], kind="stable")
        sizes = np.bincount(place[row], minlength=n_rows)
        found.append(_Rows(number, slot[number], sizes, counts[turns]))
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Scoring:
    """The packs in which the sets of R runs are scored.

    Attributes:
        sets: of each place for a run; None where there is no run.
        segments: of all different sets.
        prompt_lengths: `[run shards, R]`, vectors of each prompt.
        shape: of every pack.
        parts: for each part and each of its packs, by run shard and data shard, the placement of
            its segments.
    """

    sets: tuple[EvaluationSet | None, ...]
    segments: Segments
    prompt_lengths: np.ndarray
    shape: PackedShape
    parts: tuple[tuple[Placement, ...], ...]

    def packs(self) -> Iterator[PackedBatch]:
        """Makes the packs of each part, one part after the other: `[run shards, X, ...]`."""
        for part in self.parts:
            data_shards = len(part) // len(self.prompt_lengths)
            lengths = self.prompt_lengths.repeat(data_shards, axis=0)
            placed = Placement(
                np.repeat(np.arange(len(part)), [len(own.pack) for own in part]),
                *(np.concatenate([getattr(own, name) for own in part]) for name in _OF_SEGMENTS),
                np.repeat(np.arange(len(part)), [len(own.copy_pack) for own in part]),
                *(np.concatenate([getattr(own, name) for own in part]) for name in _OF_COPIES),
            )
            packs = pack_placed(self.segments, placed, lengths, self.shape)
            yield jax.tree.map(
                lambda x, axes=(-1, data_shards): x.reshape(*axes, *x.shape[1:]), packs
            )


_OF_SEGMENTS, _OF_COPIES = ("run", "number", "slot"), ("copy_run", "copy_slot")


def plan_scoring(
    sets: Sequence[EvaluationSet | None], lengths: Sequence[int], run_shards: int, data_shards: int
) -> Scoring:
    """Plans the packs in which each run's set is scored.

    Args:
        sets: of each run, all in one shape; None where there is no run. Their number is a multiple
            of `run_shards`.
        lengths: the vectors of each run's prompt.
        run_shards: parts of the mesh that have runs of their own.
        data_shards: X, parts of the mesh among which the packs of each run shard are divided.
    """
    different = list({id(each): each for each in sets if each is not None}.values())
    segments = Segments.concatenate([each.segments for each in different])
    firsts = np.cumsum([0, *(len(each.segments) for each in different)])
    shape = different[0].shape
    rows: dict[tuple[int, int], _Rows] = {}
    for first, each in zip(firsts, different, strict=False):
        own = sorted({n for n, of_run in zip(lengths, sets, strict=True) if of_run is each})
        for length, filled in zip(own, _fill(each.segments, own, shape.slots), strict=True):
            rows[id(each), length] = filled._replace(number=filled.number + first)

    runs_per_shard = len(sets) // run_shards
    by_shard = []
    for first in range(0, len(sets), runs_per_shard):
        places = [i for i in range(first, first + runs_per_shard) if sets[i] is not None]
        of_runs = [rows[id(sets[i]), lengths[i]] for i in places]
        by_shard.append(_divide(of_runs, [i - first for i in places], shape))
    count = -(-max(map(len, by_shard)) // data_shards) * data_shards
    nothing = Placement(*[np.zeros(0, np.int64)] * 7)
    for packs in by_shard:
        packs += [nothing] * (count - len(packs))
    parts = tuple(
        tuple(pack for packs in by_shard for pack in packs[i : i + data_shards])
        for i in range(0, count, data_shards)
    )
    return Scoring(
        tuple(sets), segments, np.reshape(lengths, (run_shards, -1)).astype(int), shape, parts
    )


def plan_for_runs(
    sets: EvaluationSet | Mapping[int, EvaluationSet], plan: PopulationPlan
) -> Scoring:
    """Plans how each run is scored on its set: one for all runs, or by the run's data seed."""
    own = [sets if isinstance(sets, EvaluationSet) else sets[run.data_seed] for run in plan.runs]
    return plan_scoring(
        plan.in_places(own, None), plan.prompt_lengths.tolist(), plan.run_shards, plan.data_shards
    )


def _divide(filled: Sequence[_Rows], places: Sequence[int], shape: PackedShape) -> list[Placement]:
    """Divides the rows of runs, one run after the other, among packs of a shape.

    Args:
        filled: the rows of each run.
        places: of each run in its shard.
        shape: of the packs.
    """
    if not filled:
        return []
    sizes = np.concatenate([own.sizes for own in filled])
    run_of_row = np.repeat(places, [len(own.sizes) for own in filled])
    number = np.concatenate([own.number for own in filled])
    slot = np.concatenate([own.slot for own in filled])
    run, row = np.repeat(run_of_row, sizes), np.repeat(np.arange(len(sizes)), sizes)
    ends = np.cumsum(np.concatenate([own.counts for own in filled]), axis=0)
    most = np.array([shape.queries, shape.predictions])
    before = np.zeros(2, np.int64)
    packs, first = [], 0
    while first < len(sizes):
        fitting = [np.searchsorted(ends[:, i], before[i] + most[i], "right") for i in (0, 1)]
        end = min(first + shape.rows, *fitting)
        own = slice(*np.searchsorted(row, [first, end]))
        packs.append(
            Placement(
                np.zeros(own.stop - own.start, np.int64),
                run[own],
                number[own],
                (row[own] - first) * shape.slots + slot[own],
                np.zeros(end - first, np.int64),
                run_of_row[first:end],
                np.arange(end - first) * shape.slots,
            )
        )
        first, before = end, ends[end - 1]
    return packs
