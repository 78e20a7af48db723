"""GGUF files, read by llama.cpp's own library in a bearable time."""

import contextlib

import numpy as np
import pytest


@contextlib.contextmanager
def read_into_memory():
    """Has the library read files whole, since it takes thousands of slow slices of its maps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            np, "memmap", lambda file, dtype=np.uint8, mode=None: np.fromfile(file, dtype)
        )
        yield
