"""Llama, and Mistral without its sliding window, in the Hugging Face layout."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from wayward_jax.models.family import Family, require, same_named
from wayward_jax.models.llama.modeling import Llama, LlamaConfig, RopeScaling

# What each kind of scaling is given by.
ROPE_SCALING = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


def _rope(published: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `LlamaConfig` about rotary embeddings.

    transformers 5 writes `rope_parameters`; before, there were `rope_theta` and `rope_scaling`.
    """
    rope = published.get("rope_parameters") or published.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"the rope scaling is {rope!r}, which is of the wrong kind")
    theta = rope.get("rope_theta") or published.get("rope_theta") or LlamaConfig.rope_theta
    for entries in (published, rope):
        require(entries, partial_rotary_factor=1.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ROPE_SCALING:
        raise ValueError(f"rope_type is {kind!r}, only {', '.join(ROPE_SCALING)} are supported")
    if missing := [name for name in ROPE_SCALING[kind] if name not in rope]:
        raise ValueError(f"the {kind} rope scaling lacks {missing[0]}")
    numbers = {name: rope[name] for name in ROPE_SCALING[kind]}
    scaling = None if kind == "default" else RopeScaling(kind, **numbers)
    return {"rope_theta": theta, "rope_scaling": scaling}


def _config(published: Mapping[str, Any]) -> LlamaConfig:
    require(published, hidden_act="silu", sliding_window=None)
    fields = same_named(LlamaConfig, published)
    heads = fields.get("num_attention_heads", LlamaConfig.num_attention_heads)
    width = fields.get("hidden_size", LlamaConfig.hidden_size)
    left_out = {"num_key_value_heads": heads, "head_dim": width // heads}
    return LlamaConfig(**{**left_out, **fields, **_rope(published)})


LLAMA_FAMILY = Family(
    module=Llama,
    config=_config,
    names={
        "embed": "embed_tokens",
        "layers": "layers",
        "input_layernorm": "input_layernorm",
        "q_proj": "self_attn.q_proj",
        "k_proj": "self_attn.k_proj",
        "v_proj": "self_attn.v_proj",
        "o_proj": "self_attn.o_proj",
        "post_attention_layernorm": "post_attention_layernorm",
        "gate_proj": "mlp.gate_proj",
        "up_proj": "mlp.up_proj",
        "down_proj": "mlp.down_proj",
        "norm": "norm",
        "head": "lm_head",
    },
    prefix="model.",
    constants=re.compile(r"\.rotary_emb\.inv_freq$"),
    linear_out_in=True,
)

# A Mistral configuration that says nothing about its window means 4096; later versions say null.
MISTRAL_FAMILY = dataclasses.replace(
    LLAMA_FAMILY, config=lambda published: _config({"sliding_window": 4096, **published})
)
