"""Losses and their gradients against PyTorch autograd through transformers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import toy_models
from tests.helpers.cases import slow_after
from tests.helpers.packs import pack_lists
from wayward_jax.objective import distance, summed_losses
from wayward_jax.segments import gold_segments
from wayward_jax.shapes import PackedShape

LENGTHS = (5, 3, 4, 2)
EXAMPLES = (4, 1, 3, 0)
PACK_SHAPE = PackedShape(rows=4, slots=40, copies=2, queries=40, predictions=48)


@pytest.fixture(scope="module", params=slow_after(1, ["gpt2", "llama"]))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def mask():
    return jnp.arange(max(LENGTHS)) < jnp.asarray(LENGTHS)[:, None]


@pytest.fixture(scope="module")
def prompts():
    """Padded with what must not matter."""
    shape = (len(LENGTHS), max(LENGTHS), toy_models.WIDTH)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def encoded():
    """The examples of each run, in which label 1 is right."""
    return [
        toy_models.examples(count, n_labels=2, seed=seed) for seed, count in enumerate(EXAMPLES)
    ]


@pytest.fixture(scope="module")
def pack(encoded):
    segments = [gold_segments(own, [1] * len(own), range(2)) for own in encoded]
    packed = pack_lists([segments], [LENGTHS], PACK_SHAPE)
    return jax.tree.map(lambda x: x[0], packed)


@pytest.fixture(scope="module")
def computed(model):
    """Gives the summed losses and numbers of examples `[R]`, and the gradient `[R, L, D]`."""

    @jax.jit
    def value_and_grad(params, prompts, pack):
        def total(prompts):
            losses, count = summed_losses(model.module, params, prompts, pack)
            return losses.sum(), (losses, count)

        gradient, (losses, count) = jax.grad(total, has_aux=True)(prompts)
        return losses, count, gradient

    return lambda prompts, pack: [
        np.asarray(x) for x in value_and_grad(model.params, prompts, pack)
    ]


@pytest.fixture(scope="module")
def ours(computed, prompts, pack):
    return computed(prompts, pack)


@pytest.fixture(scope="module")
def published(theirs, prompts, encoded):
    """The summed loss and gradient of each run, computed one example at a time."""
    torch = pytest.importorskip("torch")
    results = []
    for prompt, length, own in zip(prompts, LENGTHS, encoded, strict=True):
        prompt = torch.tensor(prompt[:length], requires_grad=True)
        total = 0 * prompt.sum()
        for contexts, continuations in own:
            total = total + toy_models.published_nll(theirs, prompt, contexts[1], continuations[1])
        total.backward()
        results.append((total.item(), prompt.grad.numpy()))
    return results


def test_losses_are_those_of_transformers(ours, published):
    losses, count, _ = ours
    np.testing.assert_allclose(losses, [loss for loss, _ in published], rtol=1e-6)
    np.testing.assert_allclose(count, EXAMPLES, rtol=1e-6)


def test_gradients_are_those_of_autograd(ours, published):
    for gradient, length, (_, expected) in zip(ours[2], LENGTHS, published, strict=True):
        error = np.abs(gradient[:length] - expected).max()
        assert error <= 1e-5 * np.abs(expected).max()


def test_padding_of_a_prompt_has_no_gradient(ours, mask):
    assert (ours[2][~np.asarray(mask)] == 0).all()


@pytest.mark.parametrize("broken", [0, 1, 3])
def test_what_is_not_finite_stays_in_its_own_run(computed, prompts, pack, ours, broken):
    """Run 0 too, to whose first prediction all unused ones point."""
    nan = prompts.copy()
    nan[broken] = np.nan
    others = np.arange(len(LENGTHS)) != broken
    losses, count, gradient = computed(nan, pack)
    np.testing.assert_array_equal(count, ours[1])
    np.testing.assert_array_equal(losses[others], ours[0][others])
    np.testing.assert_array_equal(gradient[others], ours[2][others])
    assert np.isnan(losses[broken]) == (EXAMPLES[broken] > 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_have_the_dtype_of_the_weights_and_those_of_float32_are_exact(
    model, prompts, pack, dtype
):
    """The default precision of TPUs rounds the factors of float32 products."""

    def gradient(params, prompts):
        return jax.grad(lambda x: summed_losses(model.module, params, x, pack)[0].sum())(prompts)

    params = jax.tree.map(lambda x: x.astype(dtype), model.params)
    program = jax.jit(gradient).lower(params, prompts).as_text()
    name, precision = {"float32": ("f32", "HIGHEST"), "bfloat16": ("bf16", "DEFAULT")}[
        dtype.__name__
    ]
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 20
    for line in products:
        assert f"precision = [{precision}, {precision}]" in line
        assert re.findall(r"x([a-z]+\d+)>", line.rsplit(": (")[-1])[:2] == [name, name]


def test_distance_sums_over_dimensions_and_averages_over_tokens():
    prompts = jnp.asarray([[[1.0, 2.0], [0.0, 3.0]], [[1.0, 2.0], [9.0, 9.0]]])
    targets = jnp.asarray([[[0.0, 0.0], [0.0, 0.0]], [[1.0, 4.0], [0.0, 0.0]]])
    mask = jnp.asarray([[True, True], [True, False]])
    np.testing.assert_allclose(distance(prompts, targets, mask), [(5 + 9) / 2, 4])
