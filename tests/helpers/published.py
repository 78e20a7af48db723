"""Comparison with models as transformers computes them."""

import functools

import jax
import numpy as np
import pytest


def assert_same_logits(ours, theirs, length=24):
    """Asserts that logits of ours and of transformers agree to 1e-4 of the largest logit.

    `ours` is a `LanguageModel`, `theirs` a model of transformers. Both compute two random texts of
    `length` tokens.
    """
    torch = pytest.importorskip("torch")

    ids, _ = random_texts(theirs, length)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    assert_close(text_logits(ours.module, ours.params, ids), expected)


@functools.partial(jax.jit, static_argnums=0)
def text_logits(module, params, ids):
    """One program for all models of one module."""
    return module.apply(params, ids, method="text_logits")


def random_texts(theirs, length=24):
    """Draws the ids of two texts `[2, length]`, and random weights of all their logits."""
    rng = np.random.default_rng(0)
    shape, tokens = (2, length), theirs.config.get_text_config().vocab_size
    return rng.integers(0, tokens, shape), rng.normal(size=(*shape, tokens)).astype(np.float32)


def compute(ours, theirs):
    """Computes our logits, and the gradients of their weighted sum with respect to embeddings."""
    ids, weights = random_texts(theirs)
    texts, length = ids.shape
    causal = np.broadcast_to(np.tri(length, dtype=bool), (texts, length, length))
    positions = np.tile(np.arange(length), texts)

    @jax.jit
    def gradients(params):
        def weighted(embeddings):
            hidden = ours.module.apply(params, embeddings, positions, causal)
            logits = ours.module.apply(params, hidden, method="logits").reshape(weights.shape)
            return (logits * weights).sum(), logits

        table = ours.module.apply(params, method="embedding_table")
        return jax.grad(weighted, has_aux=True)(table[ids.ravel()])

    of_embeddings, logits = gradients(ours.params)
    return np.asarray(logits), np.asarray(of_embeddings, np.float32)


def compute_published(theirs):
    """Computes the same in transformers, in float32 without any code of ours.

    The embeddings are in the space of the published table, also where a model scales them.
    """
    torch = pytest.importorskip("torch")

    ids, weights = random_texts(theirs)
    lookup = theirs.get_input_embeddings()
    scale = getattr(lookup, "scalar_embed_scale", 1.0)
    leaf = lookup.weight.detach()[torch.from_numpy(ids)].requires_grad_()
    logits = theirs(inputs_embeds=leaf * scale).logits
    (logits * torch.from_numpy(weights)).sum().backward()
    return logits.detach().numpy(), leaf.grad.flatten(0, 1).numpy()


def assert_same_gradients(ours, theirs):
    """Asserts that logits, and their gradients with respect to embeddings, agree to 1e-4."""
    for actual, expected in zip(compute(ours, theirs), compute_published(theirs), strict=True):
        assert_close(actual, expected)


def assert_close(actual, expected):
    """Asserts that no number is off by more than 1e-4 of the largest of those expected."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
