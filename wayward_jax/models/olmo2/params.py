"""OLMo 2 in the Hugging Face layout: a Llama with norms after attention and MLP, not before."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from wayward_jax.models.llama.modeling import LlamaConfig
from wayward_jax.models.llama.params import LLAMA_FAMILY, attention_biases, read_config


def _olmo2(entries: Mapping[str, Any]) -> LlamaConfig:
    return read_config(entries, **attention_biases(entries), norms="after", qk_norm="width")


OLMO2_FAMILY = dataclasses.replace(
    LLAMA_FAMILY,
    config=_olmo2,
    names={
        **LLAMA_FAMILY.names,
        "attention_post_norm": "post_attention_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
    },
)
