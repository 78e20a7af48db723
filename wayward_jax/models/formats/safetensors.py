"""Reads models in the Hugging Face layout: `config.json`, tokenizer files, safetensors.

The imports of `safetensors` below are of the library; this module is
`wayward_jax.models.formats.safetensors`.
"""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from wayward_jax.errors import InputError, reason
from wayward_jax.models.formats.published import PublishedModel
from wayward_jax.models.formats.text_part import text_part
from wayward_jax.models.tokenizer import Tokenizer

# The only files of a folder that are read. Pickled weights are not among them.
FILES = ("*.json", "*.jinja", "*.txt", "*.model", "model*.safetensors")

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
NO_EOS = (
    "the tokenizer has no eos_token, which ends a text: name one of its tokens in "
    'tokenizer_config.json, as in {"eos_token": "</s>"}'
)
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def read(folder: Path) -> PublishedModel:
    """Reads the model in a folder.

    Raises:
        InputError: a file is missing or broken, the weights are pickled or quantized, or the folder
            holds an adapter and no model.
    """
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        base = _read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        remedy = f"the folder holds a PEFT adapter and no model: give its base model, {base!r}"
        raise InputError(None, folder, remedy)
    config = _read_json(folder / "config.json")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        remedy = (
            f"the weights are quantized ({method or 'unknown method'}), and such weights are read "
            "from GGUF files alone: give the model in bfloat16 or as a GGUF file"
        )
        raise InputError(None, folder, remedy)
    tensors: dict[str, Callable[[], np.ndarray]] = {}
    for file in _weight_files(folder):
        try:
            weights = safe_open(file, framework="np")
        except (SafetensorError, OSError) as error:
            remedy = f"the file is broken ({reason(error)}): get it again"
            raise InputError(None, file, remedy) from error
        tensors |= {name: partial(weights.get_tensor, name) for name in weights.offset_keys()}
    try:
        config, tensors = text_part(config, tensors)
    except Exception as error:  # transformers raises exceptions of many kinds
        remedy = f"the file is broken ({reason(error)}): get it again"
        raise InputError(None, folder / "config.json", remedy) from error
    tokenizer = dataclasses.replace(
        _read_tokenizer(folder, config), chat_template=_read_chat_template(folder)
    )
    return PublishedModel(folder, config, tensors, tokenizer)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        remedy = f"the file cannot be read as JSON ({reason(error)}): get it again"
        raise InputError(None, file, remedy) from error
    if not isinstance(content, dict):
        raise InputError(None, file, "the file holds no JSON object: get it again")
    return content


def _weight_files(folder: Path) -> list[Path]:
    """Lists `model.safetensors`, or the parts that `model.safetensors.index.json` names."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    if index.exists():
        weight_map = _read_json(index).get("weight_map")
        parts: list[Any] = (
            list(weight_map.values()) if isinstance(weight_map, dict) else [weight_map]
        )
        for part in parts:
            if not (
                isinstance(part, str) and Path(part).name == part and (folder / part).is_file()
            ):
                remedy = f"the file lists {part}, which is not there: get it again"
                raise InputError(None, index, remedy)
        return [folder / part for part in sorted(set(parts))]
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED)
    found = f"only pickled weights ({pickled[0]}), which can run code" if pickled else "no weights"
    raise InputError(
        None,
        folder,
        f"the folder has {found}, and weights are read from model.safetensors: "
        "save the model with transformers' save_pretrained",
    )


def _read_tokenizer(folder: Path, config: dict[str, Any]) -> Tokenizer:
    """Reads `tokenizer.json` or, in a folder without one, what transformers makes of other files.

    transformers may build another tokenizer than the one that `tokenizer.json` describes: it goes
    by the class that `tokenizer_config.json` names.
    """
    file = folder / TOKENIZERS[0]
    if not file.exists():
        return _convert_tokenizer(folder)
    try:
        tokenizer = Tokenizer.open(file, eos_id=-1)
    except Exception as error:  # tokenizers raises plain Exception
        remedy = f"the file cannot be read as a tokenizer ({reason(error)}): get it again"
        raise InputError(None, file, remedy) from error
    return dataclasses.replace(
        tokenizer,
        eos_id=_eos_id(folder, tokenizer, config),
        bos_id=_first_id(config, "bos_token_id"),
    )


def _read_chat_template(folder: Path) -> str:
    """Reads the chat template, or the one called `default` if there are several."""
    if (file := folder / "chat_template.jinja").exists():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            remedy = f"the file cannot be read as text ({reason(error)}): get it again"
            raise InputError(None, file, remedy) from error
    file = folder / "tokenizer_config.json"
    found = _read_json(file).get("chat_template") if file.exists() else None
    if isinstance(found, list):
        named = [each for each in found if isinstance(each, dict)]
        found = {each.get("name"): each.get("template") for each in named}.get("default")
    return found if isinstance(found, str) else ""


def _eos_id(folder: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> int:
    """Finds the token that ends a text, which `tokenizer.json` does not name."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        entries = _read_json(folder / name) if (folder / name).exists() else {}
        if "eos_token" in entries:
            token = entries["eos_token"]
            token = token.get("content") if isinstance(token, dict) else token
            if token is None:
                break
            if (id_ := tokenizer.backend.token_to_id(str(token))) is None:
                remedy = f"eos_token is {token!r}, which tokenizer.json lacks: name a token it has"
                raise InputError(None, folder / name, remedy)
            return id_
    else:
        if (id_ := _first_id(config, "eos_token_id")) is not None:
            return id_
    raise InputError(None, folder, NO_EOS)


def _first_id(config: dict[str, Any], name: str) -> int | None:
    """The id, or the first of the ids, that a configuration has under this name."""
    ids = config.get(name)
    first = ids[0] if isinstance(ids, list) and ids else ids
    return first if type(first) is int else None


def _convert_tokenizer(folder: Path) -> Tokenizer:
    # Without these files transformers makes a tokenizer of one token and reports no error.
    if not any((folder / file).exists() for file in TOKENIZERS):
        remedy = f"the folder has no tokenizer: bring one of {', '.join(TOKENIZERS)}"
        raise InputError(None, folder, remedy)
    from transformers import AutoTokenizer  # imported here because it takes a second

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        backend = tokenizer.backend_tokenizer
    except Exception as error:  # transformers and tokenizers raise exceptions of many kinds
        needs_code = "trust_remote_code" in str(error)
        cause = "it asks for code of its own, which is never run" if needs_code else reason(error)
        raise InputError(
            None,
            folder,
            f"transformers cannot read the tokenizer ({cause}): "
            "save a tokenizer of another class there with save_pretrained",
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(None, folder, NO_EOS)
    backend.no_padding()
    backend.no_truncation()
    return Tokenizer(backend, tokenizer.eos_token_id, tokenizer.bos_token_id)
