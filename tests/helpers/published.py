"""Comparison with models as transformers computes them."""

import jax
import numpy as np
import pytest


def assert_same_logits(ours, theirs, length=24):
    """Asserts that logits of ours and of transformers agree to 1e-4 of the largest logit.

    `ours` is a `LanguageModel`, `theirs` a model of transformers. Both compute two random texts of
    `length` tokens.
    """
    torch = pytest.importorskip("torch")

    ids = np.random.default_rng(0).integers(0, theirs.config.vocab_size, (2, length))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    text_logits = jax.jit(lambda params: ours.module.apply(params, ids, method="text_logits"))
    np.testing.assert_allclose(
        text_logits(ours.params), expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )
