"""Targets: the texts that prompts are tuned to read as."""

from wayward_jax.targets.loading import load_texts
from wayward_jax.targets.target import Target, require_readable, tokenize

__all__ = ["Target", "load_texts", "require_readable", "tokenize"]
