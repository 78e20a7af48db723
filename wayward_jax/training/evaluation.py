"""Scoring examples under prompts: every label of every example in one pass (paper, section 3)."""

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from wayward_jax.models import LanguageModel
from wayward_jax.models.causal_lm import Past
from wayward_jax.objective import prediction_losses
from wayward_jax.packing import Pack, PackShape, Piece, first_fit, make_pack, padded, sizes, spread
from wayward_jax.sharding import BY_RUN, on_host, place


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
    """E examples with all their C labels, ready to be scored under any prompt.

    Attributes:
        parts: packs `[X, ...]` of one shape, for one run; their scores count up to `E * C`.
        labels: `[E]` int32, the right ones.
        n_labels: C.
    """

    parts: tuple[Pack, ...]
    labels: np.ndarray
    n_labels: int


def evaluation_sets(
    pieces: Sequence[Sequence[Piece]],
    labels: Sequence[np.ndarray],
    n_labels: int,
    *,
    tokens: int,
    devices: int = 1,
) -> list[EvaluationSet]:
    """Packs the pieces of several sets, all in one shape, so that one program scores them all.

    Args:
        pieces: of each set, from `label_pieces`.
        labels: of each set, `[E]` int32.
        n_labels: C.
        tokens: of a pack, at most about so many; how many exactly is chosen to leave few unused.
        devices: X, packs that are scored side by side.
    """
    totals = [sizes(each)[:, 0].sum() for each in pieces]
    longest = max(sizes(each)[:, 0].max() for each in pieces)

    def computed(size: int) -> int:
        return size * sum(-(-total // (size * devices)) for total in totals)

    size = min(range(max(tokens // 2, longest), max(tokens, longest) + 1), key=computed)
    dealt = [
        spread(each, devices * -(-total // (size * devices)))
        for each, total in zip(pieces, totals, strict=True)
    ]
    shape = _shape([pack for packs in dealt for pack in packs])
    return [
        EvaluationSet(
            tuple(
                jax.tree.map(
                    lambda *x: np.stack(x),
                    *(make_pack([pack], shape) for pack in packs[first : first + devices]),
                )
                for first in range(0, len(packs), devices)
            ),
            right,
            n_labels,
        )
        for packs, right in zip(dealt, labels, strict=True)
    ]


def _shape(packs: Sequence[Sequence[Piece]]) -> PackShape:
    """The least shape for packs of one run each."""
    tokens, queries, predictions = np.max([sizes(pack).sum(axis=0) for pack in packs], axis=0)
    slots = int(padded(max(len(piece.ids) for pack in packs for piece in pack)))
    last = max(first_fit(sizes(pack)[None, :, 0], slots).max(initial=0) for pack in packs)
    needed = (int(padded(size)) for size in (tokens, queries, predictions))
    windows = int(last // slots) + 1
    return PackShape(*needed, windows=windows, run_windows=windows, slots=slots)


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
    past = _read(model.module, model.params, prompts, mask, mesh)
    return [
        _score(
            model.module,
            model.params,
            prompts,
            mask,
            past,
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
    vectors = np.zeros((places, length, model.table().shape[1]), np.float32)
    mask = np.zeros((places, length), bool)
    for i, prompt in enumerate(prompts):
        vectors[i, : len(prompt)] = prompt
        mask[i, : len(prompt)] = True
    losses = start_scoring(model, *place((vectors, mask), mesh, BY_RUN), examples, mesh)
    return scores(losses, examples)[: len(prompts)]


@functools.partial(jax.jit, static_argnames=("module", "mesh"))
def _read(module: nn.Module, params: dict, prompts: jax.Array, mask: jax.Array, mesh: Mesh) -> Past:
    """What the module keeps of every prompt: `[R, 1, L, K, d]` keys and values."""

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec(), BY_RUN, BY_RUN),
        out_specs=BY_RUN,
        axis_names={"runs", "data"},
        check_vma=False,
    )
    def read_shard(params: dict, prompts: jax.Array, mask: jax.Array) -> Past:
        def read(one: tuple[jax.Array, jax.Array]) -> Past:
            return module.apply(params, one[0][None], one[1][None], method="read_prompts")

        return jax.lax.map(read, (prompts, mask))

    return read_shard(params, prompts, mask)


@functools.partial(jax.jit, static_argnames=("module", "mesh"))
def _score(
    module: nn.Module,
    params: dict,
    prompts: jax.Array,
    mask: jax.Array,
    past: Past,
    part: Pack,
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
        params: dict, prompts: jax.Array, mask: jax.Array, past: Past, part: Pack
    ) -> jax.Array:
        pack = jax.tree.map(lambda x: x[0], part)

        def score(one: tuple[jax.Array, jax.Array, Past]) -> jax.Array:
            prompt, mask, past = one
            return prediction_losses(module, params, prompt[None, :0], mask[None], pack, past)[None]

        return jax.lax.map(score, (prompts, mask, past))

    return score_shard(params, prompts, mask, past, part)
