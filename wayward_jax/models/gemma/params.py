"""Gemma 2 and 3 (text) in the Hugging Face layout; they are computed as Llamas.

The embeddings of tokens are multiplied by the square root of their width before the first layer. A
prompt is multiplied as well, so prompts, `c_proj` and distances are in the space of the published
table, in which tokens are looked up and in which the tied output table works.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from wayward_jax.models.family import require
from wayward_jax.models.llama.modeling import LlamaConfig
from wayward_jax.models.llama.params import LLAMA_FAMILY, attention_biases, layer_kinds, read_config
from wayward_jax.models.rope import read_rope


def _gemma(entries: Mapping[str, Any], **switches: Any) -> LlamaConfig:
    require(entries, use_bidirectional_attention=False)
    entries = {
        "head_dim": 256,
        "sliding_window": 4096,
        "hidden_act": entries.get("hidden_activation") or "gelu_pytorch_tanh",
        **{name: value for name, value in entries.items() if name != "hidden_act"},
    }
    return read_config(
        entries,
        **attention_biases(entries),
        norms="both",
        zero_centered_norm=True,
        attention_multiplier=entries.get("query_pre_attn_scalar", 256) ** -0.5,
        embedding_multiplier=math.sqrt(entries["hidden_size"]),
        tie_word_embeddings=entries.get("tie_word_embeddings", True),
        **switches,
    )


def _gemma2(entries: Mapping[str, Any]) -> LlamaConfig:
    kinds = layer_kinds(entries, lambda i: i % 2 == 0)
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    return _gemma({**caps, **entries}, layer_kinds=kinds)


def _gemma3(entries: Mapping[str, Any]) -> LlamaConfig:
    pattern = entries.get("sliding_window_pattern", 6)
    kinds = layer_kinds(entries, lambda i: (i + 1) % pattern != 0)
    head_dim = entries.get("head_dim", 256)
    parameters = entries.get("rope_parameters") or {}
    of_global = entries.get("rope_scaling") or parameters.get("full_attention") or {}
    of_local = parameters.get("sliding_attention") or {}
    theta = entries.get("rope_theta", 1e6)
    local_theta = entries.get("rope_local_base_freq", 1e4)
    return _gemma(
        entries,
        layer_kinds=kinds,
        qk_norm="head",
        rope=read_rope(
            {**entries, "rope_scaling": of_global, "rope_parameters": None}, head_dim, theta
        ),
        local_rope=read_rope({"rope_parameters": of_local}, head_dim, local_theta),
    )


GEMMA2_FAMILY = dataclasses.replace(
    LLAMA_FAMILY,
    config=_gemma2,
    names={
        **LLAMA_FAMILY.names,
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
    lookup_scale=lambda config: config.embedding_multiplier,
)
GEMMA3_FAMILY = dataclasses.replace(
    GEMMA2_FAMILY,
    config=_gemma3,
    names={**GEMMA2_FAMILY.names, "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"},
)
