"""Targets: texts that prompts shall read as."""

from wayward_jax.targets.loading import load
from wayward_jax.targets.target import Target

__all__ = ["Target", "load"]
