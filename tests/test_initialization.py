import dataclasses

import numpy as np
import pytest

from wayward_jax.initialization import COMMON_TOKENS, STARTS
from wayward_jax.runs import Run

TABLE = np.random.default_rng(0).normal(0.1, 0.2, (COMMON_TOKENS + 1000, 16)).astype(np.float32)
RUN = Run("model", "task", prompt_length=4, target_ids=(7, 5999, 7, 0))
P_STAR = dataclasses.replace(RUN, target_ids=())
ROWS = {row.tobytes(): i for i, row in enumerate(TABLE)}


def ids(prompt):
    """Rows of the table that a prompt consists of."""
    return [ROWS[vector.tobytes()] for vector in np.asarray(prompt)]


def test_at_the_target_a_prompt_is_its_embeddings():
    assert ids(STARTS["target"](RUN, TABLE)) == [7, 5999, 7, 0]


def test_vocabulary_starts_are_different_common_tokens():
    for seed in range(50):
        found = ids(STARTS["vocab"](dataclasses.replace(RUN, seed=seed), TABLE))
        assert len(set(found)) == 4
        assert max(found) < COMMON_TOKENS


def test_all_common_tokens_can_be_starts():
    run = dataclasses.replace(RUN, prompt_length=COMMON_TOKENS)
    assert sorted(ids(STARTS["vocab"](run, TABLE))) == list(range(COMMON_TOKENS))


def test_a_small_vocabulary_is_common_as_a_whole():
    run = dataclasses.replace(RUN, prompt_length=20)
    assert sorted(ids(STARTS["vocab"](run, TABLE[:20]))) == list(range(20))


@pytest.mark.parametrize("rows", [3, 20, COMMON_TOKENS])
def test_a_prompt_longer_than_the_common_tokens_starts_from_tokens_all_the_same(rows):
    length = 2 * rows + 1
    found = ids(STARTS["vocab"](dataclasses.replace(RUN, prompt_length=length), TABLE[:rows]))
    assert len(found) == length
    assert sorted(found[:rows]) == sorted(found[rows : 2 * rows]) == list(range(rows))


def test_random_starts_have_the_tables_standard_deviation():
    prompt = STARTS["random"](dataclasses.replace(RUN, prompt_length=2000), TABLE)
    assert prompt.shape == (2000, 16)
    np.testing.assert_allclose(prompt.std(), TABLE.std(), rtol=0.02)
    np.testing.assert_allclose(prompt.mean(), 0, atol=0.01)


@pytest.mark.parametrize("init", ["vocab", "random"])
def test_the_seed_alone_decides_a_start_that_does_not_know_the_target(init):
    prompt = STARTS[init](RUN, TABLE)
    np.testing.assert_array_equal(prompt, STARTS[init](P_STAR, TABLE))
    assert (prompt != STARTS[init](dataclasses.replace(RUN, seed=2), TABLE)).any()
