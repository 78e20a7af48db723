"""Llama and Mistral in the Hugging Face layout: names, configuration, roles of linear layers.

Mistral is supported without its sliding window, where it is the same mathematics as Llama.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from wayward_jax.models.family import Family, require, same_named
from wayward_jax.models.llama.modeling import Llama, LlamaConfig, RopeScaling

# The entries that each kind of rotary scaling needs.
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


def _rope(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the fields of `LlamaConfig` about rotary embeddings.

    transformers 5 writes them as `rope_parameters`; earlier versions wrote `rope_theta` and
    `rope_scaling`.
    """
    rope = entries.get("rope_parameters") or entries.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"the rope scaling is {rope!r}, which is of the wrong kind")
    theta = rope.get("rope_theta") or entries.get("rope_theta") or LlamaConfig.rope_theta
    for each in (entries, rope):
        require(each, partial_rotary_factor=1.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ROPE_SCALING:
        raise ValueError(f"rope_type is {kind!r}, only {', '.join(ROPE_SCALING)} are supported")
    if missing := [name for name in ROPE_SCALING[kind] if name not in rope]:
        raise ValueError(f"the {kind} rope scaling lacks {missing[0]}")
    numbers = {name: rope[name] for name in ROPE_SCALING[kind]}
    scaling = None if kind == "default" else RopeScaling(kind, **numbers)
    return {"rope_theta": theta, "rope_scaling": scaling}


def _config(entries: Mapping[str, Any]) -> LlamaConfig:
    require(entries, hidden_act="silu", sliding_window=None)
    fields = same_named(LlamaConfig, entries)
    heads = fields.get("num_attention_heads", LlamaConfig.num_attention_heads)
    width = fields.get("hidden_size", LlamaConfig.hidden_size)
    defaults = {"num_key_value_heads": heads, "head_dim": width // heads}
    return LlamaConfig(**{**defaults, **fields, **_rope(entries)})


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
    split_outputs=frozenset({"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}),
    split_inputs=frozenset({"o_proj", "down_proj"}),
    attention_inputs=frozenset({"q_proj", "k_proj", "v_proj"}),
)

# A Mistral configuration without a `sliding_window` entry means 4096; newer ones write null.
MISTRAL_FAMILY = dataclasses.replace(
    LLAMA_FAMILY, config=lambda entries: _config({"sliding_window": 4096, **entries})
)
