"""A family with layer names of its own is one `Family` and one entry in the registry."""

import dataclasses
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from wayward_jax import models
from wayward_jax.models.attention import attend
from wayward_jax.models.causal_lm import CausalLM
from wayward_jax.models.families import FAMILIES
from wayward_jax.models.family import Family, same_named
from wayward_jax.sharding import make_mesh
from wayward_jax.training.flops import StepCost, needed_flops

VOCABULARY, WIDTH, HEADS, HEAD_WIDTH, INNER, LAYERS = 402, 16, 2, 4, 24, 2


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    vocab: int
    width: int
    heads: int
    head_width: int
    inner: int
    depth: int
    max_positions: int = 64

    @property
    def attention_width(self):
        return self.heads * self.head_width


class ToyBlock(nn.Module):
    """Attention with a fused projection to Q, K and V, then an MLP; no norms and no biases."""

    config: ToyConfig

    def setup(self):
        c = self.config
        self.mix_in = nn.Dense(3 * c.attention_width, use_bias=False)
        self.mix_out = nn.Dense(c.width, use_bias=False)
        self.widen = nn.Dense(c.inner, use_bias=False)
        self.narrow = nn.Dense(c.width, use_bias=False)

    def __call__(self, x, bias, output_slots):
        mixed = attend(*jnp.split(self.mix_in(x), 3, axis=1), bias, self.config.head_width)
        if output_slots is not None:
            x, mixed = x[output_slots], mixed[output_slots]
        x = x + self.mix_out(mixed)
        return x + self.narrow(nn.relu(self.widen(x)))


class Toy(CausalLM):
    config: ToyConfig

    def setup(self):
        c = self.config
        self.embed = self.head = nn.Embed(c.vocab, c.width)
        self.layers = [ToyBlock(c) for _ in range(c.depth)]

    def embed_inputs(self, x, positions):
        return (x,)

    def final_norm(self, x):
        return x


TOY_FAMILY = Family(
    module=Toy,
    config=lambda entries: ToyConfig(**same_named(ToyConfig, entries)),
    names={
        "embed": "words",
        "head": "unwords",
        "layers": "stack",
        "mix_in": "mixer.first",
        "mix_out": "mixer.second",
        "widen": "widen",
        "narrow": "narrow",
    },
    prefix="toy.",
    constants=re.compile(r"^$"),
    linear_out_in=False,
    split_outputs=frozenset({"mix_in", "widen"}),
    split_inputs=frozenset({"mix_out", "narrow"}),
    attention_inputs=frozenset({"mix_in"}),
)

SHAPES = {
    "mixer.first": (WIDTH, 3 * HEADS * HEAD_WIDTH),
    "mixer.second": (HEADS * HEAD_WIDTH, WIDTH),
    "widen": (WIDTH, INNER),
    "narrow": (INNER, WIDTH),
}


@pytest.fixture
def tensors():
    """Published weights of a toy model."""
    rng = np.random.default_rng(0)
    shapes = {
        f"toy.stack.{i}.{name}.weight": shape
        for i in range(LAYERS)
        for name, shape in SHAPES.items()
    }
    shapes["toy.words.weight"] = (VOCABULARY, WIDTH)
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def load(tensors, tokenizer, tmp_path, monkeypatch):
    """Registers the family with one entry, and loads the published toy model on a mesh."""
    monkeypatch.setitem(FAMILIES, "toy", TOY_FAMILY)
    folder = tmp_path / "published"
    tokenizer.save_pretrained(folder)
    sizes = {"vocab": VOCABULARY, "width": WIDTH, "heads": HEADS, "head_width": HEAD_WIDTH}
    config = {"model_type": "toy", **sizes, "inner": INNER, "depth": LAYERS}
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return lambda mesh=None: models.load(str(folder), cache_dir=tmp_path / "cache", mesh=mesh)


def expected_logits(tensors, ids):
    """The logits `[T, V]` of one text, written out in NumPy."""
    words = tensors["toy.words.weight"]
    x = words[ids]
    for i in range(LAYERS):
        first, second, widen, narrow = (tensors[f"toy.stack.{i}.{n}.weight"] for n in SHAPES)
        q, k, v = (
            part.reshape(len(ids), HEADS, HEAD_WIDTH) for part in np.split(x @ first, 3, axis=1)
        )
        scores = np.einsum("qhd,khd->hqk", q, k) / HEAD_WIDTH**0.5
        scores = np.where(np.tril(np.ones((len(ids), len(ids)), bool)), scores, -np.inf)
        weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", weights, v).reshape(len(ids), -1) @ second
        x = x + np.maximum(x @ widen, 0) @ narrow
    return x @ words.T


def test_a_registered_family_is_loaded_and_computed(load, tensors):
    model = load()
    assert model.family is TOY_FAMILY
    ids = np.random.default_rng(1).integers(0, VOCABULARY, 12)
    logits = model.module.apply(model.params, jnp.asarray(ids[None]), method="text_logits")[0]
    np.testing.assert_allclose(logits, expected_logits(tensors, ids), atol=1e-4)


@pytest.mark.skipif(jax.device_count() < 2, reason="there are fewer than 2 devices")
def test_the_familys_layers_are_split_over_the_model_axis(load):
    layers = load(make_mesh(model=2)).params["params"]
    halves = {
        "mix_in": (WIDTH, 3 * HEADS * HEAD_WIDTH // 2),
        "widen": (WIDTH, INNER // 2),
        "mix_out": (HEADS * HEAD_WIDTH // 2, WIDTH),
        "narrow": (INNER // 2, WIDTH),
    }
    for name, shape in halves.items():
        for i in range(LAYERS):
            shards = layers[f"layers_{i}"][name]["kernel"].addressable_shards
            assert [shard.data.shape for shard in shards] == [shape] * 2
    table = layers["embed"]["embedding"].addressable_shards
    assert [shard.data.shape for shard in table] == [(VOCABULARY // 2, WIDTH)] * 2


def test_a_model_axis_gives_the_logits_of_one_device(load):
    ids = jnp.arange(12)[None]
    one, two = (
        model.module.apply(model.params, ids, method="text_logits")
        for model in (load(), load(make_mesh(model=2)))
    )
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_the_familys_flops_are_counted(load):
    """Expected by hand: in the last layer, a token without a prediction needs only Q, K and V."""
    model = load()
    first = WIDTH * 3 * HEADS * HEAD_WIDTH
    rest = HEADS * HEAD_WIDTH * WIDTH + 2 * WIDTH * INNER
    assert needed_flops(model, StepCost(tokens=1)) == 4 * (LAYERS * first + (LAYERS - 1) * rest)
    assert needed_flops(model, StepCost(predictions=1)) == 4 * (rest + VOCABULARY * WIDTH)
    # A query times a key, and a weight times a value, forward and twice backward. The heads are
    # narrower than the stream.
    per_layer = 3 * (2 * HEADS * HEAD_WIDTH + 2 * HEADS * HEAD_WIDTH)
    assert needed_flops(model, StepCost(pairs=1)) == LAYERS * per_layer
