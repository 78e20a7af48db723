"""Benchmark of tuning and scoring prompts, here and in PyTorch."""
