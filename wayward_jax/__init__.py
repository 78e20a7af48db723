"""Continuous prompts that read as any text, and how far their reading can be trusted."""

__version__ = "0.2.0.dev0"
