"""OPT in the Hugging Face layout: names, configuration, and the roles of its linear layers."""

import re
from collections.abc import Mapping
from typing import Any

from wayward_jax.models.activations import check_activation
from wayward_jax.models.family import Family, require, same_named
from wayward_jax.models.opt.modeling import OPT, OPTConfig


def _config(entries: Mapping[str, Any]) -> OPTConfig:
    require(entries, _remove_final_layer_norm=False)
    check_activation(entries, "activation_function")
    fields = same_named(OPTConfig, entries)
    fields.setdefault("word_embed_proj_dim", fields.get("hidden_size", OPTConfig.hidden_size))
    return OPTConfig(**fields)


OPT_FAMILY = Family(
    module=OPT,
    config=_config,
    names={
        "embed": "decoder.embed_tokens",
        "positions": "decoder.embed_positions",
        "project_in": "decoder.project_in",
        "project_out": "decoder.project_out",
        "layers": "decoder.layers",
        "attention_norm": "self_attn_layer_norm",
        "q_proj": "self_attn.q_proj",
        "k_proj": "self_attn.k_proj",
        "v_proj": "self_attn.v_proj",
        "o_proj": "self_attn.out_proj",
        "mlp_norm": "final_layer_norm",
        "widen": "fc1",
        "narrow": "fc2",
        "norm": "decoder.final_layer_norm",
        "head": "lm_head",
    },
    prefix="model.",
    constants=re.compile(r"(?!)"),
    linear_out_in=True,
    split_outputs=frozenset({"q_proj", "k_proj", "v_proj", "widen"}),
    split_inputs=frozenset({"o_proj", "narrow"}),
    attention_inputs=frozenset({"q_proj", "k_proj", "v_proj"}),
)
