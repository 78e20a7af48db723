"""The form in which every reader of model files returns a model."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wayward_jax.models.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class PublishedModel:
    """A model as its makers published it, with the names of the Hugging Face layout.

    Attributes:
        path: the file or folder that the model was read from, for error messages.
        config: the entries of the model's `config.json`, or the entries it would have.
        tensors: for the name of each tensor, a function that reads it into a NumPy array.
        tokenizer: the model's tokenizer.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Callable[[], np.ndarray]]
    tokenizer: Tokenizer
