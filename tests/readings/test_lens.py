"""The lens and its loss, and those of nearest tokens, against transformers and PyTorch."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.helpers import toy_models
from tests.helpers.cases import slow_after
from tests.helpers.gradients import with_gradient
from tests.helpers.published import assert_close
from wayward_jax.readings import Lens, NearestTokens
from wayward_jax.readings.lens import read_layers

RNG = np.random.default_rng(0)
PROMPTS = RNG.normal(0, 0.5, (2, 5, toy_models.WIDTH)).astype(np.float32)
TARGETS = RNG.integers(1, 80, (2, 5))
FAMILIES = ("gpt2", "llama")


@pytest.fixture(scope="module", params=slow_after(1, FAMILIES))
def family(request):
    return request.param


def their_logits(theirs, prompt, bos, layer):
    """Logits of the hidden states that transformers returns; the last ones are normed already."""
    torch = pytest.importorskip("torch")
    before = theirs.get_input_embeddings()(torch.tensor(bos, dtype=torch.long))
    inputs = torch.cat([before, prompt])[None]
    states = theirs(inputs_embeds=inputs, output_hidden_states=True).hidden_states
    last = getattr(theirs.base_model, "ln_f", None) or theirs.base_model.norm
    state = states[layer] if layer == len(states) - 1 else last(states[layer])
    return theirs.lm_head(state)[0, len(bos) :]


@pytest.mark.parametrize(("layer", "bos"), slow_after(1, [(1, (9, 2)), (0, ()), (2, ())]))
def test_the_lens_and_its_gradient_are_those_of_transformers(model, theirs, layer, bos):
    torch = pytest.importorskip("torch")
    model, lens = dataclasses.replace(model, bos_ids=bos), Lens(layer)
    of_loss = with_gradient(lambda prompts: lens.loss(model, prompts, TARGETS))
    computed = jax.jit(lambda prompts: (*of_loss(prompts), lens.read(model, prompts)))
    losses, gradient, ids = computed(PROMPTS)
    for r in range(2):
        prompt = torch.tensor(PROMPTS[r], requires_grad=True)
        logits = their_logits(theirs, prompt, bos, layer)
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(TARGETS[r]))
        expected.backward()
        assert losses[r] == pytest.approx(expected.item(), rel=1e-4)
        assert_close(gradient[r], prompt.grad.numpy())
        words = logits.detach().numpy()[:, : len(toy_models.WORDS)]
        np.testing.assert_array_equal(ids[r], words.argmax(-1))


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_the_loss_of_nearest_tokens_is_the_mean_distance(model, metric):
    table = np.float64(model.embedding_table())
    method = NearestTokens(metric)
    losses = method.loss(model, PROMPTS, TARGETS)
    vectors, wanted = np.float64(PROMPTS), table[TARGETS]
    dots = (vectors * wanted).sum(-1)
    norms = np.linalg.norm(vectors, axis=-1) * np.linalg.norm(wanted, axis=-1)
    squared = np.square(vectors - wanted).sum(-1)
    far = {"euclidean": squared, "cosine": 1 - dots / norms, "dot": -dots}[metric]
    np.testing.assert_allclose(losses, far.mean(-1), rtol=1e-4)
    as_text = table[TARGETS].astype(np.float32)
    if metric != "dot":
        np.testing.assert_array_equal(method.read(model, as_text), TARGETS)


def test_all_layers_are_read_at_once_as_each_is_read_alone(model):
    model = dataclasses.replace(model, bos_ids=(4,))
    found = read_layers(model, PROMPTS[0])
    assert found.shape == (3, 5)
    for layer in range(3):
        np.testing.assert_array_equal(found[layer], Lens(layer).read(model, PROMPTS[:1])[0])
