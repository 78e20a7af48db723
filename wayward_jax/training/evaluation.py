"""Scores examples under prompts: every label of every example in one pass (paper, section 3)."""

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from wayward_jax import metrics
from wayward_jax.models import LanguageModel
from wayward_jax.models.causal_lm import KVCache
from wayward_jax.objective import prediction_losses
from wayward_jax.packing import (
    PackedBatch,
    Segment,
    fitting_shape,
    pack_segments,
    sizes,
    spread,
)
from wayward_jax.sharding import BY_RUN, on_host, place


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
    """E examples with all their C labels, ready to be scored under any prompt.

    Attributes:
        parts: packs `[X, ...]` of one shape, for one run; their label numbers count up to `E * C`.
        labels: `[E]` int32, the gold labels.
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
        segments: for each set, from `label_segments`.
        labels: for each set, `[E]` int32.
        n_labels: C.
        tokens: the most tokens of a pack; the number that leaves fewest unused is chosen.
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
    shape = fitting_shape([[pack] for packs in dealt for pack in packs])
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


def start_scoring(
    model: LanguageModel, prompts: jax.Array, mask: jax.Array, examples: EvaluationSet, mesh: Mesh
) -> list[jax.Array]:
    """Starts to score every label of every example under every prompt; the devices do the work.

    A prompt is computed once, and a context once for all labels.

    Args:
        model: the frozen model.
        prompts: `[R, L, D]`, R a multiple of the mesh's `runs`.
        mask: `[R, L]` bool, False where a prompt is padded.
        examples: with X the mesh's `data`.
        mesh: see `mesh.AXES`.

    Returns:
        One array for each part of the examples, from which `nll` makes the result.
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


def nll(parts: Sequence[jax.Array], examples: EvaluationSet) -> np.ndarray:
    """The mean negative log-likelihood of every label of every example under every prompt.

    The mean is over the tokens from the first at which the labels differ to EOS.

    Args:
        parts: from `start_scoring`.
        examples: the same examples.

    Returns:
        `[R, E, C]` float32, nats a token.
    """
    total = np.zeros((len(parts[0]), len(examples.labels) * examples.n_labels), np.float32)
    for pack, losses in zip(examples.parts, parts, strict=True):
        np.add.at(total, (slice(None), pack.score), on_host(losses))
    return total.reshape(len(total), -1, examples.n_labels)


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
    mask = np.zeros((places, length), bool)
    for i, prompt in enumerate(prompts):
        vectors[i, : len(prompt)] = prompt
        mask[i, : len(prompt)] = True
    parts = start_scoring(model, *place((vectors, mask), mesh, BY_RUN), examples, mesh)
    return nll(parts, examples)[: len(prompts)]


@functools.partial(jax.jit, static_argnames=("module", "mesh"))
def _read(
    module: nn.Module, params: dict, prompts: jax.Array, mask: jax.Array, mesh: Mesh
) -> KVCache:
    """The keys and values of every prompt: `[R, 1, L, K, d]`."""

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
    """`prediction_losses` of a part under every prompt, prompt by prompt: `[R, X, K]`."""

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
