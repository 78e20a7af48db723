"""Scoring examples under prompts: every label of every example in one pass (paper, section 3)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from wayward_jax.batching import Batch, fill_rows, to_batch, widths
from wayward_jax.encoded_task import EvaluationSet
from wayward_jax.models import LanguageModel
from wayward_jax.objective import label_scores

# Slots in a row where no single example needs more, and tokens computed at a time.
ROW_SLOTS = 256
TOKENS_AT_ONCE = 8192


def score(
    model: LanguageModel, prompts: jax.Array, mask: jax.Array, examples: EvaluationSet
) -> np.ndarray:
    """Mean negative log-likelihood of every label of every example under every prompt.

    The mean is over the tokens from the first at which the labels differ to EOS. A context is
    computed once for all labels.

    Args:
        model: the frozen model.
        prompts: `[R, L, D]`.
        mask: `[R, L]` bool, False where a prompt is padded.
        examples: E of them with C labels.

    Returns:
        `[R, E, C]` float32, nats a token.
    """
    longest = max(len(piece.ids) for piece in examples.pieces)
    rows = fill_rows(examples.pieces, max(ROW_SLOTS, longest))
    slots, predictions = widths(rows)
    at_once = max(1, TOKENS_AT_ONCE // (len(prompts) * slots))
    rows += [[]] * (-len(rows) % at_once)
    batch = to_batch(rows, slots, predictions)
    batches = jax.tree.map(lambda x: x.reshape(-1, at_once, x.shape[-1]), batch)
    n_scores = len(examples.labels) * examples.n_labels
    scores = _score(model.module, model.params, prompts, mask, batches, n_scores)
    return np.asarray(scores).reshape(len(prompts), -1, examples.n_labels)


def predict(
    model: LanguageModel, prompts: jax.Array, mask: jax.Array, examples: EvaluationSet
) -> np.ndarray:
    """The label of lowest score, the first of equals: `[R, E]` int. Arguments as for `score`."""
    return score(model, prompts, mask, examples).argmin(axis=-1)


@functools.partial(jax.jit, static_argnames=("module", "n_scores"))
def _score(
    module: nn.Module,
    params: dict,
    prompts: jax.Array,
    mask: jax.Array,
    batches: Batch,
    n_scores: int,
) -> jax.Array:
    """`[m, N, S]` batches to `[R, n_scores]`, the same rows behind every prompt."""
    runs = len(prompts)

    def add(scores: jax.Array, batch: Batch) -> tuple[jax.Array, None]:
        shared = jax.tree.map(lambda x: jnp.broadcast_to(x, (runs, *x.shape)), batch)
        return scores + label_scores(module, params, prompts, mask, shared, n_scores), None

    return jax.lax.scan(add, jnp.zeros((runs, n_scores)), batches)[0]
