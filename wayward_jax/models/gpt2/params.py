"""GPT-2 in the Hugging Face layout: names, configuration, and the roles of its linear layers."""

import re
from collections.abc import Mapping
from typing import Any

from wayward_jax.models.family import Family, require, same_named
from wayward_jax.models.gpt2.modeling import ACTIVATIONS, GPT2, GPT2Config


def _config(entries: Mapping[str, Any]) -> GPT2Config:
    require(
        entries,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    config = GPT2Config(**same_named(GPT2Config, entries))
    if config.activation_function not in ACTIVATIONS:
        raise ValueError(
            f"activation_function is {config.activation_function!r}, "
            f"only {', '.join(ACTIVATIONS)} are supported"
        )
    return config


GPT2_FAMILY = Family(
    module=GPT2,
    config=_config,
    names={
        "embed": "wte",
        "wpe": "wpe",
        "layers": "h",
        "ln_1": "ln_1",
        "q_proj": "attn.c_attn",
        "k_proj": "attn.c_attn",
        "v_proj": "attn.c_attn",
        "attn_proj": "attn.c_proj",
        "ln_2": "ln_2",
        "c_fc": "mlp.c_fc",
        "mlp_proj": "mlp.c_proj",
        "ln_f": "ln_f",
        "head": "lm_head",
    },
    prefix="transformer.",
    constants=re.compile(r"\.attn\.(masked_)?bias$"),  # the causal mask
    linear_out_in=False,  # GPT-2's linear layers are published as 1x1 convolutions
    fused=(("q_proj", "k_proj", "v_proj"),),
    split_outputs=frozenset({"q_proj", "k_proj", "v_proj", "c_fc"}),
    split_inputs=frozenset({"attn_proj", "mlp_proj"}),
    attention_inputs=frozenset({"q_proj", "k_proj", "v_proj"}),
)
