"""The language model within a published model that also reads images."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# Models with images, and the start of the names of their language model's tensors: as they are
# published, and as transformers 5 saves them.
PREFIXES = {"gemma3": ("language_model.model.", "model.language_model.")}


def text_part(
    config: dict[str, Any], tensors: Mapping[str, Callable[[], np.ndarray]]
) -> tuple[dict[str, Any], dict[str, Callable[[], np.ndarray]]]:
    """Takes the language model's configuration and tensors; other models are returned as they are.

    Args:
        config: the entries of `config.json`.
        tensors: the functions that read tensors, by their published names.

    Raises:
        ValueError: the configuration has no `text_config`.
    """
    if (prefixes := PREFIXES.get(str(config.get("model_type")))) is None:
        return config, dict(tensors)
    if not isinstance(entries := config.get("text_config"), dict):
        raise ValueError("the configuration lacks text_config")
    # The published entries are only those that differ from the defaults of transformers.
    from transformers import AutoConfig  # imported here because it takes a second

    given = {name: value for name, value in entries.items() if name != "model_type"}
    filled = AutoConfig.for_model(f"{config['model_type']}_text", **given).to_dict()
    tokens: dict[str, Any] = {
        name: config[name] for name in ("eos_token_id", "bos_token_id") if name in config
    }
    of_text = {
        name.removeprefix(prefix): read
        for name, read in tensors.items()
        for prefix in prefixes
        if name.startswith(prefix)
    }
    return {**filled, **tokens}, of_text
