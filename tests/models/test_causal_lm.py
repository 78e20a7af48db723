"""Normalizers and the logits of single tokens agree with all logits of a model, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.cases import slow_after
from wayward_jax.models.families import FAMILIES

ENTRIES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 50,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
}
FAMILY = {
    "llama": {"tie_word_embeddings": False},
    "granite": {
        "logits_scaling": 3.0,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 0.3,
    },
    "gemma2": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, "head_dim": 8},
}


@pytest.fixture(scope="module", params=FAMILY)
def family(request):
    return request.param


@pytest.fixture(scope="module", params=slow_after(1, ["float32", "bfloat16"]))
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def of_model(family, dtype):
    """Calls a method of a random model with the table of its output."""
    module = FAMILIES[family].module_of({**ENTRIES, **FAMILY[family]})
    ids = np.zeros((1, 1), np.int32)

    @jax.jit
    def initialize(key):
        params = module.init(key, ids, method="text_logits")
        return jax.tree.map(lambda x: x.astype(dtype), params)

    params = initialize(jax.random.key(0))
    apply = jax.jit(module.apply, static_argnames="method")
    return lambda method, *inputs: apply(params, *inputs, method=method)


@pytest.fixture
def hidden(dtype):
    """States of which some make the model certain of a token."""
    states = np.random.default_rng(1).normal(size=(6, 16)) * np.array([[1, 1, 1, 100, 100, 0]]).T
    return jnp.asarray(states, dtype)


def test_the_logit_of_one_token_is_the_one_among_all(of_model, hidden):
    ids = np.asarray([3, 0, 49, 7, 7, 1])
    every = np.asarray(of_model("logits", hidden))
    one = of_model("token_logits", hidden, ids)
    assert one.dtype == jnp.float32
    np.testing.assert_allclose(one, every[np.arange(6), ids], rtol=1e-5, atol=1e-5)


def test_normalizers_make_log_probabilities_of_logits(of_model, hidden):
    logits = np.float64(of_model("logits", hidden))
    found = of_model("log_normalizers", hidden)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(np.exp(logits - found[:, None]).sum(axis=1), 1, rtol=1e-4)


def test_the_gradient_of_normalizers_is_the_mean_of_that_of_logits(of_model, hidden, dtype):
    """The mean over all tokens by their probabilities."""
    logits = np.float64(of_model("logits", hidden))
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    of_logits = jax.jit(jax.jacobian(lambda h: of_model("logits", h[None])[0]))
    expected = np.stack(
        [share @ np.float64(of_logits(state)) for share, state in zip(shares, hidden, strict=True)]
    )
    found = jax.jit(jax.grad(lambda h: of_model("log_normalizers", h).sum()))(hidden)
    rounding = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    assert np.abs(np.float64(found) - expected).max() <= rounding * np.abs(expected).max()


def test_a_state_that_is_not_finite_leaves_the_others_alone(of_model, hidden):
    @jax.jit
    def normalizers(states):
        found, pull = jax.vjp(lambda h: of_model("log_normalizers", h), states)
        return found, *pull(jnp.ones_like(found))

    whole, broken = normalizers(hidden), normalizers(hidden.at[2].set(jnp.nan))
    others = np.arange(6) != 2
    for alone, beside in zip(whole, broken, strict=True):
        np.testing.assert_array_equal(alone[others], beside[others])
        assert np.isnan(np.float32(beside[2])).all()
