"""Models in folders of the Hugging Face layout: `config.json`, tokenizer files, safetensors."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from wayward_jax.errors import InputError, reason
from wayward_jax.models.checkpoint import Checkpoint
from wayward_jax.models.tokenizer import Tokenizer

# The files of such a folder that can matter; others, pickled weights among them, are never read.
FILES = ("*.json", "*.txt", "*.model", "model*.safetensors")

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def read(folder: Path) -> Checkpoint:
    """The model of a folder.

    Raises:
        InputError: a file is missing or broken, or the weights are pickled.
    """
    config = _json(folder / "config.json")
    tensors = {}
    for file in _weight_files(folder):
        try:
            weights = safe_open(file, framework="np")
        except (SafetensorError, OSError) as error:
            raise InputError(f"--model: {file} is broken ({error}): get it again") from error
        tensors |= {name: partial(weights.get_tensor, name) for name in weights.offset_keys()}
    return Checkpoint(folder, config, tensors, _tokenizer(folder))


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"--model: {file} cannot be read as JSON ({reason(error)}): get it again"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"--model: {file} is no JSON object: get it again")
    return content


def _weight_files(folder: Path) -> list[Path]:
    """`model.safetensors`, or the parts that the index lists."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    if index.exists():
        listed = _json(index).get("weight_map")
        parts = list(listed.values()) if isinstance(listed, dict) else [listed]
        for part in parts:
            if not (
                isinstance(part, str) and Path(part).name == part and (folder / part).is_file()
            ):
                raise InputError(f"--model: {index} lists {part}, which is not there: get it again")
        return [folder / part for part in sorted(set(parts))]
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED)
    found = (
        f"has only pickled weights ({pickled[0]}), which can run code" if pickled else "has none"
    )
    raise InputError(
        f"--model: weights are read from model.safetensors, and {folder} {found}: "
        "save the model with transformers' save_pretrained"
    )


def _tokenizer(folder: Path) -> Tokenizer:
    # Without these transformers would make a tokenizer of one token and say nothing.
    if not any((folder / file).exists() for file in TOKENIZERS):
        raise InputError(f"--model: {folder} has no tokenizer, that is none of {TOKENIZERS}")
    from transformers import AutoTokenizer  # takes a second, and is needed only here

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        backend = tokenizer.backend_tokenizer
    except Exception as error:  # whatever transformers and tokenizers raise
        code = "trust_remote_code" in str(error)
        said = "it asks for code of its own, which is never run" if code else reason(error)
        raise InputError(
            f"--model: transformers cannot read the tokenizer in {folder} ({said}): "
            "save a tokenizer of its own there with save_pretrained"
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"--model: the tokenizer in {folder} has no eos_token")
    backend.no_padding()
    backend.no_truncation()
    return Tokenizer(backend, tokenizer.eos_token_id)
