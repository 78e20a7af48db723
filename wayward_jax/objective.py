"""The loss of a continuous prompt: task loss and distance to a target text (paper, section 3)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from wayward_jax.models.causal_lm import KVCache
from wayward_jax.packing import PackedBatch
from wayward_jax.projection import c_proj


def losses(
    module: nn.Module,
    params: dict[str, Any],
    prompts: jax.Array,
    batch: PackedBatch,
    target_ids: jax.Array,
    gamma: ArrayLike,
) -> jax.Array:
    """The losses that the paper minimizes, of R prompts on their own examples (section 3).

    The trainer minimizes the same sum but differentiates its two terms apart: the task loss is a
    sum over packs and data shards, and the distance is computed once.

    Args:
        module: a `CausalLM`.
        params: its frozen weights.
        prompts: `[R, L, D]` float32.
        batch: examples of the R runs with their gold labels.
        target_ids: `[R, L]` int32.
        gamma: `[R]` or `[]`.

    Returns:
        `[R]` float32, nats a token plus gamma times squared distance.
    """
    mask = jnp.ones(prompts.shape[:2], bool)
    targets = c_proj(module.apply(params, method="embedding_table"), target_ids)
    summed, examples = summed_losses(module, params, prompts, mask, batch)
    task_loss = summed / jnp.maximum(examples, 1)
    return task_loss + gamma * distance(prompts, targets, mask)


def prediction_losses(
    module: nn.Module,
    params: dict[str, Any],
    prompts: jax.Array,
    prompt_mask: jax.Array,
    batch: PackedBatch,
    kv_cache: KVCache | None = None,
) -> jax.Array:
    """The share of each predicted token in its continuation's mean NLL, in nats.

    Summed by `batch.score`, the shares are the losses of the paper's labels: a mean over the tokens
    from the first at which the labels differ to EOS. Logits are computed only where a token is
    predicted.

    Args:
        module: a `CausalLM`.
        params: its frozen weights.
        prompts: `[R, L, D]` float32; `[R, 0, D]` if `kv_cache` is given.
        prompt_mask: `[R, L]` bool, False where a prompt is padded.
        batch: examples of the R runs.
        kv_cache: the prompts' keys and values, from `CausalLM.prefill`.

    Returns:
        `[K]` float32; 0 for unused predictions.
    """
    layout = batch.layout(prompt_mask)
    hidden, _ = module.apply(params, prompts, batch.ids, layout, batch.query, kv_cache)
    logits = module.apply(params, hidden, method="logits")
    nll = jax.nn.logsumexp(logits, axis=-1)[batch.of] - logits[batch.of, batch.target]
    return jnp.where(batch.weight > 0, nll * batch.weight, 0)


def summed_losses(
    module: nn.Module,
    params: dict[str, Any],
    prompts: jax.Array,
    prompt_mask: jax.Array,
    batch: PackedBatch,
) -> tuple[jax.Array, jax.Array]:
    """The summed losses of each run's examples, and their number: `[R]` float32 each.

    The examples have their gold labels alone. The other arguments are those of `prediction_losses`.
    """
    losses = prediction_losses(module, params, prompts, prompt_mask, batch)
    own = batch.token_run()[batch.query[batch.of]] == jnp.arange(len(prompts))[:, None]  # [R, K]
    # Masked, not multiplied: the NaN of a diverged run must stay its own. A weight is 1 over the
    # number of a continuation's tokens, so the weights count the examples.
    return jnp.where(own, losses, 0).sum(axis=1), jnp.where(own, batch.weight, 0).sum(axis=1)


def distance(prompts: jax.Array, targets: jax.Array, prompt_mask: jax.Array) -> jax.Array:
    """`mean_i ||p_i - t_i||^2`: a sum over the D dimensions, a mean over the prompt's L vectors.

    Args:
        prompts: `[..., L, D]` float32.
        targets: `[..., L, D]` float32, the embeddings `c_proj(target)` of the targets.
        prompt_mask: `[..., L]` bool, False where a prompt is padded.

    Returns:
        `[...]` float32.
    """
    squared = jnp.square(prompts - targets).sum(axis=-1)
    return jnp.where(prompt_mask, squared, 0).sum(axis=-1) / prompt_mask.sum(axis=-1)
