"""Frozen language models, loaded by name."""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from wayward_jax.cache import make_once
from wayward_jax.errors import InputError
from wayward_jax.models import conversion, sources
from wayward_jax.models.language_model import BOS, READABLE, LanguageModel
from wayward_jax.sharding import make_mesh

__all__ = ["LanguageModel", "load", "open_model", "resolve_dtype"]


def resolve_dtype(name: str, device: jax.Device) -> jnp.dtype:
    """The dtype of weights that a name stands for on a kind of devices.

    `auto` is bfloat16 on accelerators and float32 on CPUs and on NVIDIA's GPUs before Ampere, which
    is compute capability 8: those cannot multiply bfloat16.
    """
    if name != "auto":
        return jnp.dtype(name)
    major, *_ = str(getattr(device, "compute_capability", "")).split(".")
    too_old = major.isdigit() and int(major) < 8
    return jnp.dtype(jnp.float32 if device.platform == "cpu" or too_old else jnp.bfloat16)


def load(
    name: str,
    *,
    cache_dir: Path,
    assets_dir: Path | None = None,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    readable: str = "text",
    bos: str = "auto",
) -> LanguageModel:
    """Loads a language model onto devices.

    Args:
        mesh: the mesh on which the weights are placed. None means one device.
        name, cache_dir, assets_dir, dtype, readable, bos: as for `open_model`.

    Raises:
        InputError: there is no such model, or it cannot be used.
    """
    model = open_model(
        name, cache_dir=cache_dir, assets_dir=assets_dir, dtype=dtype, readable=readable, bos=bos
    )
    return model.placed(mesh or make_mesh())


def open_model(
    name: str,
    *,
    cache_dir: Path,
    assets_dir: Path | None = None,
    dtype: DTypeLike = jnp.float32,
    readable: str = "text",
    bos: str = "auto",
) -> LanguageModel:
    """Opens a language model, whose weights are mapped from the cache and on no device yet.

    It is converted on first use, and read from the cache afterwards.

    Args:
        name: a built-in name, a folder in the Hugging Face layout, a GGUF file, or
            `organization/name` on the Hugging Face hub.
        cache_dir: the folder that keeps fetched and converted models.
        assets_dir: a folder with the files of built-in models. No network is used if it is given.
        dtype: the dtype of the weights.
        readable: the tokens that a prompt can be read as, see `LanguageModel.readable`.
        bos: one of `BOS`: whether BOS stands before every prompt; `auto` is where the tokenizer
            begins every text with it.

    Raises:
        InputError: there is no such model, or it cannot be used.
    """
    if readable not in READABLE:
        raise InputError("readable", readable, f"choose one of {', '.join(READABLE)}")
    if bos not in BOS:
        raise InputError("bos", bos, f"choose one of {', '.join(BOS)}")
    source = sources.locate(name, cache_dir, assets_dir)
    dtype = jnp.dtype(dtype)
    folder = make_once(
        cache_dir / "models" / _cache_key(source, dtype.name),
        lambda folder: conversion.convert(sources.read(source), dtype, folder),
    )
    model = conversion.open_converted(folder, sources.short_name(name))
    return dataclasses.replace(model, readable=readable, bos_ids=_bos_ids(model, bos))


def _bos_ids(model: LanguageModel, bos: str) -> tuple[int, ...]:
    tokenizer = model.tokenizer
    if bos == "no":
        return ()
    if bos == "auto" or tokenizer.first_ids:
        return tokenizer.first_ids
    if tokenizer.bos_id not in tokenizer.ids:
        raise InputError(
            "bos",
            bos,
            f"{model.name} names no token that begins a text: use --bos=no, or name one as "
            "bos_token_id in its config.json",
        )
    return (tokenizer.bos_id,)


def _cache_key(source: Path, dtype: str) -> str:
    """Makes a folder name that changes with the source's files, the dtype and the converter."""
    stats = {str(file.resolve()): file.stat() for file in sources.files(source)}
    files = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
    key = json.dumps([conversion.VERSION, dtype, files])
    return f"{source.stem}-{dtype}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
