"""Conversion of published models to our modules.

A model is checked and converted once. Its weights are then mapped into memory from the cache.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError

from wayward_jax.errors import InputError, reason
from wayward_jax.models.causal_lm import CausalLM
from wayward_jax.models.families import FAMILIES
from wayward_jax.models.family import Family
from wayward_jax.models.formats.published import PublishedModel
from wayward_jax.models.language_model import LanguageModel
from wayward_jax.models.tokenizer import Tokenizer

# To be raised with every change after which the same published model is converted differently.
VERSION = 7

PARAMS, CONFIG, TOKENIZER = "params", "config.json", "tokenizer.json"
FLOATS = ("float64", "float32", "float16", "bfloat16")
DIGEST_DIGITS = 16

# The exceptions of sizes and tensors that do not fit together, raised by us, by JAX or by NumPy.
MISFIT_ERRORS = (
    *(ValueError, TypeError, AttributeError, ArithmeticError, NotImplementedError),
    SafetensorError,
)


def convert(published: PublishedModel, dtype: np.dtype, folder: Path) -> None:
    """Writes a published model to a new folder, for `open_converted`.

    Args:
        published: the model.
        dtype: the dtype of the written weights.
        folder: a folder that does not exist yet.

    Raises:
        InputError: the model is of no supported family, or its parts do not fit together.
    """
    try:
        family = _family(published.config)
        params, digest = _params(published, family, dtype)
    except MISFIT_ERRORS as error:
        remedy = f"{reason(error)}: get the model's files again, or give another --model"
        raise InputError(None, published.path, remedy) from error
    tokenizer = published.tokenizer.without_added_tokens(len(params["embed/embedding"]))
    config = {
        **published.config,
        "eos_token_id": tokenizer.eos_id,
        "bos_token_id": tokenizer.bos_id,
        "chat_template": tokenizer.chat_template,
        "params_dtype": dtype.name,
        "digest": digest,
        "params": [path.replace("/", ".") for path in params],
    }
    (folder / PARAMS).mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
    tokenizer.save(folder / TOKENIZER)
    for name, array in zip(config["params"], params.values(), strict=True):
        np.save(folder / PARAMS / name, array)


def open_converted(folder: Path, name: str) -> LanguageModel:
    """Opens a model that `convert` wrote. Its weights are NumPy arrays, mapped into memory.

    Args:
        folder: the folder given to `convert`.
        name: the `LanguageModel.name`.

    Raises:
        InputError: a file of the folder is missing or broken.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tokenizer = Tokenizer.open(
            folder / TOKENIZER, config["eos_token_id"], config["bos_token_id"]
        )
        tokenizer = dataclasses.replace(tokenizer, chat_template=config["chat_template"])
        dtype, digest = jnp.dtype(config["params_dtype"]), config["digest"]
        # The .npy format has no bfloat16 and stores it as two bytes without a type.
        flat = {
            path: np.load(folder / PARAMS / f"{path}.npy", mmap_mode="r").view(dtype)
            for path in config["params"]
        }
    except Exception as error:  # tokenizers raises plain Exception
        remedy = f"the converted model is broken ({reason(error)}): delete it and start again"
        raise InputError(None, folder, remedy) from error
    family = _family(config)
    params = {"params": traverse_util.unflatten_dict(flat, sep=".")}
    return LanguageModel(name, family, family.module_of(config), params, tokenizer, digest)


def _family(config: Mapping[str, Any]) -> Family:
    kind = config.get("model_type")
    if kind not in FAMILIES:
        code = (
            ", which asks for code of its own, which is never run" if "auto_map" in config else ""
        )
        raise ValueError(f"model_type is {kind!r}{code}: only {', '.join(FAMILIES)} are supported")
    return FAMILIES[kind]


def _params(
    published: PublishedModel, family: Family, dtype: np.dtype
) -> tuple[dict[str, np.ndarray], str]:
    """Reads the weights, once, for the module's parameters and for the digest.

    Returns:
        The parameters in `dtype` by path, such as `layers_0/q_proj/kernel`, and the
        `LanguageModel.digest`.
    """
    module = family.module_of(published.config)
    layers, count = module.config.depth, len(published.tensors)
    if layers > count:
        raise ValueError(f"the configuration means {layers} layers, and there are {count} tensors")
    shapes = _shapes(module)
    names = {path: family.published_name(path) for path in shapes}
    tensors = {
        name.removeprefix(family.prefix): read
        for name, read in published.tensors.items()
        if not family.constants.search(name)
    }
    if missing := sorted(set(names.values()) - tensors.keys()):
        raise ValueError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    head, embedding = family.published_name(("head", "embedding")), names["embed", "embedding"]
    if head in tensors and head not in names.values():  # the head is tied, but written out as well
        copy = tensors.pop(head)()
        if not np.array_equal(copy, tensors[embedding]()):
            raise ValueError(f"{head} is not {embedding}, although tie_word_embeddings is true")
    if unknown := sorted(tensors.keys() - set(names.values())):
        raise ValueError(f"{len(unknown)} tensors have no place, the first is {unknown[0]}")

    rows = shapes["embed", "embedding"][0]
    tokens = published.tokenizer.without_added_tokens(rows).vocab_size
    if tokens > rows:
        raise ValueError(f"the tokenizer has {tokens} tokens, the embedding table only {rows}")
    if (eos := published.tokenizer.eos_id) not in range(tokens):
        raise ValueError(f"the tokenizer's token that ends a text is {eos!r}, and it has {tokens}")

    params, digests = {}, {}
    for path, shape in shapes.items():
        array = tensors[names[path]]()
        ours = array.T if path[-1] == "kernel" and family.linear_out_in else array
        part = family.own_part(path, ours, module.config)
        params["/".join(path)] = _cast(part, shape, dtype, names[path])
        if names[path] not in digests:
            digests[names[path]] = _tensor_digest(array)
    digest = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    return params, digest[:DIGEST_DIGITS]


@functools.cache
def _shapes(module: CausalLM) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Computes the shapes of the module's parameters by path."""
    ids = jnp.zeros((1, 1), jnp.int32)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), ids, method="text_logits"))
    flat = traverse_util.flatten_dict(variables["params"])
    return {path: leaf.shape for path, leaf in flat.items()}


def _cast(array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:
    """Casts the tensor `name` to `dtype`. Raises a ValueError if it is not a finite `shape`."""
    if array.dtype.name not in FLOATS:
        raise ValueError(f"{name} is {array.dtype}, only {', '.join(FLOATS)} are supported")
    if array.shape != shape:
        raise ValueError(f"{name} has the shape {array.shape}, the configuration means {shape}")
    with np.errstate(over="ignore"):
        array = array.astype(dtype, order="C")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite in {array.dtype}")
    return array


def _tensor_digest(array: np.ndarray) -> str:
    """Computes the sha256 of a tensor's shape and values in float32, the widest dtype of a run."""
    digest = hashlib.sha256(str(array.shape).encode())
    with np.errstate(over="ignore"):
        digest.update(np.ascontiguousarray(array, "<f4"))
    return digest.hexdigest()
