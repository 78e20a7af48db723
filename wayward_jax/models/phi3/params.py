"""Phi-3 and Phi-4 in the Hugging Face layout; they are computed as Llamas.

Queries, keys and values are published as one linear layer, and so are the two layers of the MLP
that are multiplied.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from wayward_jax.models.family import equal_part
from wayward_jax.models.llama.modeling import LlamaConfig
from wayward_jax.models.llama.params import LLAMA_FAMILY, read_config
from wayward_jax.models.rope import read_rope


def _phi3(entries: Mapping[str, Any]) -> LlamaConfig:
    head_dim = entries["hidden_size"] // entries["num_attention_heads"]
    rope = read_rope(entries, head_dim, partial=1.0)
    window = entries.get("sliding_window")
    kinds = ("global" if window is None else "local",) * entries["num_hidden_layers"]
    # Beyond the original context, other frequencies hold for the whole text.
    longest = entries["max_position_embeddings"]
    if rope.rope_type == "longrope":
        longest = min(longest, rope.original_max_position_embeddings)
    return read_config(entries, rope=rope, layer_kinds=kinds, max_position_embeddings=longest)


def _queries(config: LlamaConfig, array: np.ndarray) -> np.ndarray:
    return array[..., : config.attention_width]


def _keys(config: LlamaConfig, array: np.ndarray) -> np.ndarray:
    return np.split(array[..., config.attention_width :], 2, axis=-1)[0]


def _values(config: LlamaConfig, array: np.ndarray) -> np.ndarray:
    return np.split(array[..., config.attention_width :], 2, axis=-1)[1]


PHI3_FAMILY = dataclasses.replace(
    LLAMA_FAMILY,
    config=_phi3,
    names={
        **LLAMA_FAMILY.names,
        **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "self_attn.qkv_proj"),
        **dict.fromkeys(("gate_proj", "up_proj"), "mlp.gate_up_proj"),
    },
    fused={
        "q_proj": _queries,
        "k_proj": _keys,
        "v_proj": _values,
        "gate_proj": equal_part(0, 2),
        "up_proj": equal_part(1, 2),
    },
)
