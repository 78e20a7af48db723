"""Continuous prompts that read as any text, and how far their reading can be trusted."""
