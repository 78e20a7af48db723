"""GPT-NeoX in the Hugging Face layout: names, configuration, and the roles of its linear layers."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from wayward_jax.models.activations import check_activation
from wayward_jax.models.family import Family, same_named
from wayward_jax.models.gpt_neox.modeling import GPTNeoX, GPTNeoXConfig
from wayward_jax.models.rope import read_rope


def _config(entries: Mapping[str, Any]) -> GPTNeoXConfig:
    check_activation(entries, "hidden_act")
    fields = same_named(GPTNeoXConfig, entries)
    sizes = {**vars(GPTNeoXConfig), **fields}
    head_dim = sizes["hidden_size"] // sizes["num_attention_heads"]
    theta = entries.get("rotary_emb_base", 10000.0)
    rope = read_rope(entries, head_dim, theta, partial=entries.get("rotary_pct", 0.25))
    return GPTNeoXConfig(rope, **fields)


def _part(i: int) -> Callable[[GPTNeoXConfig, np.ndarray], np.ndarray]:
    """Takes the queries, keys or values, which lie side by side in each head."""

    def take(config: GPTNeoXConfig, array: np.ndarray) -> np.ndarray:
        heads = array.reshape(*array.shape[:-1], config.num_attention_heads, 3, -1)
        return heads[..., i, :].reshape(*array.shape[:-1], -1)

    return take


GPT_NEOX_FAMILY = Family(
    module=GPTNeoX,
    config=_config,
    names={
        "embed": "embed_in",
        "layers": "layers",
        "attention_norm": "input_layernorm",
        **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "attention.query_key_value"),
        "o_proj": "attention.dense",
        "mlp_norm": "post_attention_layernorm",
        "widen": "mlp.dense_h_to_4h",
        "narrow": "mlp.dense_4h_to_h",
        "norm": "final_layer_norm",
        "head": "embed_out",
    },
    prefix="gpt_neox.",
    # The causal mask, and frequencies of the rotary embedding.
    constants=re.compile(r"\.attention\.((masked_)?bias|rotary_emb\.inv_freq)$"),
    linear_out_in=True,
    fused={"q_proj": _part(0), "k_proj": _part(1), "v_proj": _part(2)},
    split_outputs=frozenset({"q_proj", "k_proj", "v_proj", "widen"}),
    split_inputs=frozenset({"o_proj", "narrow"}),
    attention_inputs=frozenset({"q_proj", "k_proj", "v_proj"}),
)
