"""Rows of finished runs, made by hand."""

import numpy as np

from wayward_jax.runs import Run
from wayward_jax.targets import Target

COMMON = {"model": "gpt2", "task": "sst2"}


def row(run, accuracy, *, dev_accuracy=0.5, prompt_f1=1.0):
    """Ten test examples, of which the first ones are predicted right."""
    correct = np.packbits(np.arange(10) < 10 * accuracy).tobytes().hex()
    return {
        **vars(run),
        "id": run.id,
        "accuracy": accuracy,
        "dev_accuracy": dev_accuracy,
        "prompt_f1": prompt_f1 if run.target_ids else None,
        "correct": correct,
        "n_eval": 10,
    }


def best(accuracy, seed=1):
    return row(Run(**COMMON, prompt_length=2, seed=seed), accuracy)


def wayward(accuracy, text="two words", name="own/1", run=(), **changed):
    target = Target(name, text, tuple(range(len(text.split()))))
    return row(Run.towards(target, **COMMON, **dict(run)), accuracy, **changed)
