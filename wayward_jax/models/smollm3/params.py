"""SmolLM3 in the Hugging Face layout: a Llama some of whose layers have no rotary embedding."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from wayward_jax.models.family import require
from wayward_jax.models.llama.modeling import LlamaConfig
from wayward_jax.models.llama.params import LLAMA_FAMILY, attention_biases, read_config
from wayward_jax.models.rope import read_rope


def _smollm3(entries: Mapping[str, Any]) -> LlamaConfig:
    require(entries, use_sliding_window=False)
    count = entries["num_hidden_layers"]
    interval = entries.get("no_rope_layer_interval", 4)
    # The entry has a 1 for each layer that does have a rotary embedding.
    rotated = entries.get("no_rope_layers") or [(i + 1) % interval for i in range(count)]
    rope = read_rope(entries, entries["hidden_size"] // entries["num_attention_heads"], 2e6)
    return read_config(
        entries,
        rope=rope,
        **attention_biases(entries),
        layer_kinds=tuple("global" if each else "unrotated" for each in rotated[:count]),
        tie_word_embeddings=entries.get("tie_word_embeddings", True),
    )


SMOLLM3_FAMILY = dataclasses.replace(LLAMA_FAMILY, config=_smollm3)
