"""The nearest tokens of prompts, by brute force in float64."""

import numpy as np

from wayward_jax import checkpoints


def nearest(folder, row, table):
    """The prompt's ten nearest words and their distances, by brute force in float64."""
    prompt = checkpoints.load_prompt(folder / "runs" / "checkpoints" / row["id"])
    far = ((np.float64(prompt)[:, None] - np.float64(table)[None]) ** 2).sum(-1)
    ids = far.argsort(axis=1, kind="stable")[:, :10]
    return ids, np.take_along_axis(far, ids, axis=1)
