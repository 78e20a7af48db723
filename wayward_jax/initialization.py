"""The prompts that tuning starts from (NumPy, on the host)."""

from collections.abc import Callable

import numpy as np

from wayward_jax.runs import Run

# Byte-pair vocabularies list frequent tokens first, so the first tokens are common ones.
COMMON_TOKENS = 5000


def at_target(run: Run, table: np.ndarray) -> np.ndarray:
    """The embeddings of the run's target (the paper's `manual`)."""
    return table[list(run.target_ids)]


def at_vocabulary(run: Run, table: np.ndarray) -> np.ndarray:
    """Embeddings of random common tokens (Lester et al., 2021; the paper's `vocab`).

    They are different, unless the prompt is longer than the list of common tokens. Then the list is
    repeated.
    """
    common = min(COMMON_TOKENS, len(table))
    order = _generator(run).permutation(common)
    return table[np.resize(order, run.prompt_length)]


def at_random(run: Run, table: np.ndarray) -> np.ndarray:
    """Vectors of independent normal numbers with the standard deviation of the embedding table.

    These vectors are about as long as embeddings. (The paper's code draws from N(0, 1), which gives
    vectors many times as long.)
    """
    shape = (run.prompt_length, table.shape[1])
    return _generator(run).normal(0.0, table.std(), shape)


def _generator(run: Run) -> np.random.Generator:
    return np.random.default_rng([run.seed, run.attempt])


STARTS: dict[str, Callable[[Run, np.ndarray], np.ndarray]] = {
    "target": at_target,
    "vocab": at_vocabulary,
    "random": at_random,
}
"""Starts by name: functions of a run and the embedding table `[V, D]` that give `[L, D]`."""
