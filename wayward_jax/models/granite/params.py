"""Granite 3 in the Hugging Face layout: a Llama with four multipliers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from wayward_jax.models.llama.modeling import LlamaConfig
from wayward_jax.models.llama.params import LLAMA_FAMILY, attention_biases, read_config


def _granite(entries: Mapping[str, Any]) -> LlamaConfig:
    return read_config({"attention_multiplier": 1.0, **entries}, **attention_biases(entries))


GRANITE_FAMILY = dataclasses.replace(LLAMA_FAMILY, config=_granite)
