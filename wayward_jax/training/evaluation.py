"""Scoring examples under prompts: every label of every example in one pass (paper, section 3)."""

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from wayward_jax.models import LanguageModel
from wayward_jax.models.causal_lm import KVCache
from wayward_jax.objective import prediction_losses
from wayward_jax.packing import (
    PackedBatch,
    PackedShape,
    Segment,
    first_fit,
    pack_segments,
    padded,
    sizes,
    spread,
)
from wayward_jax.sharding import BY_RUN, on_host, place


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
    """E examples with all their C labels, ready to be scored under any prompt.

    Attributes:
        parts: packs `[X, ...]` of one shape, for one run; their scores count up to `E * C`.
        labels: `[E]` int32, the right ones.
        n_labels: C.
    """

    parts: tuple[PackedBatch, ...]
    labels: np.ndarray
    n_labels: int


def evaluation_sets(
    segments: Sequence[Sequence[Segment]],
    labels: Sequence[np.ndarray],
    n_labels: int,
    *,
    tokens: int,
    devices: int = 1,
) -> list[EvaluationSet]:
    """Packs the segments of several sets, all in one shape, so that one program scores them all.

    Args:
        segments: of each set, from `label_segments`.
        labels: of each set, `[E]` int32.
        n_labels: C.
        tokens: of a pack, at most about so many; how many exactly is chosen to leave few unused.
        devices: X, packs that are scored side by side.
    """
    totals = [sizes(each)[:, 0].sum() for each in segments]
    longest = max(sizes(each)[:, 0].max() for each in segments)

    def computed(size: int) -> int:
        return size * sum(-(-total // (size * devices)) for total in totals)

    size = min(range(max(tokens // 2, longest), max(tokens, longest) + 1), key=computed)
    dealt = [
        spread(each, devices * -(-total // (size * devices)))
        for each, total in zip(segments, totals, strict=True)
    ]
    shape = _shape([pack for packs in dealt for pack in packs])
    return [
        EvaluationSet(
            tuple(
                jax.tree.map(
                    lambda *x: np.stack(x),
                    *(pack_segments([pack], shape) for pack in packs[first : first + devices]),
                )
                for first in range(0, len(packs), devices)
            ),
            right,
            n_labels,
        )
        for packs, right in zip(dealt, labels, strict=True)
    ]


def _shape(packs: Sequence[Sequence[Segment]]) -> PackedShape:
    """The least shape for packs of one run each."""
    tokens, queries, predictions = np.max([sizes(pack).sum(axis=0) for pack in packs], axis=0)
    slots = int(padded(max(len(segment.ids) for pack in packs for segment in pack)))
    last = max(first_fit(sizes(pack)[None, :, 0], slots).max(initial=0) for pack in packs)
    needed = (int(padded(size)) for size in (tokens, queries, predictions))
    rows = int(last // slots) + 1
    return PackedShape(*needed, rows=rows, run_rows=rows, slots=slots)


def start_scoring(
    model: LanguageModel, prompts: jax.Array, mask: jax.Array, examples: EvaluationSet, mesh: Mesh
) -> list[jax.Array]:
    """Sets the devices to scoring every label of every example under every prompt.

    A prompt is read once, and a context once for all labels.

    Args:
        model: the frozen model.
        prompts: `[R, L, D]`, R a multiple of the mesh's `runs`.
        mask: `[R, L]` bool, False where a prompt is padded.
        examples: with X the mesh's `data`.
        mesh: see `mesh.AXES`.

    Returns:
        What `scores` makes scores of, as soon as the devices are done.
    """
    kv_cache = _read(model.module, model.params, prompts, mask, mesh)
    return [
        _score(
            model.module,
            model.params,
            prompts,
            mask,
            kv_cache,
            place(part, mesh, PartitionSpec("data")),
            mesh,
        )
        for part in examples.parts
    ]


def scores(losses: Sequence[jax.Array], examples: EvaluationSet) -> np.ndarray:
    """Mean negative log-likelihood of every label of every example under every prompt.

    The mean is over the tokens from the first at which the labels differ to EOS.

    Args:
        losses: from `start_scoring`.
        examples: the same.

    Returns:
        `[R, E, C]` float32, nats a token.
    """
    total = np.zeros((len(losses[0]), len(examples.labels) * examples.n_labels), np.float32)
    for part, loss in zip(examples.parts, losses, strict=True):
        np.add.at(total, (slice(None), part.score), on_host(loss))
    return total.reshape(len(total), -1, examples.n_labels)


def predictions(losses: Sequence[jax.Array], examples: EvaluationSet) -> np.ndarray:
    """The label of lowest score, the first of equals: `[R, E]` int. Arguments as for `scores`."""
    return scores(losses, examples).argmin(axis=-1)


def score_prompts(
    model: LanguageModel,
    prompts: Sequence[np.ndarray],
    examples: EvaluationSet,
    mesh: Mesh,
    *,
    length: int,
) -> np.ndarray:
    """`scores` under N prompts of any lengths: `[N, E, C]`.

    Args:
        model: the frozen model.
        prompts: `[<= length, D]` each; one without vectors is no prompt at all.
        examples: to score.
        mesh: see `start_scoring`.
        length: to which all are padded. Each other one is compiled anew.
    """
    places = -(-len(prompts) // mesh.shape["runs"]) * mesh.shape["runs"]
    vectors = np.zeros((places, length, model.embedding_table().shape[1]), np.float32)
    mask = np.zeros((places, length), bool)
    for i, prompt in enumerate(prompts):
        vectors[i, : len(prompt)] = prompt
        mask[i, : len(prompt)] = True
    losses = start_scoring(model, *place((vectors, mask), mesh, BY_RUN), examples, mesh)
    return scores(losses, examples)[: len(prompts)]


@functools.partial(jax.jit, static_argnames=("module", "mesh"))
def _read(
    module: nn.Module, params: dict, prompts: jax.Array, mask: jax.Array, mesh: Mesh
) -> KVCache:
    """What the module keeps of every prompt: `[R, 1, L, K, d]` keys and values."""

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec(), BY_RUN, BY_RUN),
        out_specs=BY_RUN,
        axis_names={"runs", "data"},
        check_vma=False,
    )
    def read_shard(params: dict, prompts: jax.Array, mask: jax.Array) -> KVCache:
        def read(one: tuple[jax.Array, jax.Array]) -> KVCache:
            return module.apply(params, one[0][None], one[1][None], method="prefill")

        return jax.lax.map(read, (prompts, mask))

    return read_shard(params, prompts, mask)


@functools.partial(jax.jit, static_argnames=("module", "mesh"))
def _score(
    module: nn.Module,
    params: dict,
    prompts: jax.Array,
    mask: jax.Array,
    kv_cache: KVCache,
    part: PackedBatch,
    mesh: Mesh,
) -> jax.Array:
    """`prediction_losses` of a part under every prompt, one prompt after the other: `[R, X, K]`."""

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec(), BY_RUN, BY_RUN, BY_RUN, PartitionSpec("data")),
        out_specs=PartitionSpec("runs", "data"),
        axis_names={"runs", "data"},
        check_vma=False,
    )
    def score_shard(
        params: dict, prompts: jax.Array, mask: jax.Array, kv_cache: KVCache, part: PackedBatch
    ) -> jax.Array:
        pack = jax.tree.map(lambda x: x[0], part)

        def score(one: tuple[jax.Array, jax.Array, KVCache]) -> jax.Array:
            prompt, mask, kv_cache = one
            return prediction_losses(module, params, prompt[None, :0], mask[None], pack, kv_cache)[
                None
            ]

        return jax.lax.map(score, (prompts, mask, kv_cache))

    return score_shard(params, prompts, mask, kv_cache, part)
