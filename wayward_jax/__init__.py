"""Find continuous prompts that read as any text, and measure how far their reading can be trusted."""
