"""The loss of a continuous prompt: task loss and distance to a target text (paper, section 3)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from wayward_jax.batching import Batch


def prediction_losses(
    module: nn.Module, params: dict, prompts: jax.Array, prompt_mask: jax.Array, batch: Batch
) -> jax.Array:
    """What every predicted token adds to its continuation's mean negative log-likelihood, in nats.

    Summed by `batch.score` these are the scores of the paper: the mean over the tokens from the
    first at which the labels differ to EOS. Logits exist only where a token is predicted.

    Args:
        module: a `CausalLM`.
        params: its frozen weights.
        prompts: `[R, L, D]` float32.
        prompt_mask: `[R, L]` bool, False where a prompt is padded.
        batch: rows of `[R, N, S]`.

    Returns:
        `[R, N, K]` float32; 0 for unused predictions.
    """
    table = module.apply(params, method="table")
    hidden = module.apply(params, prompts, table[batch.ids], batch.layout(prompt_mask))
    at = jnp.take_along_axis(hidden, batch.source[..., None], axis=2)
    logits = module.apply(params, at, method="logits")
    likely = jnp.take_along_axis(logits, batch.target[..., None], axis=3)[..., 0]
    return (jax.nn.logsumexp(logits, axis=-1) - likely) * batch.weight


def distance(prompts: jax.Array, targets: jax.Array, prompt_mask: jax.Array) -> jax.Array:
    """`mean_i ||p_i - t_i||^2`: summed over the D dimensions, averaged over the prompt's tokens.

    Args:
        prompts: `[R, L, D]`.
        targets: `[R, L, D]` embeddings of the targets, `c_proj(target)`.
        prompt_mask: `[R, L]` bool.

    Returns:
        `[R]`.
    """
    squared = jnp.square(prompts - targets).sum(axis=-1)
    return jnp.where(prompt_mask, squared, 0).sum(axis=1) / prompt_mask.sum(axis=1)
