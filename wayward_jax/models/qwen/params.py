"""Qwen2, Qwen2.5 and Qwen3 in the Hugging Face layout; they are computed as Llamas."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from wayward_jax.models.llama.modeling import LlamaConfig
from wayward_jax.models.llama.params import LLAMA_FAMILY, attention_biases, layer_kinds, read_config


def _qwen(entries: Mapping[str, Any], **switches: Any) -> LlamaConfig:
    if not entries.get("use_sliding_window", False):
        return read_config(entries, **switches)
    first = entries.get("max_window_layers", 28)
    kinds = layer_kinds(entries, lambda i: i >= first)
    return read_config({"sliding_window": 4096, **entries}, layer_kinds=kinds, **switches)


def _qwen2(entries: Mapping[str, Any]) -> LlamaConfig:
    return _qwen(entries, qkv_bias=True)


def _qwen3(entries: Mapping[str, Any]) -> LlamaConfig:
    entries = {"head_dim": 128, **entries}
    return _qwen(entries, **attention_biases(entries), qk_norm="head")


QWEN2_FAMILY = dataclasses.replace(LLAMA_FAMILY, config=_qwen2)
QWEN3_FAMILY = dataclasses.replace(
    LLAMA_FAMILY,
    config=_qwen3,
    names={**LLAMA_FAMILY.names, "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"},
)
