"""Frozen language models, by name."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from wayward_jax.cache import make_once
from wayward_jax.models import conversion, sources
from wayward_jax.models.causal_lm import CausalLM
from wayward_jax.models.tokenizer import Tokenizer
from wayward_jax.sharding import make_mesh, place_params


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A language model that is never trained.

    Attributes:
        name: a short name for results: a built-in or hub name as it was given, and of a path the
            last component without `.gguf`.
        module: the mathematics, as in `module.apply(params, ids, method="text_logits")`.
        params: the weights, of one dtype, on the devices.
        tokenizer: the model's. The embedding table may have rows for ids from
            `tokenizer.vocab_size` on; these ids have no text.
        digest: 16 hexadecimal digits of a sha256 over the published weights: the names of all
            tensors that the model uses (without the family's prefix), their shapes, and their
            values in float32 before they are cast to the dtype of `params`. It covers neither the
            configuration nor the tokenizer, and it does not depend on the path, on how the weights
            are split into files, or on `dtype`. It is empty if the weights were not loaded.
    """

    name: str
    module: CausalLM
    params: dict[str, Any]
    tokenizer: Tokenizer
    digest: str = ""

    def embedding_table(self) -> jax.Array:
        """The embedding table `[V, D]`."""
        return self.module.apply(self.params, method="embedding_table")

    def valid_tokens(self) -> np.ndarray:
        """`[V]` bool, which rows of the table are tokens with a text, and so may be read."""
        return np.arange(len(self.embedding_table())) < self.tokenizer.vocab_size


def load(
    name: str,
    *,
    cache_dir: Path,
    assets_dir: Path | None = None,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
) -> LanguageModel:
    """A language model: converted on first use, and read from the cache from then on.

    Args:
        name: a built-in name, a folder in the Hugging Face layout, a GGUF file, or
            `organisation/name` on the Hugging Face hub.
        cache_dir: where built-in and converted models are kept.
        assets_dir: where the files of built-in models are, to use no network.
        dtype: of the weights.
        mesh: where the weights are put; None is one device.

    Raises:
        InputError: there is no such model, or it cannot be used.
    """
    source = sources.locate(name, cache_dir, assets_dir)
    dtype = jnp.dtype(dtype)
    converted = make_once(
        cache_dir / "models" / _key(source, dtype.name),
        lambda folder: conversion.convert(sources.read(source), dtype, folder),
    )
    module, params, tokenizer, digest = conversion.open_converted(converted)
    params = place_params(params, mesh or make_mesh())
    return LanguageModel(sources.short_name(name), module, params, tokenizer, digest)


def _key(source: Path, dtype: str) -> str:
    """A folder name that changes with the source's files, the dtype and the converter."""
    stats = {str(file.resolve()): file.stat() for file in sources.files(source)}
    files = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
    key = json.dumps([conversion.VERSION, dtype, files])
    return f"{source.stem}-{dtype}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
