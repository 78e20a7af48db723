"""What a reader of weights hands over, whatever the file format."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wayward_jax.models.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A published model, in the words of the Hugging Face layout.

    path: the file or folder, for messages.
    config: what its `config.json` says or would say.
    tensors: the tensors' names, each with a function that reads it.
    tokenizer: the model's.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Callable[[], np.ndarray]]
    tokenizer: Tokenizer
