"""Scores examples under prompts: every label of every example in one pass (paper, section 3)."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wayward_jax import metrics
from wayward_jax.models import LanguageModel
from wayward_jax.objective import prediction_losses
from wayward_jax.packing import PackedBatch, ranges
from wayward_jax.runs import Answer
from wayward_jax.sharding import BY_RUN, on_host, place
from wayward_jax.training.scoring import EvaluationSet, Scoring, plan_scoring

BY_SHARD = PartitionSpec("runs", "data")


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
    # Whether they were tuned, looked up or read: placed alike, they take one program.
    prompts = jax.device_put(prompts, NamedSharding(mesh, BY_RUN))
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


def answers(nll: np.ndarray, labels: Sequence[str]) -> tuple[Answer | None, ...]:
    """What examples are answered with, see `Answers`.

    Args:
        nll: `[E, C]`, from `nll`.
        labels: the names of the C labels.
    """
    probabilities = np.exp(-np.float64(nll))
    shares = probabilities / np.nansum(probabilities, axis=1, keepdims=True)
    return tuple(
        None if label < 0 else Answer(labels[label], float(own[label]))
        for label, own in zip(metrics.predict(nll), shares, strict=True)
    )


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
