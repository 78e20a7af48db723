"""Llama and Mistral in the Hugging Face layout: names, configuration, roles of linear layers."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from wayward_jax.models.activations import check_activation
from wayward_jax.models.family import Family, same_named
from wayward_jax.models.llama.modeling import Llama, LlamaConfig
from wayward_jax.models.rope import read_rope

LAYER_KINDS = {"full_attention": "global", "sliding_attention": "local"}


def read_config(entries: Mapping[str, Any], **switches: Any) -> LlamaConfig:
    """Makes our configuration from the entries of a `config.json`.

    Args:
        entries: of the `config.json`.
        **switches: fields of `LlamaConfig` that are not in the entries, or have another name there.

    Raises:
        ValueError: an entry is missing, or is not supported.
    """
    heads, width = entries["num_attention_heads"], entries["hidden_size"]
    check_activation(entries, "hidden_act")
    sizes = {"num_key_value_heads": heads, "head_dim": width // heads}
    fields = {**sizes, **same_named(LlamaConfig, entries), **switches}
    if "rope" not in fields:
        fields["rope"] = read_rope(entries, fields["head_dim"])
    return LlamaConfig(**fields)


def layer_kinds(entries: Mapping[str, Any], is_local: Callable[[int], bool]) -> tuple[str, ...]:
    """Reads which layers have a window, as `LlamaConfig.layer_kinds`.

    Args:
        entries: of the `config.json`.
        is_local: tells whether a layer has one where there is no entry `layer_types`.

    Raises:
        ValueError: a kind is not supported, or there is another number of kinds than of layers.
    """
    count = entries["num_hidden_layers"]
    if (types := entries.get("layer_types")) is None:
        return tuple("local" if is_local(i) else "global" for i in range(count))
    if unknown := [kind for kind in types if kind not in LAYER_KINDS]:
        raise ValueError(
            f"layer_types has {unknown[0]!r}, only {', '.join(LAYER_KINDS)} are supported"
        )
    if len(types) != count:
        raise ValueError(f"layer_types has {len(types)} entries, and there are {count} layers")
    return tuple(LAYER_KINDS[kind] for kind in types)


def attention_biases(entries: Mapping[str, Any]) -> dict[str, bool]:
    """Reads the switches of `LlamaConfig` that most families have as one, `attention_bias`."""
    bias = entries.get("attention_bias", False)
    return {"qkv_bias": bias, "output_bias": bias}


def _llama(entries: Mapping[str, Any]) -> LlamaConfig:
    return read_config(entries, **attention_biases(entries))


def _mistral(entries: Mapping[str, Any]) -> LlamaConfig:
    # A configuration without this entry means 4096; newer ones write null.
    window = entries.get("sliding_window", 4096)
    kind = "global" if window is None else "local"
    kinds = (kind,) * entries["num_hidden_layers"]
    return read_config(entries, sliding_window=window, layer_kinds=kinds)


LLAMA_FAMILY = Family(
    module=Llama,
    config=_llama,
    names={
        "embed": "embed_tokens",
        "layers": "layers",
        "attention_norm": "input_layernorm",
        "q_proj": "self_attn.q_proj",
        "k_proj": "self_attn.k_proj",
        "v_proj": "self_attn.v_proj",
        "o_proj": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
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

MISTRAL_FAMILY = dataclasses.replace(LLAMA_FAMILY, config=_mistral)
