"""The divergence from another prompt's predictions, against PyTorch, and prompts that imitate."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import wayward_jax as wj
from tests.helpers import toy_models
from wayward_jax.constraints import CONSTRAINTS
from wayward_jax.errors import InputError
from wayward_jax.projection import c_proj
from wayward_jax.runs import Run
from wayward_jax.sharding import make_mesh, place_params
from wayward_jax.targets import Target
from wayward_jax.training import imitation
from wayward_jax.training.imitation import (
    START,
    Imitation,
    Texts,
    compare_outputs,
    imitate,
    imitated_variables,
    plan_imitation,
    summed_divergences,
)
from wayward_jax.training.programs import Memory

WORDS = np.random.default_rng(0).integers(6, 80, (12, 9))
TEXTS = [" ".join(toy_models.WORDS[i] for i in own[: 3 + n % 7]) for n, own in enumerate(WORDS)]


@pytest.fixture(scope="module")
def texts(model):
    return Texts.encode(model, TEXTS, 3)


def draw(count, seed, length=3):
    shape = (count, length, toy_models.WIDTH)
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def theirs_of(torch, theirs, prompt, ids):
    """The log-probabilities `[T, V]` after each token of a text, by transformers in float64."""
    embeddings = torch.cat([prompt, theirs.get_input_embeddings()(torch.tensor(ids))])
    logits = theirs(inputs_embeds=embeddings[None]).logits[0, len(prompt) :]
    return torch.log_softmax(logits, -1)


@pytest.mark.slow
def test_divergences_and_their_gradients_are_those_of_pytorch(folder, model, texts):
    torch = pytest.importorskip("torch")
    theirs = toy_models.load_published("gpt2", folder).double()
    imitated, prompts = draw(1, 1)[0], draw(2, 2)

    variables = model.params | imitated_variables(model, imitated, make_mesh())

    @jax.jit
    def computed(prompts, text):
        def total(prompts):
            losses, counts = summed_divergences(model.module, variables, prompts, text)
            return losses.sum(), (losses, counts)

        return jax.grad(total, has_aux=True)(prompts)

    for number in (0, 6):  # a short text, which is padded, and a long one
        ids = texts.ids[number][texts.mask[number]].tolist()
        text = Texts(texts.ids[number], texts.mask[number])
        gradients, (losses, counts) = computed(prompts, text)
        np.testing.assert_array_equal(counts, 1)
        log_p = theirs_of(torch, theirs, torch.tensor(imitated).double(), ids)
        for r in range(2):
            own = torch.tensor(prompts[r]).double().requires_grad_()
            log_q = theirs_of(torch, theirs, own, ids)
            expected = torch.nn.functional.kl_div(
                log_q, log_p, reduction="batchmean", log_target=True
            )
            expected.backward()
            assert float(losses[r]) == pytest.approx(expected.item(), rel=1e-4)
            np.testing.assert_allclose(gradients[r], own.grad, rtol=1e-3, atol=1e-5)


def test_a_copy_of_a_prompt_has_no_divergence_and_keeps_every_token(model, texts):
    prompt, other = draw(2, 3)
    found = compare_outputs(model, prompt, [prompt, other], texts)
    assert found.kl.shape == found.kept.shape == (2, len(TEXTS))
    np.testing.assert_allclose(found.kl[0], 0, atol=1e-6)
    np.testing.assert_array_equal(found.kept[0], 1)
    assert (found.kl[1] > 1e-3).all()


@pytest.mark.slow
def test_what_comes_after_a_text_and_which_texts_are_beside_it_do_not_matter(model, texts):
    prompt, other = draw(2, 4)
    together = compare_outputs(model, prompt, [prompt, other], texts)
    alone = compare_outputs(model, prompt, [other], Texts.encode(model, [TEXTS[5]], 3))
    assert alone.kl[0, 0] == pytest.approx(together.kl[1, 5], rel=1e-4)
    assert alone.kept[0, 0] == together.kept[1, 5]


@pytest.mark.slow
def test_no_prompt_is_compared_as_transformers_would_read_the_text_alone(folder, model, texts):
    torch = pytest.importorskip("torch")
    theirs = toy_models.load_published("gpt2", folder).double()
    (prompt,) = draw(1, 5)
    found = compare_outputs(model, prompt, [prompt[:0]], texts)
    ids = texts.ids[2][texts.mask[2]].tolist()
    log_p = theirs_of(torch, theirs, torch.tensor(prompt).double(), ids)
    log_q = theirs_of(torch, theirs, torch.zeros((0, toy_models.WIDTH)).double(), ids)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    assert found.kl[0, 2] == pytest.approx(expected, rel=1e-4)
    kept = (log_p.argmax(-1) == log_q.argmax(-1)).double().mean().item()
    assert found.kept[0, 2] == pytest.approx(kept)


def test_the_halves_of_texts_are_every_second_one():
    texts = Texts(np.arange(10).reshape(5, 2), np.ones((5, 2), bool))
    tuned, held_out = texts.halves()
    assert tuned.ids[:, 0].tolist() == [0, 4, 8]
    assert held_out.ids[:, 0].tolist() == [2, 6]


@pytest.mark.parametrize(
    ("texts", "length", "said"),
    [
        (["w7", " "], 3, "texts=' ': has no tokens"),
        (["w7"], 64, "prompt: leaves no position for a text"),
    ],
    ids=str,
)
def test_texts_that_cannot_be_used_get_one_line(model, texts, length, said):
    with pytest.raises(InputError, match=said) as error:
        Texts.encode(model, texts, length)
    assert "\n" not in str(error.value)


def on_mesh(model, **sizes):
    """The model on a mesh, and the mesh."""
    mesh = make_mesh(**sizes)
    params = place_params(model.params, mesh, model.family.partition_spec)
    return dataclasses.replace(model, params=params), mesh


def towards(model, text, **settings):
    target = Target(text, text, tuple(model.tokenizer.encode(text)))
    settings = {"init": START, "steps": 40, "batch_size": 4, **settings}
    return Run.towards(target, model="tiny", task="texts", **settings)


@pytest.fixture(scope="module")
def imitated(model):
    """The prompt that is imitated, beside embeddings of tokens: one that reads as these is near."""
    ids = model.tokenizer.encode("w7 w8 w9")
    return np.asarray(c_proj(model.embedding_table(), np.asarray(ids))) + 0.1 * draw(1, 6)[0]


@pytest.fixture(scope="module")
def runs(model):
    return [
        towards(model, "w3 w4 w5", constraint="cell", margin=0.01, learning_rate=0.02),
        towards(model, "w7 w8 w9", constraint="penalty", gamma=0.1, learning_rate=0.01),
    ]


@pytest.fixture(scope="module")
def told():
    """The numbers of steps that `on_steps` was called with."""
    return []


@pytest.fixture(scope="module")
def found(model, imitated, texts, runs, told):
    return imitations(
        model, imitated, texts, runs, make_mesh(), on_steps=lambda steps, _: told.append(steps)
    )


def imitations(model, prompt, texts, runs, mesh, **settings):
    """The results of runs in one population."""
    plan = plan_imitation(runs, mesh)
    return imitate(model, prompt, texts, plan, mesh, constraints=CONSTRAINTS, **settings)


@pytest.mark.slow
def test_imitations_read_as_their_texts_and_diverge_as_they_say(
    model, imitated, texts, runs, told, found
):
    other, same = found
    for each in found:
        assert wj.read(model, each.prompt)["euclidean"].text == each.text
        _, held_out = texts.halves()
        again = compare_outputs(model, imitated, [each.prompt], held_out)
        np.testing.assert_allclose(each.held_out.kl, again.kl[0], rtol=1e-4, atol=1e-6)
    assert (other.text, other.prompt_f1) == ("w3 w4 w5", 1.0)
    assert (same.text, same.prompt_f1) == ("w7 w8 w9", 1.0)
    # The start of the first run, in the cells of its text, diverges more than where it came to.
    start = np.asarray(c_proj(model.embedding_table(), np.asarray(runs[0].target_ids)))
    of_start = compare_outputs(model, imitated, [start], texts.halves()[0])
    assert other.tuned.kl.mean() < 0.8 * of_start.kl.mean()
    assert sum(told) == 40
    row = json.loads(json.dumps(other.to_json()))
    back = Imitation.from_json(row, other.run, other.prompt)
    for name in ("tuned", "held_out"):
        for one, two in zip(getattr(other, name), getattr(back, name), strict=True):
            np.testing.assert_array_equal(one, two, strict=True)
    assert (back.reading, back.text, back.prompt_f1) == ("nearest tokens", other.text, 1.0)


@pytest.mark.slow
def test_imitations_do_not_depend_on_the_runs_beside_them_nor_on_shards_of_runs_and_data(
    model, imitated, texts, runs, found
):
    """Each alone on two devices, with two of a step's four texts each."""
    there, mesh = on_mesh(model, runs=2, data=2)
    meshed = imitations(there, imitated, texts, runs, mesh)
    for one, two in zip(found, meshed, strict=True):
        np.testing.assert_allclose(one.prompt, two.prompt, atol=1e-5)


@pytest.mark.slow
def test_steps_that_do_not_fit_into_memory_are_refused_with_the_flag_that_helps(
    model, imitated, texts, runs, monkeypatch
):
    mesh, took = make_mesh(), []
    # The weights take 600 bytes, and the two runs 400 more.
    monkeypatch.setattr(imitation, "compile_together", lambda *_: [Memory(1000, 400)])

    def tune(device_bytes):
        on_steps = lambda steps, _: took.append(steps)  # noqa: E731
        settings = {"device_bytes": device_bytes, "on_steps": on_steps}
        imitations(model, imitated, texts, runs, mesh, **settings)

    with pytest.raises(InputError, match=r"a step takes .* are free: give population=1"):
        tune(950)
    with pytest.raises(InputError, match=r"mesh=.*: a step takes .* share the model"):
        tune(650)
    assert not took
    tune(1000)
    assert took
