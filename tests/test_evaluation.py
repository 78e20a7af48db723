"""Scores of all labels at once against plain passes, one label at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wayward_jax import evaluation
from wayward_jax.batching import label_pieces, to_batch
from wayward_jax.encoded_task import EvaluationSet
from wayward_jax.objective import prediction_losses

LENGTHS = (3, 5)
PROMPTS = np.random.default_rng(0).normal(size=(2, 5, tiny.WIDTH)).astype(np.float32)
MASK = np.arange(5) < np.array(LENGTHS)[:, None]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request, tmp_path_factory):
    return tiny.pair(request.param, tmp_path_factory.mktemp("tiny"))


def evaluation_set(encoded):
    labels = np.zeros(len(encoded), np.int32)
    return EvaluationSet(label_pieces(encoded), labels, len(encoded[0].contexts))


@pytest.mark.parametrize("method", ["direct", "channel"])
def test_scores_are_those_of_plain_passes(pair, method):
    ours, theirs = pair
    encoded = tiny.examples(6, n_labels=3, seed=2, method=method)
    expected = [
        [
            [
                tiny.published_nll(theirs, torch.tensor(prompt[:length]), *sequence).item()
                for sequence in zip(*example, strict=True)
            ]
            for example in encoded
        ]
        for prompt, length in zip(PROMPTS, LENGTHS, strict=True)
    ]
    scores = evaluation.score(ours, PROMPTS, MASK, evaluation_set(encoded))
    assert scores.shape == (2, 6, 3)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_examples_one_a_row_with_empty_rows_score_the_same(pair, monkeypatch):
    examples = evaluation_set(tiny.examples(7, n_labels=2, seed=3))
    packed = evaluation.score(pair[0], PROMPTS, MASK, examples)
    monkeypatch.setattr(evaluation, "ROW_SLOTS", 1)
    monkeypatch.setattr(evaluation, "TOKENS_AT_ONCE", 2 * 32 * 4)
    alone = evaluation.score(pair[0], PROMPTS, MASK, examples)
    np.testing.assert_allclose(packed, alone, rtol=1e-5)


@pytest.fixture(scope="module")
def scores_in(pair):
    """Scores `[R, E * C]` of pieces laid out in given rows."""
    ours = pair[0]
    losses = jax.jit(lambda params, batch: prediction_losses(ours.module, params, *batch))

    def score(rows, n_scores):
        batch = to_batch(rows, slots=128, predictions=64)
        behind_both = jax.tree.map(lambda x: np.stack([x, x]), batch)
        nll = np.asarray(
            losses(ours.params, (jnp.asarray(PROMPTS), jnp.asarray(MASK), behind_both))
        )
        return [np.bincount(batch.score.ravel(), run.ravel(), n_scores) for run in nll]

    return score


@settings(deadline=None, max_examples=25)
@given(placed=st.permutations(range(6)), breaks=st.lists(st.integers(0, 6), min_size=3, max_size=3))
def test_no_example_notices_where_it_is_packed(scores_in, placed, breaks):
    """Into four rows, some of which may be empty, in any order."""
    pieces = label_pieces(tiny.examples(6, n_labels=2, seed=4))
    first, second, third = sorted(breaks)
    rows = [placed[:first], placed[first:second], placed[second:third], placed[third:]]
    packed = scores_in([[pieces[i] for i in row] for row in rows], 12)
    plain = scores_in([pieces[:3], [], pieces[3:], []], 12)
    np.testing.assert_allclose(packed, plain, rtol=1e-5)


def test_the_label_of_lowest_score_is_predicted_and_the_first_of_equals(monkeypatch):
    scores = np.array([[[2.0, 1.0, 3.0], [1.0, 1.0, 1.0], [2.0, 0.5, 0.5]]])
    monkeypatch.setattr(evaluation, "score", lambda *_: scores)
    np.testing.assert_array_equal(evaluation.predict(None, None, None, None), [[1, 0, 1]])
