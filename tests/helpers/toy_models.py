"""Random language models of two layers, here and in transformers, with a task and runs."""

import functools

import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from transformers import GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from wayward_jax import models
from wayward_jax.runs import Run
from wayward_jax.targets import Target
from wayward_jax.tasks import Encoded, Examples, Task, TaskData

WORDS = ["<eos>", "It", "was", "terrible", "great", ".", *(f"w{i}" for i in range(74))]
WIDTH = 32
CONFIGS = {
    "gpt2": GPT2Config(
        vocab_size=96,
        n_positions=64,
        n_embd=WIDTH,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        architectures=["GPT2LMHeadModel"],
    ),
    "llama": LlamaConfig(
        vocab_size=96,
        max_position_embeddings=64,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        architectures=["LlamaForCausalLM"],
    ),
}

# A model of these weights learns the toy task in a few steps, which not every random model does.
WEIGHTS_SEED = 6

# Shapes of published weights, and of the weights of each layer.
SHAPES = {
    "gpt2": {
        "transformer.wte.weight": (96, 32),
        "transformer.wpe.weight": (64, 32),
        "transformer.ln_f.weight": (32,),
        "transformer.ln_f.bias": (32,),
    },
    "llama": {
        "model.embed_tokens.weight": (96, 32),
        "model.norm.weight": (32,),
        "lm_head.weight": (96, 32),
    },
}
LAYER_SHAPES = {
    "gpt2": {
        "transformer.h.{}.ln_1.weight": (32,),
        "transformer.h.{}.ln_1.bias": (32,),
        "transformer.h.{}.attn.c_attn.weight": (32, 96),
        "transformer.h.{}.attn.c_attn.bias": (96,),
        "transformer.h.{}.attn.c_proj.weight": (32, 32),
        "transformer.h.{}.attn.c_proj.bias": (32,),
        "transformer.h.{}.ln_2.weight": (32,),
        "transformer.h.{}.ln_2.bias": (32,),
        "transformer.h.{}.mlp.c_fc.weight": (32, 128),
        "transformer.h.{}.mlp.c_fc.bias": (128,),
        "transformer.h.{}.mlp.c_proj.weight": (128, 32),
        "transformer.h.{}.mlp.c_proj.bias": (32,),
    },
    "llama": {
        "model.layers.{}.input_layernorm.weight": (32,),
        "model.layers.{}.self_attn.q_proj.weight": (32, 32),
        "model.layers.{}.self_attn.k_proj.weight": (16, 32),
        "model.layers.{}.self_attn.v_proj.weight": (16, 32),
        "model.layers.{}.self_attn.o_proj.weight": (32, 32),
        "model.layers.{}.post_attention_layernorm.weight": (32,),
        "model.layers.{}.mlp.gate_proj.weight": (48, 32),
        "model.layers.{}.mlp.up_proj.weight": (48, 32),
        "model.layers.{}.mlp.down_proj.weight": (32, 48),
    },
}


def make_weights(family):
    """Makes random weights by their published names. Biases and norms are random, too."""
    shapes = dict(SHAPES[family])
    for layer in range(2):
        shapes |= {name.format(layer): shape for name, shape in LAYER_SHAPES[family].items()}
    rng = np.random.default_rng(WEIGHTS_SEED)
    return {
        name: rng.normal(float(len(shape) == 1), 0.3, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def make_table():
    """Makes the embeddings `[80, D]` of the words of the `gpt2` model."""
    return make_weights("gpt2")["transformer.wte.weight"][: len(WORDS)]


def make(family, folder):
    """Publishes a model of 80 words and 96 embeddings in `folder / family`, and loads it here."""
    (folder / family).mkdir(parents=True)
    CONFIGS[family].save_pretrained(folder / family)
    weights = make_weights(family)
    file = folder / family / "model.safetensors"
    safetensors.numpy.save_file(weights, file, metadata={"format": "pt"})

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
