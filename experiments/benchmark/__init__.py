"""How fast prompts are tuned and scored, beside PyTorch."""
