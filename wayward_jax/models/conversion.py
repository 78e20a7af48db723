"""Checkpoints as parameters of our modules: checked once, then kept to be mapped into memory."""

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
from wayward_jax.models.checkpoint import Checkpoint
from wayward_jax.models.families import FAMILIES
from wayward_jax.models.family import Family
from wayward_jax.models.tokenizer import Tokenizer

# Raised whenever the same checkpoint would be converted to something else than before.
VERSION = 3

PARAMS, CONFIG, TOKENIZER = "params", "config.json", "tokenizer.json"
# What comes of numbers and tensors that do not fit together, before or while JAX sees them.
WRONG = (
    *(ValueError, TypeError, AttributeError, ArithmeticError, NotImplementedError),
    SafetensorError,
)
FLOATS = ("float64", "float32", "float16", "bfloat16")
DIGEST_DIGITS = 16


def convert(checkpoint: Checkpoint, dtype: np.dtype, folder: Path) -> None:
    """Writes a checkpoint to a new folder, for `open_converted`.

    Raises:
        InputError: the model is of no family here, or its parts do not fit together.
    """
    try:
        family = _family(checkpoint.config)
        params, digest = _params(checkpoint, family, dtype)
    except WRONG as error:
        raise InputError(f"--model: {checkpoint.path}: {reason(error)}") from error
    config = {
        **checkpoint.config,
        "eos_token_id": checkpoint.tokenizer.eos_id,
        "params_dtype": dtype.name,
        "digest": digest,
        "params": [path.replace("/", ".") for path in params],
    }
    (folder / PARAMS).mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
    checkpoint.tokenizer.save(folder / TOKENIZER)
    for name, array in zip(config["params"], params.values(), strict=True):
        np.save(folder / PARAMS / name, array)


def open_converted(folder: Path) -> tuple[CausalLM, dict[str, Any], Tokenizer, str]:
    """The module, its parameters (NumPy, mapped), the tokenizer and the digest from `convert`.

    Raises:
        InputError: a file of the folder is missing or broken.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tokenizer = Tokenizer.open(folder / TOKENIZER, config["eos_token_id"])
        dtype, digest = jnp.dtype(config["params_dtype"]), config["digest"]
        # .npy has no name for bfloat16, and keeps it as two bytes of no type.
        flat = {
            name: np.load(folder / PARAMS / f"{name}.npy", mmap_mode="r").view(dtype)
            for name in config["params"]
        }
    except Exception as error:  # tokenizers has no exception of its own
        raise InputError(f"{folder} is broken ({error}): delete it and start again") from error
    module = _family(config).module_of(config)
    return module, {"params": traverse_util.unflatten_dict(flat, sep=".")}, tokenizer, digest


def _family(config: Mapping[str, Any]) -> Family:
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"model_type is {kind!r}, only {', '.join(FAMILIES)} are supported")
    return FAMILIES[kind]


def _params(
    checkpoint: Checkpoint, family: Family, dtype: np.dtype
) -> tuple[dict[str, np.ndarray], str]:
    """Reads the weights once, for the module's parameters and for `LanguageModel.digest`.

    Returns:
        The parameters in `dtype` by path, such as `layers_0/q_proj/kernel`, and the digest.
    """
    module = family.module_of(checkpoint.config)
    layers, held = module.config.depth, len(checkpoint.tensors)
    if layers > held:
        raise ValueError(f"the configuration means {layers} layers, and there are {held} tensors")
    shapes = _shapes(module)
    names = {path: family.published_name(path) for path in shapes}
    tensors = {
        name.removeprefix(family.prefix): read
        for name, read in checkpoint.tensors.items()
        if not family.constants.search(name)
    }
    if missing := sorted(set(names.values()) - tensors.keys()):
        raise ValueError(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    head, embedding = family.published_name(("head", "embedding")), names["embed", "embedding"]
    if head in tensors and head not in names.values():  # tied, and written out all the same
        copy = tensors.pop(head)()
        if not np.array_equal(copy, tensors[embedding]()):
            raise ValueError(f"{head} is not {embedding}, although tie_word_embeddings is true")
    if unknown := sorted(tensors.keys() - set(names.values())):
        raise ValueError(f"{len(unknown)} tensors have no place, the first is {unknown[0]}")

    tokens, rows = checkpoint.tokenizer.vocab_size, shapes["embed", "embedding"][0]
    if tokens > rows:
        raise ValueError(f"the tokenizer has {tokens} tokens, the embedding table only {rows}")
    if (eos := checkpoint.tokenizer.eos_id) not in range(tokens):
        raise ValueError(f"the tokenizer's token that ends a text is {eos!r}, and it has {tokens}")

    params, digests = {}, {}
    for path, shape in shapes.items():
        array = tensors[names[path]]()
        ours = array.T if path[-1] == "kernel" and family.linear_out_in else array
        params["/".join(path)] = _checked(ours, shape, dtype, names[path])
        digests[names[path]] = _tensor_digest(array)
    digest = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    return params, digest[:DIGEST_DIGITS]


def _shapes(module: CausalLM) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shapes of the module's parameters by path."""
    ids = jnp.zeros((1, 1), jnp.int32)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), ids, method="text_logits"))
    flat = traverse_util.flatten_dict(variables["params"])
    return {path: leaf.shape for path, leaf in flat.items()}


def _tensor_digest(array: np.ndarray) -> str:
    """The sha256 of a tensor's shape and its values in float32, the widest dtype of a run."""
    digest = hashlib.sha256(str(array.shape).encode())
    with np.errstate(over="ignore"):
        digest.update(np.ascontiguousarray(array, "<f4"))
    return digest.hexdigest()


def _checked(array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:
    """`array` in `dtype`, if it is what `name` should be."""
    if array.dtype.name not in FLOATS:
        raise ValueError(f"{name} is {array.dtype}, only {', '.join(FLOATS)} are supported")
    if array.shape != shape:
        raise ValueError(f"{name} has the shape {array.shape}, the configuration means {shape}")
    with np.errstate(over="ignore"):
        array = array.astype(dtype, order="C")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite in {array.dtype}")
    return array
