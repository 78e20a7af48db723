"""Granite 3 in the Hugging Face layout: a Llama with four multipliers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from wayward_jax.models.llama.modeling import LlamaConfig
from wayward_jax.models.llama.params import LLAMA_FAMILY, read_config


def _granite(entries: Mapping[str, Any]) -> LlamaConfig:
    bias = entries.get("attention_bias", False)
    return read_config({"attention_multiplier": 1.0, **entries}, qkv_bias=bias, output_bias=bias)


GRANITE_FAMILY = dataclasses.replace(LLAMA_FAMILY, config=_granite)
