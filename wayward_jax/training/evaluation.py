"""Scores examples under prompts: every label of every example in one pass (paper, section 3)."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from wayward_jax import metrics
from wayward_jax.models import LanguageModel
from wayward_jax.objective import prediction_losses
from wayward_jax.packing import (
    GRAIN,
    PackedBatch,
    PackedShape,
    Segment,
    fitting_shape,
    pack_segments,
    row_sizes,
    sizes,
    spread,
)
from wayward_jax.sharding import BY_RUN, on_host, place

# The numbers of tokens that packs are tried with, as shares of the most.
SIZES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

# Lengths of rows closer than this to each other are not worth trying.
ROW_GRAIN = 64


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
    """E examples with all their C labels, ready to be scored under any prompt.

    Attributes:
        parts: the segments of X packs, for each part; their word numbers count up to `E * W`.
        shape: of every pack, for one run.
        labels: `[E]` int32, the gold labels.
        word_labels: `[W]`, the label of each label word.
    """

    parts: tuple[tuple[tuple[Segment, ...], ...], ...]
    shape: PackedShape
    labels: np.ndarray
    word_labels: tuple[int, ...]


def evaluation_sets(
    segments: Sequence[Sequence[Segment]],
    labels: Sequence[np.ndarray],
    word_labels: Sequence[int],
    *,
    prompt_length: int,
    tokens: int,
    devices: int = 1,
    row_grain: int = GRAIN,
) -> list[EvaluationSet]:
    """Packs the segments of several sets, all in one shape, so that one program scores them all.

    Args:
        segments: for each set, from `label_segments`.
        labels: for each set, `[E]` int32.
        word_labels: `[W]`, the label of each label word.
        prompt_length: vectors of the longest prompt.
        tokens: the most tokens of a pack; the number that leaves fewest slots unused is chosen.
        devices: X, packs that are scored side by side.
        row_grain: see `packing.row_sizes`.
    """
    totals = [sizes(each)[:, 0].sum() for each in segments]
    longest = max(sizes(each)[:, 0].max() for each in segments)

    def dealt(share: float) -> list[list[list[Segment]]]:
        size = max(share * tokens, longest)
        counts = [devices * int(np.ceil(total / (size * devices))) for total in totals]
        return [spread(each, count) for each, count in zip(segments, counts, strict=True)]

    choices = [
        (packs, _best_shape(list(itertools.chain(*packs)), prompt_length, row_grain))
        for packs in map(dealt, SIZES)
    ]
    packs, shape = min(choices, key=lambda choice: sum(map(len, choice[0])) * choice[1].cost)
    return [
        EvaluationSet(
            tuple(
                tuple(map(tuple, of_set[first : first + devices]))
                for first in range(0, len(of_set), devices)
            ),
            shape,
            right,
            tuple(word_labels),
        )
        for of_set, right in zip(packs, labels, strict=True)
    ]


def with_room(examples: EvaluationSet, prompt_length: int, row_grain: int = GRAIN) -> EvaluationSet:
    """The same packs in a shape that has room for longer prompts.

    Args:
        examples: made for shorter prompts.
        prompt_length: vectors of the longest prompt.
        row_grain: see `packing.row_sizes`.
    """
    packs = [pack for part in examples.parts for pack in part]
    return dataclasses.replace(examples, shape=_best_shape(packs, prompt_length, row_grain))


def _best_shape(
    packs: Sequence[Sequence[Segment]], prompt_length: int, row_grain: int
) -> PackedShape:
    """Chooses the shape that fits each pack behind a prompt, and costs least."""
    longest = max(len(segment.ids) for pack in packs for segment in pack)
    lengths = np.full((len(packs), 1), prompt_length)
    slots = row_sizes(prompt_length, longest, max(row_grain, ROW_GRAIN))
    shapes = [fitting_shape([[pack] for pack in packs], lengths, n) for n in slots]
    return min(shapes, key=lambda shape: shape.cost)


def start_scoring(
    model: LanguageModel,
    prompts: jax.Array,
    lengths: Sequence[int],
    examples: EvaluationSet,
    mesh: Mesh,
) -> list[jax.Array]:
    """Starts to score every label of every example under every prompt; the devices do the work.

    A context is computed once for all labels.

    Args:
        model: the frozen model.
        prompts: `[R, L, D]`, R a multiple of the mesh's `runs`.
        lengths: `[R]`, the vectors of each prompt.
        examples: with X the mesh's `data`.
        mesh: see `sharding.AXES`.

    Returns:
        One array for each part of the examples, from which `nll` makes the result.
    """
    return [
        score_packs(
            model.module,
            model.params,
            prompts,
            place(pack_behind(part, lengths, examples.shape), mesh, PartitionSpec("runs", "data")),
            mesh,
        )
        for part in examples.parts
    ]


def pack_behind(
    part: Sequence[Sequence[Segment]], lengths: Sequence[int], shape: PackedShape
) -> PackedBatch:
    """Packs X packs behind each of R prompts: `[R, X, ...]`."""
    different, number = np.unique(lengths, return_inverse=True)
    batches = pack_segments(
        [[pack] for _ in different for pack in part],
        np.repeat(different, len(part))[:, None],
        shape,
    )
    return jax.tree.map(
        lambda x: x.reshape(len(different), len(part), *x.shape[1:])[number], batches
    )


def nll(parts: Sequence[jax.Array], examples: EvaluationSet) -> np.ndarray:
    """The mean negative log-likelihood of every label of every example under every prompt.

    The mean is over the tokens from the first at which the label words differ to EOS. The
    probability of a label is the sum over its words.

    Args:
        parts: from `start_scoring`.
        examples: the same examples.

    Returns:
        `[R, E, C]` float32, nats a token.
    """
    word_labels = np.array(examples.word_labels)
    total = np.zeros((len(parts[0]), len(examples.labels) * len(word_labels)), np.float32)
    for part, losses in zip(examples.parts, parts, strict=True):
        for pack, own in zip(part, on_host(losses).swapaxes(0, 1), strict=True):
            score = np.concatenate([segment.score for segment in pack])
            np.add.at(total, (slice(None), score), own[:, : len(score)])
    words = total.reshape(len(total), -1, len(word_labels))
    return np.stack(
        [
            -np.logaddexp.reduce(-words[..., word_labels == label], axis=-1)
            for label in range(word_labels.max() + 1)
        ],
        axis=-1,
    )


def predictions(parts: Sequence[jax.Array], examples: EvaluationSet) -> np.ndarray:
    """The label of lowest `nll`, see `metrics.predict`: `[R, E]` int. Arguments as for `nll`."""
    return metrics.predict(nll(parts, examples))


def score_prompts(
    model: LanguageModel,
    prompts: Sequence[np.ndarray],
    examples: EvaluationSet,
    mesh: Mesh,
    *,
    length: int,
) -> np.ndarray:
    """The `nll` under N prompts of any lengths: `[N, E, C]`.

    Args:
        model: the frozen model.
        prompts: `[<= length, D]` each; a prompt without vectors is no prompt at all.
        examples: to score.
        mesh: see `start_scoring`.
        length: to which all prompts are padded. Each other length is another program.
    """
    places = -(-len(prompts) // mesh.shape["runs"]) * mesh.shape["runs"]
    vectors = np.zeros((places, length, model.embedding_table().shape[1]), np.float32)
    lengths = np.zeros(places, np.int64)
    for i, prompt in enumerate(prompts):
        vectors[i, : len(prompt)] = prompt
        lengths[i] = len(prompt)
    parts = start_scoring(model, place(vectors, mesh, BY_RUN), lengths, examples, mesh)
    return nll(parts, examples)[: len(prompts)]


@functools.partial(jax.jit, static_argnames=("module", "mesh"))
def score_packs(
    module: nn.Module, params: dict, prompts: jax.Array, packs: PackedBatch, mesh: Mesh
) -> jax.Array:
    """`prediction_losses` of packs `[R, X, ...]` under R prompts, one by one: `[R, X, K]`."""

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec(), BY_RUN, PartitionSpec("runs", "data")),
        out_specs=PartitionSpec("runs", "data"),
        axis_names={"runs", "data"},
        check_vma=False,
    )
    def score_shard(params: dict, prompts: jax.Array, packs: PackedBatch) -> jax.Array:
        def score(one: tuple[jax.Array, PackedBatch]) -> jax.Array:
            prompt, of_run = one
            pack = jax.tree.map(lambda x: x[0], of_run)  # this device's among the data shards
            return prediction_losses(module, params, prompt[None], pack)[None]

        return jax.lax.map(score, (prompts, packs))

    return score_shard(params, prompts, packs)
