"""Scoring examples under prompts: every label of every example in one pass (paper, section 3)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from wayward_jax.batching import Batch, fill_rows, to_batch, widths
from wayward_jax.encoded_task import EvaluationSet
from wayward_jax.models import LanguageModel
from wayward_jax.objective import prediction_losses

# Slots in a row where no single example needs more, and tokens computed at a time.
ROW_SLOTS = 128
TOKENS_AT_ONCE = 4096


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
    slots, predictions = widths(rows, of_slots=32, of_predictions=32)  # few programs to compile
    at_once = max(1, TOKENS_AT_ONCE // (len(prompts) * slots))
    rows += [[]] * (-len(rows) % at_once)
    parts = [
        to_batch(rows[first : first + at_once], slots, predictions)
        for first in range(0, len(rows), at_once)
    ]
    # All parts are under way before the first is waited for.
    nll = [_prediction_losses(model.module, model.params, prompts, mask, part) for part in parts]
    scores = np.zeros((len(prompts), len(examples.labels) * examples.n_labels), np.float32)
    for part, losses in zip(parts, nll, strict=True):
        np.add.at(scores, (slice(None), part.score), np.asarray(losses))
    return scores.reshape(len(prompts), -1, examples.n_labels)


def predict(
    model: LanguageModel, prompts: jax.Array, mask: jax.Array, examples: EvaluationSet
) -> np.ndarray:
    """The label of lowest score, the first of equals: `[R, E]` int. Arguments as for `score`."""
    return score(model, prompts, mask, examples).argmin(axis=-1)


@functools.partial(jax.jit, static_argnames="module")
def _prediction_losses(
    module: nn.Module, params: dict, prompts: jax.Array, mask: jax.Array, batch: Batch
) -> jax.Array:
    """`prediction_losses` of rows `[N, S]` that stand behind every prompt: `[R, N, K]`."""
    shared = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(prompts), *x.shape)), batch)
    return prediction_losses(module, params, prompts, mask, shared)
