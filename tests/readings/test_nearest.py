"""Readings of prompts against a search by brute force in float64, and F1 values by hand."""

import dataclasses

import numpy as np
import pytest

from tests.helpers.toy_models import WORDS
from wayward_jax import models
from wayward_jax.errors import InputError
from wayward_jax.projection import METRICS
from wayward_jax.readings import nearest, read_prompts, read_tokens
from wayward_jax.targets import Target

LENGTHS = (3, 1, 7)


@pytest.fixture(scope="module")
def prompts(model):
    rng = np.random.default_rng(0)
    width = model.embedding_table().shape[1]
    return [rng.normal(0, 0.3, (length, width)).astype(np.float32) for length in LENGTHS]


def far(prompt, table, metric):
    """The distances of all words from all vectors `[L, W]`, as the metrics are defined."""
    prompt, table = np.float64(prompt)[:, None], np.float64(table)[None]
    dots = (prompt * table).sum(-1)
    if metric == "dot":
        return -dots
    if metric == "cosine":
        return 1 - dots / np.linalg.norm(prompt, axis=-1) / np.linalg.norm(table, axis=-1)
    return ((prompt - table) ** 2).sum(-1)


@pytest.mark.parametrize("metric", METRICS)
def test_prompts_of_any_lengths_read_as_their_nearest_words(model, prompts, metric):
    table = np.asarray(model.embedding_table())[: len(WORDS)]
    found = read_prompts(model, prompts, [None] * len(prompts), metric, k=5)
    for prompt, reading in zip(prompts, found, strict=True):
        distances = far(prompt, table, metric)
        ids = distances.argsort(axis=1)[:, :5]
        np.testing.assert_array_equal(reading.ids, ids)
        nearest = np.take_along_axis(distances, ids, axis=1)
        np.testing.assert_allclose(reading.distances, nearest, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(reading.margins, nearest[:, 1] - nearest[:, 0], atol=1e-5)
        assert reading.text == " ".join(WORDS[id_] for id_ in ids[:, 0])


def test_a_prompt_reads_the_same_beside_any_others(model, prompts, monkeypatch):
    together = read_prompts(model, prompts, [None] * len(prompts))
    monkeypatch.setattr(nearest, "VECTORS_AT_ONCE", 2)
    for prompt, other in zip(prompts, together, strict=True):
        (alone,) = read_prompts(model, [prompt], [None])
        np.testing.assert_array_equal(alone.ids, other.ids)
        np.testing.assert_allclose(alone.distances, other.distances, rtol=1e-6)


def test_a_prompt_of_embeddings_reads_as_their_tokens_and_agrees_with_them(model):
    ids = (9, 7, 9)
    prompt = np.asarray(model.embedding_table())[list(ids)]
    same, other = Target("own/1", "w3 w1 w3", ids), Target("own/2", "w3 w2", (9, 8))
    exact, partly, free = read_prompts(model, [prompt] * 3, [same, other, None])
    assert exact.text == partly.text == free.text == "w3 w1 w3"
    np.testing.assert_array_equal(exact.distances[:, 0], 0)
    assert (exact.prompt_f1, exact.token_f1) == (1, 1)
    # One of three words that are read, and of two that are wanted, is common.
    assert (partly.prompt_f1, partly.token_f1) == (pytest.approx(0.4), pytest.approx(0.4))
    assert (free.prompt_f1, free.token_f1) == (None, None)


def test_there_are_no_more_neighbors_than_tokens_and_all_of_them_have_a_text(model, prompts):
    (reading, *_) = read_prompts(model, prompts, [None] * len(prompts), k=1000)
    assert reading.ids.shape == (LENGTHS[0], len(WORDS))
    assert sorted(reading.ids[0]) == list(range(len(WORDS)))


def test_read_tokens_decodes_and_compares_with_the_target(model):
    target = Target("own/1", "w3 w1", (9, 7))
    read = read_tokens(model.tokenizer, [9, 8], target)
    assert read == ((9, 8), "w3 w2", 0.5, 0.5)
    assert read_tokens(model.tokenizer, [9, 8], None) == ((9, 8), "w3 w2", None, None)


def test_a_prompt_reads_as_a_special_token_only_if_asked_to(model):
    eos = np.asarray(model.embedding_table())[:1]
    text_only = dataclasses.replace(model, readable="text")
    (among_all,), (among_text,) = (
        read_prompts(each, [eos], [None], "euclidean", k=100) for each in (model, text_only)
    )
    assert among_all.ids[0, 0] == 0
    assert sorted(among_all.ids[0]) == list(range(len(WORDS)))
    assert sorted(among_text.ids[0]) == list(range(1, len(WORDS)))
    np.testing.assert_array_equal(among_text.ids[0], among_all.ids[0, 1:])


def test_readable_tokens_are_text_or_all(tmp_path):
    with pytest.raises(InputError, match="readable='none': choose one of text, all"):
        models.load("x", cache_dir=tmp_path, readable="none")
