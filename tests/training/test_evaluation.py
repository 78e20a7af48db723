"""Scores of all labels at once against plain passes, one label at a time."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import toy_models
from tests.helpers.cases import slow_after
from tests.helpers.packs import evaluation_set, pack_lists
from wayward_jax.objective import prediction_losses
from wayward_jax.segments import Segments, label_segments, make_segment
from wayward_jax.shapes import PackedShape
from wayward_jax.sharding import make_mesh
from wayward_jax.training.evaluation import nll, predictions, start_scoring
from wayward_jax.training.scoring import EvaluationSet, plan_scoring

LENGTHS = (3, 5)
PROMPTS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, toy_models.WIDTH)), jnp.float32)


@pytest.fixture(scope="module", params=slow_after(1, ["gpt2", "llama"]))
def family(request):
    return request.param


def evaluated(encoded, tokens):
    return evaluation_set(encoded, [0] * len(encoded), prompt_length=max(LENGTHS), tokens=tokens)


def scored(model, *sets, shards=(1, 1)):
    """The NLL under each prompt of its own set."""
    scoring = plan_scoring(sets, LENGTHS, *shards)
    return nll(start_scoring(model, PROMPTS, scoring, make_mesh(*shards)), scoring)


@pytest.mark.parametrize("method", ["direct", "channel"])
def test_scores_are_those_of_plain_passes(model, theirs, method):
    torch = pytest.importorskip("torch")
    encoded = toy_models.examples(6, n_labels=3, seed=2, method=method)
    expected = [
        [
            [
                toy_models.published_nll(theirs, torch.tensor(prompt[:length]), *sequence).item()
                for sequence in zip(*example, strict=True)
            ]
            for example in encoded
        ]
        for prompt, length in zip(np.asarray(PROMPTS), LENGTHS, strict=True)
    ]
    examples = evaluated(encoded, tokens=64)
    assert len(plan_scoring([examples] * 2, LENGTHS, 1, 1).parts) > 1
    np.testing.assert_allclose(scored(model, examples, examples), expected, rtol=1e-4)


def test_each_run_is_scored_on_its_own_set_and_packs_do_not_matter(model):
    few, many = (toy_models.examples(count, n_labels=2, seed=count) for count in (3, 7))
    large = [evaluated(own, tokens=10**4) for own in (few, many)]
    (_, of_many), (of_few, _) = (scored(model, each, each) for each in large[::-1])
    for tokens in (10**4, 1):
        sets = [evaluated(own, tokens) for own in (few, many)]
        sets = [dataclasses.replace(own, shape=sets[1].shape) for own in sets]
        for found, expected in zip(scored(model, *sets), (of_few, of_many), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
@settings(max_examples=20)
@given(
    counts=st.lists(st.integers(0, 30), min_size=4, max_size=4).filter(any),
    lengths=st.lists(st.integers(0, 9), min_size=4, max_size=4),
    tokens=st.integers(1, 400),
    shards=st.sampled_from([(1, 1), (2, 1), (1, 3), (4, 2)]),
)
def test_each_example_of_each_run_is_in_one_pack_of_its_shard(counts, lengths, tokens, shards):
    """Behind the run's prompt, whatever the shape is; a run may have none."""
    encoded = [toy_models.examples(count, n_labels=2, seed=count) for count in counts]
    some = [own for own in encoded if own]
    whole = evaluation_set(
        [*itertools.chain(*some)], [0] * sum(counts), prompt_length=9, tokens=tokens
    )
    sets = [
        dataclasses.replace(evaluated(own, 1), shape=whole.shape) if own else None
        for own in encoded
    ]
    scoring = plan_scoring(sets, lengths, *shards)
    found = [np.zeros(2 * count) for count in counts]
    for packs in scoring.packs():
        assert packs.ids.shape[:2] == shards
        for shard, place in np.ndindex(shards):
            pack = jax.tree.map(lambda x: x[shard, place], packs)  # noqa: B023
            used = np.flatnonzero(pack.weight)
            runs = pack.run.ravel()[pack.query[pack.of[used]]] + shard * len(counts) // shards[0]
            for run in set(runs.tolist()):
                own = used[runs == run]
                np.add.at(found[run], pack.score[own], pack.weight[own])
                assert lengths[run] == pack.prompt_lengths[run % (len(counts) // shards[0])]
    for own in found:
        np.testing.assert_allclose(own, 1, rtol=1e-6)


PIECES = list(label_segments(toy_models.examples(6, n_labels=2, seed=4)))


@pytest.fixture(scope="module")
def losses_in(model):
    """`prediction_losses` of a pack of two runs, in rows of 24 slots or in a single one."""
    module = model.module

    @jax.jit
    def computed(params, pack):
        return prediction_losses(module, params, PROMPTS, pack)

    def losses(runs, slots=24):
        rows = {24: 12, 240: 1}[slots]
        shape = PackedShape(rows, slots, copies=6, queries=64, predictions=64)
        segments = [[PIECES[i] for i in run] for run in runs]
        batches = pack_lists([segments], [LENGTHS], shape)
        pack = jax.tree.map(lambda x: x[0], batches)
        return pack, np.asarray(computed(model.params, pack))

    return losses


@pytest.fixture(scope="module")
def plain_scores(losses_in):
    """`[2, 12]`, with all examples in order under one of the two prompts."""
    by_prompt = [losses_in([range(6), []]), losses_in([[], range(6)])]
    return [np.bincount(pack.score, losses, 12) for pack, losses in by_prompt]


@settings(max_examples=25)
@given(placed=st.permutations(range(6)), first=st.integers(0, 6))
def test_no_example_notices_where_it_is_packed(losses_in, plain_scores, placed, first):
    """Behind either prompt, in any order and company; a run may have none."""
    pack, losses = losses_in([placed[:first], placed[first:]])
    behind = np.array([0] * 12)
    behind[[2 * i + label for i in placed[first:] for label in (0, 1)]] = 1
    expected = np.choose(behind, plain_scores)
    np.testing.assert_allclose(np.bincount(pack.score, losses, 12), expected, rtol=1e-5)


def test_one_long_row_gives_the_losses_of_many_short_ones(losses_in):
    runs = [[4, 0, 2], [1, 3, 5]]
    short, long = losses_in(runs)[1], losses_in(runs, slots=240)[1]
    np.testing.assert_allclose(short, long, rtol=1e-5)


def test_the_label_of_lowest_score_is_predicted_and_the_first_of_equals():
    """By hand: three examples of three labels, in two rows; the shares of a word add up."""
    of_labels = {label: [5] * (1 + (label == 0)) for label in range(3)}
    segments = Segments.join([make_segment([4] * 4, of_labels, 3 * i) for i in range(3)])
    shape = PackedShape(1, 10, 1, 8, 8)
    examples = EvaluationSet(segments, shape, np.zeros(3, np.int32), (0, 1, 2))
    scoring = plan_scoring([examples], [0], 1, 1)
    shares = [[1.5, 0.5, 1.0, 3.0], [0.25, 0.75, 1.0, 1.0], [0.25, 0.5, 0.5, 0.5]]
    by_example = {3 * i: own for i, own in enumerate(shares)}
    losses = [
        np.array([[[x for s in pack.score[0, 0, ::4].tolist() for x in by_example[s]]]])
        for pack in scoring.packs()
    ]
    assert len(losses) > 1
    expected = [[[2.0, 1.0, 3.0], [1.0, 1.0, 1.0], [0.75, 0.5, 0.5]]]
    np.testing.assert_array_equal(nll(losses, scoring), expected)
    np.testing.assert_array_equal(predictions(losses, scoring), [[1, 0, 1]])
