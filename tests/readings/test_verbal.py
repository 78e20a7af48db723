"""Verbal readings, in both forms, against transformers: greedy texts, losses, gradients, states."""

import dataclasses

import numpy as np
import pytest
from transformers import GPT2Config, LlamaConfig

from tests.helpers.gradients import with_gradient
from tests.helpers.published import assert_close
from wayward_jax import models
from wayward_jax.readings import Verbal
from wayward_jax.readings.hidden import prompt_states
from wayward_jax.readings.template_rows import make_rows
from wayward_jax.readings.verbal import QUESTION, default_templates
from wayward_jax.readings.verbal import TEMPLATES as TEMPLATES_OF_ALL

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
RUNS, LENGTH, TOKENS, DEPTH = 2, 4, 6, 3
CONFIGS = {
    "gpt2": GPT2Config(vocab_size=410, n_positions=64, n_embd=32, n_layer=DEPTH, n_head=4),
    "llama": LlamaConfig(
        vocab_size=410,
        max_position_embeddings=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
}
# Two of them have the same text before the prompt, and share a row.
TEMPLATES = ('It asks "{prompt}" for: "', 'It asks "{prompt}" and', "{prompt} means")
PATCHES = ((2, 1), (1, 0), (DEPTH, 2))
PROMPTS = RNG.normal(0, 0.5, (RUNS, LENGTH, 32)).astype(np.float32)
TARGETS = RNG.integers(0, 300, (RUNS, LENGTH))
MASK = np.array([[True] * 4, [True] * 3 + [False]])


@pytest.fixture(scope="module", params=CONFIGS)
def both(request, publish, tmp_path_factory):
    """A model here, with a BOS of two tokens before its prompts, and the same in transformers."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    folder, theirs = publish(CONFIGS[request.param])
    ours = models.load(str(folder), cache_dir=tmp_path_factory.mktemp("cache"), readable="all")
    return dataclasses.replace(ours, bos_ids=(9, 2)), theirs.eval().requires_grad_(False)


def embed(theirs, ids):
    torch = pytest.importorskip("torch")
    return theirs.get_input_embeddings()(torch.tensor([int(i) for i in ids], dtype=torch.long))


def around(ours, template):
    """The tokens before and after the prompt."""
    before, after = template.split("{prompt}")
    tokenizer = ours.tokenizer
    return [*ours.bos_ids, *tokenizer.encode(before)], tokenizer.encode_continuations([after])[0]


def asked(ours, theirs, prompt, template, ids=()):
    """The embeddings of a template around a prompt, and of further tokens."""
    torch = pytest.importorskip("torch")
    before, after = around(ours, template)
    return torch.cat([embed(theirs, before), prompt, embed(theirs, [*after, *ids])])


class Patched:
    """A hook that replaces what layer `into` of a model gets at some slots, as long as it is on."""

    def __init__(self, theirs, into, slots, states):
        layers = getattr(theirs.base_model, "h", None) or theirs.base_model.layers
        self.layer, self.slots, self.states = layers[into], slots, states

    def __enter__(self):
        def replace(module, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden = hidden.clone()
            hidden[0, self.slots] = self.states
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        self.handle = self.layer.register_forward_pre_hook(replace, with_kwargs=True)

    def __exit__(self, *_):
        self.handle.remove()


def states_of(theirs, ours, prompt):
    """The hidden states of a prompt's positions behind BOS, before and after each layer."""
    torch = pytest.importorskip("torch")
    layers = getattr(theirs.base_model, "h", None) or theirs.base_model.layers
    found = []
    handles = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: found.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        for layer in layers
    ]
    handles.append(layers[-1].register_forward_hook(lambda module, args, out: found.append(out)))
    theirs(inputs_embeds=torch.cat([embed(theirs, ours.bos_ids), prompt])[None])
    for handle in handles:
        handle.remove()
    found = [each[0] if isinstance(each, tuple) else each for each in found]
    return torch.stack([each[0, len(ours.bos_ids) :] for each in found])


def test_continuations_are_those_of_generate_token_by_token(both):
    torch = pytest.importorskip("torch")
    ours, theirs = both
    said = Verbal(TEMPLATES).say(ours, PROMPTS, MASK, TOKENS)
    assert said.ids.shape == (RUNS, len(TEMPLATES), TOKENS)
    for r in range(RUNS):
        prompt = torch.tensor(PROMPTS[r][MASK[r]])
        for template, ids in zip(said.ways, said.ids[r], strict=True):
            expected = theirs.generate(
                inputs_embeds=asked(ours, theirs, prompt, template)[None],
                max_new_tokens=TOKENS,
                do_sample=False,
                eos_token_id=None,
                suppress_tokens=list(range(ours.tokenizer.vocab_size, 410)),
            )
            np.testing.assert_array_equal(ids, expected[0].numpy())


def test_the_loss_and_its_gradient_are_those_of_pytorch(both):
    torch = pytest.importorskip("torch")
    ours, theirs = both
    verbal = Verbal(TEMPLATES)
    losses, gradient = with_gradient(lambda p: verbal.loss(ours, p, TARGETS, MASK))(PROMPTS)
    for r in range(RUNS):
        leaf = torch.tensor(PROMPTS[r], requires_grad=True)
        target = TARGETS[r][MASK[r]]
        nll = []
        for template in TEMPLATES:
            inputs = asked(ours, theirs, leaf[MASK[r]], template, target)
            logits = theirs(inputs_embeds=inputs[None]).logits[0, -len(target) - 1 : -1]
            nll.append(torch.nn.functional.cross_entropy(logits, torch.tensor(target)))
        expected = torch.stack(nll).mean()
        expected.backward()
        assert losses[r] == pytest.approx(expected.item(), rel=1e-4)
        assert_close(gradient[r], leaf.grad.numpy())


def test_hidden_states_of_prompts_are_those_of_transformers(both):
    torch = pytest.importorskip("torch")
    ours, theirs = both
    states = prompt_states(ours.module, ours.params, PROMPTS, ours.bos_ids, DEPTH)
    for r in range(RUNS):
        assert_close(states[:, r], states_of(theirs, ours, torch.tensor(PROMPTS[r])).numpy())


def test_patched_readings_are_those_of_transformers_with_hooks(both):
    """Texts token by token, the loss, and its gradient through the patched states."""
    torch = pytest.importorskip("torch")
    ours, theirs = both
    verbal = Verbal(TEMPLATES[:2], PATCHES)
    said = verbal.say(ours, PROMPTS, tokens=TOKENS)
    losses, gradient = with_gradient(lambda p: verbal.loss(ours, p, TARGETS))(PROMPTS)
    placeholder = ours.tokenizer.encode_continuations([" x"])[0][-1]
    for r in range(RUNS):
        leaf = torch.tensor(PROMPTS[r], requires_grad=True)
        states = states_of(theirs, ours, leaf)
        nll = []
        for number, (source, into) in enumerate(PATCHES):
            for m, template in enumerate(TEMPLATES[:2]):
                before, after = around(ours, template)
                slots = list(range(len(before), len(before) + LENGTH))
                ids = [*before, *[placeholder] * LENGTH, *after]
                with Patched(theirs, into, slots, states[source]):
                    for token in said.ids[r, 2 * number + m]:
                        logits = theirs(torch.tensor([ids])).logits[0, -1]
                        assert int(token) == logits[: ours.tokenizer.vocab_size].argmax().item()
                        ids.append(int(token))
                    ids = [*ids[:-TOKENS], *TARGETS[r].tolist()]
                    logits = theirs(torch.tensor([ids])).logits[0, -LENGTH - 1 : -1]
                nll.append(torch.nn.functional.cross_entropy(logits, torch.tensor(TARGETS[r])))
        expected = torch.stack(nll).mean()
        expected.backward()
        assert losses[r] == pytest.approx(expected.item(), rel=1e-4)
        assert_close(gradient[r], leaf.grad.numpy())


def test_a_reading_is_the_answer_that_the_model_is_surest_of(both):
    torch = pytest.importorskip("torch")
    ours, theirs = both
    verbal = Verbal(TEMPLATES)
    read = np.asarray(verbal.read(ours, PROMPTS, MASK))
    said = verbal.say(ours, PROMPTS, MASK, LENGTH)
    for r in range(RUNS):
        prompt, count = torch.tensor(PROMPTS[r][MASK[r]]), int(MASK[r].sum())
        likelihoods = []
        for template, ids in zip(said.ways, said.ids[r], strict=True):
            own = ids[:count].tolist()
            logits = theirs(inputs_embeds=asked(ours, theirs, prompt, template, own)[None]).logits
            predicted = logits[0, -count - 1 : -1].log_softmax(-1)
            likelihoods.append(predicted[range(count), own].mean().item())
        np.testing.assert_array_equal(read[r], said.ids[r, int(np.argmax(likelihoods))])


def test_a_model_with_a_chat_template_is_also_asked_in_a_chat_and_one_bos_begins_it(both):
    ours, _ = both
    assert default_templates(ours) == TEMPLATES_OF_ALL

    def with_chat(template):
        tokenizer = dataclasses.replace(ours.tokenizer, chat_template=template, bos_id=0)
        return dataclasses.replace(ours, tokenizer=tokenizer, bos_ids=(0,))

    *usual, chat = default_templates(with_chat("{{ bos_token }}User: {{ messages[0].content }} -"))
    assert tuple(usual) == TEMPLATES_OF_ALL
    assert chat == f"<|endoftext|>User: {QUESTION} -"
    (row,) = make_rows(with_chat(chat), [chat], LENGTH, TOKENS)
    assert row.before[0] == 0
    assert 0 not in row.before[1:]
    for broken in ("{{ messages[5].content.x }}", "{% if", "{{ 1 / 0 }}", "no place"):
        assert default_templates(with_chat(broken)) == TEMPLATES_OF_ALL
