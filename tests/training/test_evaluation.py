"""Scores of all labels at once against plain passes, one label at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import toy_models
from wayward_jax.objective import prediction_losses
from wayward_jax.packing import (
    PackedShape,
    Segment,
    fitting_shape,
    label_segments,
    pack_segments,
)
from wayward_jax.sharding import make_mesh
from wayward_jax.training.evaluation import (
    EvaluationSet,
    evaluation_sets,
    nll,
    predictions,
    start_scoring,
)

LENGTHS = (3, 5)
PROMPTS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, toy_models.WIDTH)), jnp.float32)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def model(family, folder):
    return toy_models.make(family, folder)


@pytest.fixture(scope="module")
def theirs(model, family, folder):
    return toy_models.load_published(family, folder)


def evaluation_set(encoded, tokens):
    labels = np.zeros(len(encoded), np.int32)
    (made,) = evaluation_sets(
        [label_segments(encoded)],
        [labels],
        range(len(encoded[0].contexts)),
        prompt_length=max(LENGTHS),
        tokens=tokens,
    )
    return made


def scored(model, examples):
    return nll(start_scoring(model, PROMPTS, LENGTHS, examples, make_mesh()), examples)


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
    examples = evaluation_set(encoded, tokens=64)
    assert len(examples.parts) > 1
    np.testing.assert_allclose(scored(model, examples), expected, rtol=1e-4)


def test_parts_do_not_matter(model):
    encoded = toy_models.examples(7, n_labels=2, seed=3)
    one, many = (evaluation_set(encoded, tokens) for tokens in (10**6, 1))
    assert len(one.parts) == 1 < len(many.parts)
    np.testing.assert_allclose(scored(model, one), scored(model, many), rtol=1e-5)


@pytest.mark.parametrize("devices", [1, 3])
def test_sets_are_made_in_one_shape_and_nothing_is_lost(devices):
    encoded = [toy_models.examples(count, n_labels=2, seed=count) for count in (1, 5, 30)]
    made = evaluation_sets(
        [label_segments(examples) for examples in encoded],
        [np.zeros(len(examples), np.int32) for examples in encoded],
        range(2),
        prompt_length=5,
        tokens=100,
        devices=devices,
    )
    (shape,) = {each.shape for each in made}
    for each, examples in zip(made, encoded, strict=True):
        weights = np.zeros(2 * len(examples))
        for part in each.parts:
            assert len(part) == devices
            packs = [[pack] for pack in part]
            for length in range(6):
                lengths = np.full((devices, 1), length)
                assert (np.array(fitting_shape(packs, lengths, shape.slots)) <= shape).all()
            for segment in (segment for pack in part for segment in pack):
                np.add.at(weights, segment.score, segment.weight)
        np.testing.assert_allclose(weights, 1, rtol=1e-6)


PIECES = label_segments(toy_models.examples(6, n_labels=2, seed=4))


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
        batches = pack_segments([segments], np.array([LENGTHS]), shape)
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
    """By hand: three examples of three labels, in two parts; what counts for a score adds up."""
    nothing = np.zeros(0)

    def part(scores):
        return ((Segment(*[nothing] * 6, np.array(scores), nothing),),)

    parts = part([0, 1, 2, 3, 4, 5]), part([6, 6, 7, 8])
    losses = [
        np.array([[[2.0, 1.0, 3.0, 1.0, 1.0, 1.0, 0.0, 0.0]]]),
        np.array([[[0.25, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]]]),
    ]
    examples = EvaluationSet(parts, PackedShape(1, 8, 1, 8, 8), np.zeros(3, np.int32), (0, 1, 2))
    expected = [[[2.0, 1.0, 3.0], [1.0, 1.0, 1.0], [0.75, 0.5, 0.5]]]
    np.testing.assert_array_equal(nll(losses, examples), expected)
    np.testing.assert_array_equal(predictions(losses, examples), [[1, 0, 1]])
