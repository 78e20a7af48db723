"""Random language models of two layers, here and in transformers, with a task and runs."""

import functools
import json

import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from wayward_jax import models
from wayward_jax.runs import Run
from wayward_jax.targets import Target
from wayward_jax.tasks import Encoded, Examples, Task, TaskData

WORDS = ["<eos>", "It", "was", "terrible", "great", ".", *(f"w{i}" for i in range(74))]
WIDTH = 32
FAMILIES = ("gpt2", "llama")

# A model of these weights learns the toy task in a few steps, which not every random model does.
WEIGHTS_SEED = 6


def config_of(family):
    """The configuration of a model of 96 embeddings, in transformers' form."""
    # It takes seconds to import, which the process that hands out the tests need not wait for.
    from transformers import GPT2Config, LlamaConfig

    if family == "gpt2":
        return GPT2Config(
            vocab_size=96,
            n_positions=64,
            n_embd=WIDTH,
            n_layer=2,
            n_head=4,
            bos_token_id=0,
            eos_token_id=0,
            architectures=["GPT2LMHeadModel"],
        )
    return LlamaConfig(
        vocab_size=96,
        max_position_embeddings=64,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        architectures=["LlamaForCausalLM"],
    )


def weight_shapes(config):
    """The shapes of the published weights of a GPT-2 or a Llama, by name."""
    of_model, of_layer, depth = {"gpt2": _gpt2, "llama": _llama}[config.model_type](config)
    for layer in range(depth):
        of_model |= {name.format(layer): shape for name, shape in of_layer.items()}
    return of_model


def _gpt2(config):
    width, inner = config.n_embd, config.n_inner or 4 * config.n_embd
    of_model = {
        "transformer.wte.weight": (config.vocab_size, width),
        "transformer.wpe.weight": (config.n_positions, width),
        "transformer.ln_f.weight": (width,),
        "transformer.ln_f.bias": (width,),
    }
    of_layer = {
        "transformer.h.{}.ln_1.weight": (width,),
        "transformer.h.{}.ln_1.bias": (width,),
        "transformer.h.{}.attn.c_attn.weight": (width, 3 * width),
        "transformer.h.{}.attn.c_attn.bias": (3 * width,),
        "transformer.h.{}.attn.c_proj.weight": (width, width),
        "transformer.h.{}.attn.c_proj.bias": (width,),
        "transformer.h.{}.ln_2.weight": (width,),
        "transformer.h.{}.ln_2.bias": (width,),
        "transformer.h.{}.mlp.c_fc.weight": (width, inner),
        "transformer.h.{}.mlp.c_fc.bias": (inner,),
        "transformer.h.{}.mlp.c_proj.weight": (inner, width),
        "transformer.h.{}.mlp.c_proj.bias": (width,),
    }
    return of_model, of_layer, config.n_layer


def _llama(config):
    width, inner = config.hidden_size, config.intermediate_size
    of_keys = width * config.num_key_value_heads // config.num_attention_heads
    of_model = {
        "model.embed_tokens.weight": (config.vocab_size, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (config.vocab_size, width),
    }
    of_layer = {
        "model.layers.{}.input_layernorm.weight": (width,),
        "model.layers.{}.self_attn.q_proj.weight": (width, width),
        "model.layers.{}.self_attn.k_proj.weight": (of_keys, width),
        "model.layers.{}.self_attn.v_proj.weight": (of_keys, width),
        "model.layers.{}.self_attn.o_proj.weight": (width, width),
        "model.layers.{}.post_attention_layernorm.weight": (width,),
        "model.layers.{}.mlp.gate_proj.weight": (inner, width),
        "model.layers.{}.mlp.up_proj.weight": (inner, width),
        "model.layers.{}.mlp.down_proj.weight": (width, inner),
    }
    return of_model, of_layer, config.num_hidden_layers


def random_weights(config):
    """Makes random weights by their published names. Biases and norms are random, too."""
    rng = np.random.default_rng(WEIGHTS_SEED)
    return {
        name: rng.normal(float(len(shape) == 1), 0.3, shape).astype(np.float32)
        for name, shape in weight_shapes(config).items()
    }


def publish(config, folder):
    """Writes a random GPT-2 or Llama as transformers does, but without a tokenizer."""
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    file = folder / "model.safetensors"
    safetensors.numpy.save_file(random_weights(config), file, metadata={"format": "pt"})


def split_weights(folder):
    """Splits the weights of a published model into three files with an index; gives the files."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files, weight_map = [], {}
    for i in range(3):
        own = {name: tensors[name] for name in sorted(tensors)[i::3]}
        files.append(folder / f"model-{i + 1:05}-of-00003.safetensors")
        safetensors.numpy.save_file(own, files[-1], metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, files[-1].name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return files


def make_table():
    """Makes the embeddings `[80, D]` of the words of the `gpt2` model."""
    return random_weights(config_of("gpt2"))["transformer.wte.weight"][: len(WORDS)]


def make(family, folder):
    """Publishes a model of 80 words and 96 embeddings in `folder / family`, and loads it here."""
    from transformers import PreTrainedTokenizerFast

    publish(config_of(family), folder / family)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<eos>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    tokenizer.save_pretrained(folder / family)
    # All words count as readable, so that tests can search among all of them.
    return models.load(str(folder / family), cache_dir=folder, readable="all")


def load_published(family, folder):
    """Loads the model that `make` published in transformers; skips the test without PyTorch."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # threads hinder one another in models this small
    theirs = AutoModelForCausalLM.from_pretrained(folder / family)
    return theirs.eval().requires_grad_(False)


def published_nll(theirs, prompt, context, continuation):
    """Computes the mean NLL of a continuation by one pass of transformers over one sequence.

    `prompt` is a torch tensor `[L, D]`, which may require a gradient.
    """
    torch = pytest.importorskip("torch")
    ids = torch.tensor([*context, *continuation])
    embeddings = torch.cat([prompt, theirs.get_input_embeddings()(ids)])
    logits = theirs(inputs_embeds=embeddings[None]).logits[0]
    predicting = logits[-len(continuation) - 1 : -1]
    return torch.nn.functional.cross_entropy(predicting, torch.tensor(continuation))


def examples(count, n_labels, seed, method="direct"):
    """Makes random encoded examples of different lengths.

    The labels of an example share their context if the method is `direct`, and their continuation
    if it is `channel`.
    """
    rng = np.random.default_rng(seed)

    def tokens(low, high):
        return tuple(rng.integers(1, len(WORDS), rng.integers(low, high)).tolist())

    def example():
        if method == "direct":
            contexts = (tokens(1, 12),) * n_labels
            return Encoded(contexts, tuple((*tokens(1, 4), 0) for _ in contexts))
        continuations = ((*tokens(1, 12), 0),) * n_labels
        return Encoded(tuple(tokens(1, 5) for _ in continuations), continuations)

    return [example() for _ in range(count)]


TASK = Task("toy", ("bad", "good"), ("%s",), ("terrible", "great"))
TARGET = "w3 w1 w4 w1"


def toy_data():
    """Makes 40, 30 and 50 examples: up to three noise words, then the word of the label."""

    def split(count, seed):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, count).astype(np.int32)
        noise = [rng.integers(10, 20, rng.integers(0, 4)) for _ in range(count)]
        texts = [
            " ".join(f"w{i}" for i in [*words, label])
            for words, label in zip(noise, labels, strict=True)
        ]
        return Examples(tuple(texts), labels)

    return TaskData(TASK, split(40, 0), split(30, 1), split(50, 2))


def toy_runs(model, **settings):
    """Makes five runs for `toy_data`, which differ in length, gamma, seed, start, learning rate."""
    target = Target("words", TARGET, tuple(model.tokenizer.encode(TARGET)))
    settings = {"model": "tiny", "task": "toy", "template": 0, **settings}
    towards = functools.partial(Run.towards, target, **settings)
    return [
        towards(gamma=1.0, learning_rate=0.1),
        towards(gamma=3.0, learning_rate=0.1, init="target", seed=3),
        towards(gamma=0.0, learning_rate=0.1, init="random"),
        Run(**settings, prompt_length=6, learning_rate=0.1),
        Run(**settings, prompt_length=6, learning_rate=0.08, seed=2),
    ]
