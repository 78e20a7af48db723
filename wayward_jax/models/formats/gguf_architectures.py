"""The architectures of GGUF files: how each names and stores what a `config.json` has.

The names of metadata and tensors, and what llama.cpp changes about weights, are those of its
converter, `convert_hf_to_gguf.py`. What a file does not say is what llama.cpp computes for it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from wayward_jax.models.rope import Rope

Metadata = Mapping[str, Any]
Arrays = Mapping[str, Callable[[], np.ndarray]]
Entries = dict[str, Any]

# The parts of tensor names, with their parts in the Hugging Face layout of a Llama.
LLAMA_TENSORS = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
    "blk": "layers",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
QK_NORM_TENSORS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
POST_NORM_TENSORS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
GPT2_TENSORS = {
    "token_embd": "wte",
    "position_embd": "wpe",
    "output_norm": "ln_f",
    "output": "lm_head",
    "blk": "h",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}

# Metadata entries that have another name, and the same meaning, in `config.json`.
LLAMA_ENTRIES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
GPT2_ENTRIES = {
    "block_count": "n_layer",
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}

# Further metadata entries that are understood. Any other may change what the model computes.
UNDERSTOOD = {
    "attention.value_length",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "vocab_size",
}

# Entries that change nothing if they have these values.
HARMLESS = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scale_linear": (1.0,),
    "tensor_data_layout": ("Meta AI original pth",),
    "use_parallel_residual": (False,),
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What is particular about the files of one `general.architecture`.

    Attributes:
        model_type: the entry of a `config.json` for such a model.
        complete: adds to the entries of a Llama, from the metadata and the tensors, what this
            architecture has beyond them.
        tensors: the names of tensors in the Hugging Face layout.
        entries: the names of metadata in `config.json`.
        permuted: llama.cpp rotates channels 2i and 2i + 1 of a head together, and its converter has
            reordered the rows of Q and K for that.
        zero_centered_norm: the converter has added 1 to the weights of norms.
        linear_out_in: matrices are `[out, in]` in the Hugging Face layout, as they are in GGUF.
    """

    model_type: str
    complete: Callable[[Metadata, Arrays, Entries], Entries] = lambda given, arrays, entries: {}
    tensors: Mapping[str, str] = dataclasses.field(default_factory=lambda: LLAMA_TENSORS)
    entries: Mapping[str, str] = dataclasses.field(default_factory=lambda: LLAMA_ENTRIES)
    permuted: bool = False
    zero_centered_norm: bool = False
    linear_out_in: bool = True


def _llama(given: Metadata, arrays: Arrays, entries: Entries) -> Entries:
    bias = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
    found: Entries = {name: tensor in arrays for name, tensor in bias.items()}
    if "rope_freqs.weight" in arrays:
        found["rope_scaling"] = _llama3_scaling(arrays["rope_freqs.weight"](), entries)
    return found


def _llama3_scaling(divisors: np.ndarray, entries: Entries) -> Entries:
    """Makes the `rope_scaling` entry of Llama 3.

    The file holds only the result, a divisor for every frequency. This function tries the settings
    of Meta's models, which differ only in the factor.
    """
    factor, theta = float(divisors.max()), entries.get("rope_theta", Rope.theta)
    plain = Rope(entries["head_dim"], theta)
    scaled = dataclasses.replace(plain, rope_type="llama3", factor=factor, low_freq_factor=1.0)
    expected = plain.frequencies() / scaled.frequencies()
    if expected.shape != divisors.shape or not np.allclose(expected, divisors, rtol=1e-4):
        raise ValueError("rope_freqs.weight is not Llama 3's scaling, the only one supported")
    names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    numbers = {name: getattr(scaled, name) for name in names}
    return {"rope_type": "llama3", "factor": factor, **numbers}


def _phi3(given: Metadata, arrays: Arrays, entries: Entries) -> Entries:
    original = given.get("rope.scaling.original_context_length")
    channels = given.get("rope.dimension_count", entries["head_dim"])
    found = {
        "partial_rotary_factor": channels / entries["head_dim"],
        "original_max_position_embeddings": original or entries["max_position_embeddings"],
        "sliding_window": entries.get("sliding_window") or None,  # 0 means none
    }
    if "rope_factors_short.weight" in arrays:
        found["rope_scaling"] = {
            "rope_type": "longrope",
            "short_factor": [float(x) for x in arrays["rope_factors_short.weight"]()],
            "attention_factor": given.get("rope.scaling.attn_factor"),
        }
    return found


# The number of layers of the models whose scores llama.cpp scales by the width of a head that the
# model would have if its heads were as wide as its stream.
GEMMA_27B = {"gemma2": 46, "gemma3": 62}


def _gemma(architecture: str) -> Callable[[Metadata, Arrays, Entries], Entries]:
    def complete(given: Metadata, arrays: Arrays, entries: Entries) -> Entries:
        largest = entries["num_hidden_layers"] == GEMMA_27B[architecture]
        shared = entries["hidden_size"] // entries["num_attention_heads"]
        return {"query_pre_attn_scalar": shared if largest else entries["head_dim"]}

    return complete


ARCHITECTURES = {
    "llama": Architecture("llama", _llama, permuted=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", tensors={**LLAMA_TENSORS, **QK_NORM_TENSORS}),
    "gemma2": Architecture(
        "gemma2",
        _gemma("gemma2"),
        tensors={**LLAMA_TENSORS, **POST_NORM_TENSORS, "ffn_norm": "pre_feedforward_layernorm"},
        zero_centered_norm=True,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        _gemma("gemma3"),
        tensors={
            **LLAMA_TENSORS,
            **POST_NORM_TENSORS,
            **QK_NORM_TENSORS,
            "ffn_norm": "pre_feedforward_layernorm",
        },
        zero_centered_norm=True,
    ),
    "olmo2": Architecture(
        "olmo2", tensors={**LLAMA_TENSORS, **POST_NORM_TENSORS, **QK_NORM_TENSORS}
    ),
    "phi3": Architecture(
        "phi3",
        _phi3,
        tensors={
            **LLAMA_TENSORS,
            "attn_qkv": "self_attn.qkv_proj",
            "ffn_up": "mlp.gate_up_proj",
        },
    ),
    "gpt2": Architecture("gpt2", tensors=GPT2_TENSORS, entries=GPT2_ENTRIES, linear_out_in=False),
}
"""The supported architectures by `general.architecture`."""

# Tensors that only the configuration is made from.
CONSTANTS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
