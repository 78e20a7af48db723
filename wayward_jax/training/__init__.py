"""Tuning and scoring prompts: populations of runs over one frozen model."""
