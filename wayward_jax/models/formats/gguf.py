"""Reads Llama models in llama.cpp's GGUF files.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Tensors and
metadata are renamed to the Hugging Face layout, so that the same conversion serves both formats.
`import gguf` below is llama.cpp's library; this module is `wayward_jax.models.formats.gguf`.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from wayward_jax.errors import InputError, reason
from wayward_jax.models.formats.gguf_tokenizer import build_tokenizer
from wayward_jax.models.formats.published import PublishedModel
from wayward_jax.models.llama.modeling import LlamaConfig, RopeScaling, rope_frequencies

# The parts of tensor names, with their parts in the Hugging Face layout.
TENSOR_NAMES = {
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

# Metadata entries that have another name, and the same meaning, in `config.json`.
CONFIG_NAMES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}

# Further metadata entries that are understood. Any other may change what the model computes.
CHECKED_NAMES = {
    "attention.value_length",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "vocab_size",
}

# In bytes.
LARGEST_METADATA = 64 * 2**20


def read(path: Path) -> PublishedModel:
    """Reads the model in a GGUF file. Its tensors are dequantized to float32 as they are read.

    Raises:
        InputError: the file is broken, is not of the Llama architecture, or needs something that is
            not supported.
    """
    try:
        reader = _Reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # gguf does not check the bytes it reads, so any kind is possible
        remedy = f"the file is broken ({reason(error)}): get it again"
        raise InputError(None, path, remedy) from error
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    try:
        config = _config(metadata, tensors)
        tokenizer = build_tokenizer(metadata)
    except KeyError as error:
        remedy = f"the file lacks {error}: get it again, or give another --model"
        raise InputError(None, path, remedy) from error
    except Exception as error:  # metadata may be of any type, so any kind is possible
        remedy = f"{reason(error)}: give another --model"
        raise InputError(None, path, remedy) from error
    tensors.pop("rope_freqs.weight", None)  # the configuration has it as `rope_scaling`
    return PublishedModel(
        path=path,
        config=config,
        tensors={
            _published_name(name): partial(_read_tensor, tensor, config)
            for name, tensor in tensors.items()
        },
        tokenizer=tokenizer,
    )


class _Reader(gguf.GGUFReader):
    """A reader that stops at the end of the file and at metadata larger than those of any model.

    gguf's own reader does not stop if a count in the file is wrong.
    """

    def _get(self, offset: int, dtype: Any, count: int = 1, *order: Any, **orders: Any) -> Any:
        array = super()._get(offset, dtype, count, *order, **orders)
        if len(array) < count:
            raise ValueError("it ends too early")
        return array

    def _get_field_parts(self, offset: int, kind: int) -> Any:
        if offset > LARGEST_METADATA:
            raise ValueError(f"its metadata is larger than {LARGEST_METADATA >> 20} MiB")
        return super()._get_field_parts(offset, kind)


def _config(
    metadata: Mapping[str, Any], tensors: Mapping[str, gguf.ReaderTensor]
) -> dict[str, Any]:
    """Makes the entries of a `config.json` from the metadata and the tensors.

    Raises:
        KeyError: the metadata lacks an entry.
        ValueError: an entry asks for something that is not supported.
    """
    if (architecture := metadata["general.architecture"]) != "llama":
        raise ValueError(f"general.architecture is {architecture!r}, only 'llama' is supported")
    if metadata.get("split.count", 1) > 1:
        raise ValueError(
            "the file is one of several parts: join them with llama.cpp's gguf-split --merge"
        )
    given = {k.removeprefix("llama."): v for k, v in metadata.items() if k.startswith("llama.")}
    if unknown := given.keys() - CONFIG_NAMES.keys() - CHECKED_NAMES:
        raise ValueError(f"the metadata llama.{min(unknown)} is not supported")
    if by_layer := [name for name, value in given.items() if isinstance(value, list)]:
        raise ValueError(f"llama.{by_layer[0]} differs from layer to layer, which is not supported")

    config = {CONFIG_NAMES[name]: value for name, value in given.items() if name in CONFIG_NAMES}
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    for name in ("attention.value_length", "rope.dimension_count"):
        if given.get(name, config["head_dim"]) != config["head_dim"]:
            raise ValueError(f"llama.{name} is not the width of a head, which is not supported")
    return {
        **config,
        "model_type": "llama",
        "vocab_size": len(tensors["token_embd.weight"].data),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "rope_scaling": _rope_scaling(given, tensors.get("rope_freqs.weight"), config),
    }


def _rope_scaling(
    given: Mapping[str, Any], divisors: gguf.ReaderTensor | None, config: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Makes the `rope_scaling` entry.

    For Llama 3's scaling, the file holds only the result, a divisor for every frequency. This
    function tries the settings of Meta's models, which differ only in the factor.
    """
    kind = given.get("rope.scaling.type", "none")
    if kind == "linear":
        return {"rope_type": "linear", "factor": given["rope.scaling.factor"]}
    if kind != "none":
        raise ValueError(f"llama.rope.scaling.type is {kind!r}, only none, linear are supported")
    if divisors is None:
        return None
    scaling = RopeScaling("llama3", factor=float(divisors.data.max()), low_freq_factor=1.0)
    sizes = {"head_dim": config["head_dim"], "rope_theta": config["rope_theta"]}
    plain = rope_frequencies(LlamaConfig(**sizes))
    ours = rope_frequencies(LlamaConfig(**sizes, rope_scaling=scaling))
    if plain.shape != divisors.data.shape or not np.allclose(
        plain / ours, divisors.data, rtol=1e-4
    ):
        raise ValueError("rope_freqs.weight is not Llama 3's scaling, the only one supported")
    return dataclasses.asdict(scaling)


def _published_name(name: str) -> str:
    """Renames `blk.3.attn_q.weight` to `layers.3.self_attn.q_proj.weight`; unknown parts stay."""
    return ".".join(TENSOR_NAMES.get(part, part) for part in name.split("."))


def _read_tensor(tensor: gguf.ReaderTensor, config: Mapping[str, Any]) -> np.ndarray:
    """Reads a tensor in float32. Matrices are `[out, in]`."""
    array = gguf.dequantize(tensor.data, tensor.tensor_type)
    if ".attn_q." in tensor.name:
        return _unpermute(array, config["num_attention_heads"])
    if ".attn_k." in tensor.name:
        return _unpermute(array, config["num_key_value_heads"])
    return array


def _unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the channels of heads, `[heads * d, ...]`, from llama.cpp's order to Hugging Face's.

    llama.cpp rotates channels 2i and 2i + 1 of a head together, and Hugging Face channels i and
    i + d / 2. llama.cpp's converter has reordered the rows of Q and K for that.
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
