"""The training program of small models without weights, compiled for any devices."""

import collections
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from experiments.forecast.programs import abstract_params
from wayward_jax.models import LanguageModel
from wayward_jax.models.families import FAMILIES
from wayward_jax.runs import Run
from wayward_jax.shapes import PackedShape
from wayward_jax.training.population import PopulationPlan

# The width of the stream is that of all heads, as in most models: arrays of equal shapes may be
# divided alike, and must not be.
LLAMA = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}
CONFIGS = {
    "gpt2": {"n_embd": 256, "n_head": 4, "vocab_size": 512, "n_positions": 256},
    "llama": LLAMA,
    "gemma3_text": {
        **LLAMA,
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "sliding_window": 64,
        "rope_local_base_freq": 1e4,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
    "gpt_neox": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 256,
        "vocab_size": 512,
        "hidden_act": "gelu",
        "tie_word_embeddings": False,
    },
}
DEPTH_ENTRIES = collections.defaultdict(lambda: "num_hidden_layers", gpt2="n_layer")


def make_model(
    name: str, entries: Mapping[str, Any], mesh: Mesh, dtype: str = "float32"
) -> LanguageModel:
    """A model of a family with the shapes of its weights in place of them."""
    family = FAMILIES[name]
    module = family.module_of(entries)
    ids = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), ids, method="text_logits"))
    params = abstract_params(shapes, family, jnp.dtype(dtype), mesh)
    vocabulary = collections.namedtuple("Vocabulary", "vocab_size")(entries["vocab_size"])
    return LanguageModel(name, family, module, params, vocabulary)


def make_plan(mesh: Mesh, slots: int = 128) -> PopulationPlan:
    """Eight runs that take two steps in a call."""
    return PopulationPlan(
        runs=tuple(Run("tiny", "task", 5, seed=seed, steps=2) for seed in range(8)),
        prompt_length=5,
        run_shards=mesh.shape["runs"],
        data_shards=mesh.shape["data"],
        packs_per_shard=1,
        runs_per_shard=8 // mesh.shape["runs"],
        eval_steps=(2,),
        steps_per_call=2,
        shapes=(PackedShape(rows=8, slots=slots, copies=4, queries=32, predictions=32),),
    )
