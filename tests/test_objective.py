"""Losses and their gradients against PyTorch autograd through transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch

from wayward_jax.batching import gold_pieces, to_batch, widths
from wayward_jax.objective import distance
from wayward_jax.tuning import Population, losses

LENGTHS = (5, 3, 4)
GAMMAS = (0.0, 0.5, 2.0)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request, tmp_path_factory):
    return tiny.pair(request.param, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def population():
    rng = np.random.default_rng(0)
    return Population(
        targets=jnp.asarray(rng.integers(0, 96, (3, max(LENGTHS))), jnp.int32),
        mask=jnp.arange(max(LENGTHS)) < jnp.asarray(LENGTHS)[:, None],
        gamma=jnp.asarray(GAMMAS, jnp.float32),
        learning_rate=jnp.ones(3),
    )


@pytest.fixture(scope="module")
def prompts():
    """Padded with what must not matter."""
    shape = (len(LENGTHS), max(LENGTHS), tiny.WIDTH)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def encoded():
    """Of each run, four examples in which label 1 is right."""
    return [tiny.examples(4, n_labels=2, seed=seed) for seed in range(len(LENGTHS))]


@pytest.fixture(scope="module")
def ours(pair, population, prompts, encoded):
    """Losses and gradients, with each run's examples in two rows."""
    pieces = [gold_pieces(examples, [1] * 4) for examples in encoded]
    rows = [[p[:3], p[3:]] for p in pieces]
    shape = widths(row for run in rows for row in run)
    batch = jax.tree.map(lambda *x: np.stack(x), *(to_batch(run, *shape) for run in rows))

    @jax.jit
    def value_and_grad(params, prompts):
        def total(prompts):
            parts = losses(pair[0].module, params, population, prompts, batch)
            return (parts.task + population.gamma * parts.distance).sum(), parts

        return jax.grad(total, has_aux=True)(prompts)

    gradients, parts = value_and_grad(pair[0].params, prompts)
    return parts, np.asarray(gradients)


@pytest.fixture(scope="module")
def published(pair, population, prompts, encoded):
    """Of each run: task loss, distance and gradient, one example at a time."""
    theirs = pair[1]
    results = []
    for r, length in enumerate(LENGTHS):
        prompt = torch.tensor(prompts[r, :length], requires_grad=True)
        nll = [
            tiny.published_nll(theirs, prompt, example.contexts[1], example.continuations[1])
            for example in encoded[r]
        ]
        target = torch.tensor(np.asarray(population.targets[r, :length]))
        far = (prompt - theirs.get_input_embeddings()(target)).square().sum(1).mean()
        task = torch.stack(nll).mean()
        (task + GAMMAS[r] * far).backward()
        results.append((task.item(), far.item(), prompt.grad.numpy()))
    return results


def test_losses_are_those_of_transformers(ours, published):
    task, far, _ = zip(*published, strict=True)
    np.testing.assert_allclose(ours[0].task, task, rtol=1e-5)
    np.testing.assert_allclose(ours[0].distance, far, rtol=1e-5)


def test_gradients_are_those_of_autograd(ours, published):
    for gradient, length, (_, _, expected) in zip(ours[1], LENGTHS, published, strict=True):
        error = np.abs(gradient[:length] - expected).max()
        assert error < 1e-4 * np.abs(expected).max()


def test_padding_of_a_prompt_has_no_gradient(ours, population):
    assert (ours[1][~np.asarray(population.mask)] == 0).all()


def test_distance_sums_over_dimensions_and_averages_over_tokens():
    prompts = jnp.asarray([[[1.0, 2.0], [0.0, 3.0]], [[1.0, 2.0], [9.0, 9.0]]])
    targets = jnp.asarray([[[0.0, 0.0], [0.0, 0.0]], [[1.0, 4.0], [0.0, 0.0]]])
    mask = jnp.asarray([[True, True], [True, False]])
    np.testing.assert_allclose(distance(prompts, targets, mask), [(5 + 9) / 2, 4])
