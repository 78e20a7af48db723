"""Finds the nearest tokens of prompts by brute force in float64."""

import numpy as np

from tests.helpers import toy_job


def nearest(folder, row, table):
    """The ten words that are nearest to each vector of a row's prompt, and their distances."""
    prompt = toy_job.prompt(folder / "runs", row)
    far = ((np.float64(prompt)[:, None] - np.float64(table)[None]) ** 2).sum(-1)
    ids = far.argsort(axis=1, kind="stable")[:, :10]
    return ids, np.take_along_axis(far, ids, axis=1)
