"""Reads models in llama.cpp's GGUF files.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Tensors and
metadata are renamed to the Hugging Face layout, so that the same conversion serves both formats.
`import gguf` below is llama.cpp's library; this module is `wayward_jax.models.formats.gguf`.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from wayward_jax.errors import InputError, reason
from wayward_jax.models.formats.gguf_architectures import (
    ARCHITECTURES,
    CONSTANTS,
    HARMLESS,
    UNDERSTOOD,
    Architecture,
)
from wayward_jax.models.formats.gguf_tokenizer import build_tokenizer
from wayward_jax.models.formats.published import PublishedModel

# In bytes.
LARGEST_METADATA = 64 * 2**20


def read(path: Path) -> PublishedModel:
    """Reads the model in a GGUF file. Its tensors are dequantized to float32 as they are read.

    Raises:
        InputError: the file is broken, is not of a supported architecture, or needs something that
            is not supported.
    """
    try:
        reader = _Reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # gguf does not check the bytes it reads, so any kind is possible
        remedy = f"the file is broken ({reason(error)}): get it again"
        raise InputError(None, path, remedy) from error
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    try:
        architecture = _architecture(metadata)
        config = _config(metadata, tensors, architecture)
        tokenizer = build_tokenizer(metadata)
    except KeyError as error:
        remedy = f"the file lacks {error}: get it again, or give another --model"
        raise InputError(None, path, remedy) from error
    except Exception as error:  # metadata may be of any type, so any kind is possible
        remedy = f"{reason(error)}: give another --model"
        raise InputError(None, path, remedy) from error
    return PublishedModel(
        path=path,
        config=config,
        tensors={
            _published_name(name, architecture): partial(_read, tensor, config, architecture)
            for name, tensor in tensors.items()
            if name not in CONSTANTS
        },
        tokenizer=tokenizer,
    )


class _Reader(gguf.GGUFReader):
    """A reader that stops at the end of the file and at metadata larger than those of any model.

    gguf's own reader does not stop if a count in the file is wrong.
    """

    @property
    def data(self) -> Any:
        """The file, mapped into memory."""
        return self._data

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        # A vocabulary takes 200,000 slices. Those of a plain array are made several times as fast.
        self._data = mapped.view(np.ndarray)

    def _get(self, offset: int, dtype: Any, count: int = 1, *order: Any, **orders: Any) -> Any:
        array = super()._get(offset, dtype, count, *order, **orders)
        if len(array) < count:
            raise ValueError("it ends too early")
        return array

    def _get_field_parts(self, offset: int, kind: int) -> Any:
        if offset > LARGEST_METADATA:
            raise ValueError(f"its metadata is larger than {LARGEST_METADATA >> 20} MiB")
        return super()._get_field_parts(offset, kind)


def _architecture(metadata: Mapping[str, Any]) -> Architecture:
    name = metadata["general.architecture"]
    if name not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise ValueError(f"general.architecture is {name!r}, only {supported} are supported")
    return ARCHITECTURES[name]


def _config(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, gguf.ReaderTensor],
    architecture: Architecture,
) -> dict[str, Any]:
    """Makes the entries of a `config.json` from the metadata and the tensors.

    The output table is read if the file has one, as llama.cpp does, even if its makers say that it
    is the embedding table: each is quantized in its own way, so they differ.

    Raises:
        KeyError: the metadata lacks an entry.
        ValueError: an entry asks for something that is not supported.
    """
    if metadata.get("split.count", 1) > 1:
        raise ValueError(
            "the file is one of several parts: join them with llama.cpp's gguf-split --merge"
        )
    prefix = f"{metadata['general.architecture']}."
    given = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
    given = {k: v for k, v in given.items() if v not in HARMLESS.get(k, ())}
    if unknown := given.keys() - architecture.entries.keys() - UNDERSTOOD:
        raise ValueError(f"the metadata {prefix}{min(unknown)} is not supported")
    if by_layer := [name for name, value in given.items() if isinstance(value, list)]:
        raise ValueError(f"{prefix}{by_layer[0]} differs from layer to layer, not supported")
    entries = {
        architecture.entries[name]: value
        for name, value in given.items()
        if name in architecture.entries
    }
    entries |= {
        "model_type": architecture.model_type,
        "vocab_size": len(tensors["token_embd.weight"].data),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if "num_attention_heads" not in entries:  # GPT-2's
        return entries
    entries.setdefault("num_key_value_heads", entries["num_attention_heads"])
    entries.setdefault("head_dim", entries["hidden_size"] // entries["num_attention_heads"])
    if given.get("attention.value_length", entries["head_dim"]) != entries["head_dim"]:
        raise ValueError(f"{prefix}attention.value_length is not attention.key_length")
    entries["rope_scaling"] = _rope_scaling(given, prefix)
    arrays = {name: partial(_dequantize, tensor) for name, tensor in tensors.items()}
    entries |= architecture.complete(given, arrays, entries)
    rotated = entries["head_dim"] * entries.get("partial_rotary_factor", 1)
    if given.get("rope.dimension_count", rotated) != rotated:
        raise ValueError(f"{prefix}rope.dimension_count is not the width of a head, not supported")
    return entries


def _rope_scaling(given: Mapping[str, Any], prefix: str) -> dict[str, Any] | None:
    match given.get("rope.scaling.type", "none"):
        case "none":
            return None
        case "linear":
            return {"rope_type": "linear", "factor": given["rope.scaling.factor"]}
        case "yarn":
            return {
                "rope_type": "yarn",
                "factor": given["rope.scaling.factor"],
                "original_max_position_embeddings": given["rope.scaling.original_context_length"],
            }
        case "longrope":
            return None  # it follows from the factors of the frequencies
        case other:
            raise ValueError(
                f"{prefix}rope.scaling.type is {other!r}, only none, linear, yarn, longrope are "
                "supported"
            )


def _published_name(name: str, architecture: Architecture) -> str:
    """Renames `blk.3.attn_q.weight` to `layers.3.self_attn.q_proj.weight`; unknown parts stay."""
    return ".".join(architecture.tensors.get(part, part) for part in name.split("."))


def _dequantize(tensor: gguf.ReaderTensor) -> np.ndarray:
    return gguf.dequantize(tensor.data, tensor.tensor_type)


def _read(
    tensor: gguf.ReaderTensor, config: Mapping[str, Any], architecture: Architecture
) -> np.ndarray:
    """Reads a tensor in float32, as it is in the Hugging Face layout."""
    array = _dequantize(tensor)
    if architecture.permuted and ".attn_q." in tensor.name:
        return _unpermute(array, config["num_attention_heads"])
    if architecture.permuted and ".attn_k." in tensor.name:
        return _unpermute(array, config["num_key_value_heads"])
    if architecture.zero_centered_norm and tensor.name.endswith("norm.weight"):
        return array - 1
    is_linear = array.ndim == 2 and tensor.name.startswith("blk.")
    return array.T if is_linear and not architecture.linear_out_in else array


def _unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the channels of heads, `[heads * d, ...]`, from llama.cpp's order to Hugging Face's.

    llama.cpp rotates channels 2i and 2i + 1 of a head together, and Hugging Face channels i and
    i + d / 2.
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
