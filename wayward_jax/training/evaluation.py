"""Scores examples under prompts: every label of every example in one pass (paper, section 3).

Each run has its own set of examples. They fill rows behind copies of its prompt, and the rows of
all runs are divided among packs of one shape, whatever the runs and the sets are.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from wayward_jax import metrics
from wayward_jax.models import LanguageModel
from wayward_jax.objective import prediction_losses
from wayward_jax.packing import PackedBatch, Placement, pack_placed, ranges
from wayward_jax.rows import count_rows, fill_rows, row_sizes
from wayward_jax.segments import Segments
from wayward_jax.shapes import GRAIN, PackedShape, padded
from wayward_jax.sharding import BY_RUN, on_host, place

# Packs with a smaller share of the tokens that are asked for do not keep a device busy.
LEAST_SHARE = 0.25

# A pack takes about as long as its slots and this share of the tokens that are asked for.
PACK_COST = 0.02

# Lengths of rows closer than this to each other are not worth trying.
ROW_GRAIN = 64

BY_SHARD = PartitionSpec("runs", "data")


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
    choices = []
    for slots in row_sizes(prompt_length, longest, max(row_grain, ROW_GRAIN)):
        needed = np.array([len(_fill(each, [prompt_length], slots)[0].counts) for each in sets])
        most = max(1, tokens // slots)
        for rows in range(max(1, round(LEAST_SHARE * most)), most + 1):
            shape = PackedShape(rows, slots, rows, 0, 0)
            cost = (-(-needed // rows)).sum() * (shape.cost + PACK_COST * tokens)
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
        filled = [rows[id(sets[i]), lengths[i]] for i in places]
        by_shard.append(_divide(filled, [i - first for i in places], shape))
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


def start_scoring(
    model: LanguageModel, prompts: jax.Array, scoring: Scoring, mesh: Mesh
) -> list[jax.Array]:
    """Starts to score every label of each run's examples; the devices do the work.

    A context is computed once for all labels.

    Args:
        model: the frozen model.
        prompts: `[run shards * R, L, D]`.
        scoring: planned for the mesh.
        mesh: see `sharding.AXES`.

    Returns:
        One array for each part, from which `nll` makes the result.
    """
    return [
        score_packs(model.module, model.params, prompts, place(packs, mesh, BY_SHARD), mesh)
        for packs in scoring.packs()
    ]


def nll(parts: Sequence[jax.Array], scoring: Scoring) -> list[np.ndarray]:
    """The mean negative log-likelihood of every label of each run's examples.

    The mean is over the tokens from the first at which the label words differ to EOS. The
    probability of a label is the sum over its words.

    Args:
        parts: from `start_scoring`.
        scoring: the same.

    Returns:
        For each run `[E, C]` float32, nats a token.
    """
    words = [len(own.labels) * len(own.word_labels) if own else 0 for own in scoring.sets]
    first_word = np.cumsum([0, *words])
    total = np.zeros(first_word[-1])
    run_shards, runs = scoring.prompt_lengths.shape
    for part, losses in zip(scoring.parts, parts, strict=True):
        found = on_host(losses).reshape(len(part), -1)
        for i, (pack, own) in enumerate(zip(part, found, strict=True)):
            counts = scoring.segments.sizes[pack.number, 2]
            source = ranges(scoring.segments.firsts[pack.number, 2], counts)
            place_of_run = i // (len(part) // run_shards) * runs + pack.run
            score = scoring.segments.joined.score[source]
            score = score + np.repeat(first_word[place_of_run], counts)
            np.add.at(total, score, own[: len(score)])
    return [
        _of_labels(total[first:end].astype(np.float32), own)
        for own, first, end in zip(scoring.sets, first_word, first_word[1:], strict=False)
        if own is not None
    ]


def _of_labels(words: np.ndarray, examples: EvaluationSet) -> np.ndarray:
    """The NLL of labels `[E, C]` from that of words `[E * W]`."""
    word_labels = np.array(examples.word_labels)
    by_word = words.reshape(-1, len(word_labels))
    return np.stack(
        [
            -np.logaddexp.reduce(-by_word[:, word_labels == label], axis=1)
            for label in range(word_labels.max() + 1)
        ],
        axis=1,
    )


def predictions(parts: Sequence[jax.Array], scoring: Scoring) -> list[np.ndarray]:
    """The label of lowest `nll`, see `metrics.predict`: `[E]` for each run."""
    return [metrics.predict(own) for own in nll(parts, scoring)]


def score_prompts(
    model: LanguageModel,
    prompts: Sequence[np.ndarray],
    examples: EvaluationSet,
    mesh: Mesh,
    *,
    length: int,
    places: int | None = None,
) -> np.ndarray:
    """The `nll` of the same examples under N prompts of any lengths: `[N, E, C]`.

    Args:
        model: the frozen model.
        prompts: `[<= length, D]` each; a prompt without vectors is no prompt at all.
        examples: to score.
        mesh: see `start_scoring`.
        length: to which all prompts are padded. Each other length is another program.
        places: for prompts, a multiple of the mesh's `runs`. Each other number is another program;
            by default it is the least power of two that suffices, for each run shard.
    """
    run_shards = mesh.shape["runs"]
    if places is None:
        places = run_shards << (-(-len(prompts) // run_shards) - 1).bit_length()
    vectors = np.zeros((places, length, model.embedding_table().shape[1]), np.float32)
    lengths = [0] * places
    for i, prompt in enumerate(prompts):
        vectors[i, : len(prompt)] = prompt
        lengths[i] = len(prompt)
    sets = [examples] * len(prompts) + [None] * (places - len(prompts))
    scoring = plan_scoring(sets, lengths, run_shards, mesh.shape["data"])
    parts = start_scoring(model, place(vectors, mesh, BY_RUN), scoring, mesh)
    return np.stack(nll(parts, scoring))


@functools.partial(jax.jit, static_argnames=("module", "mesh"))
def score_packs(
    module: nn.Module, params: dict, prompts: jax.Array, packs: PackedBatch, mesh: Mesh
) -> jax.Array:
    """`prediction_losses` of packs `[run shards, X, ...]` under R prompts a run shard:
    `[run shards, X, K]`."""

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec(), BY_RUN, BY_SHARD),
        out_specs=BY_SHARD,
        axis_names={"runs", "data"},
        check_vma=False,
    )
    def score_shard(params: dict, prompts: jax.Array, packs: PackedBatch) -> jax.Array:
        pack = jax.tree.map(lambda x: x[0, 0], packs)
        return prediction_losses(module, params, prompts, pack)[None, None]

    return score_shard(params, prompts, packs)
