"""The loss of a continuous prompt: task loss and distance to a target text (paper, section 3)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from wayward_jax.models.causal_lm import KVCache
from wayward_jax.packing import PackedBatch


def prediction_losses(
    module: nn.Module,
    params: dict,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    pack: PackedBatch,
    kv_cache: KVCache | None = None,
) -> jax.Array:
    """What every predicted token adds to its continuation's mean negative log-likelihood, in nats.

    Summed by `pack.score` these are the scores of the paper: the mean over the tokens from the
    first at which the labels differ to EOS. Logits exist only where a token is predicted.

    Args:
        module: a `CausalLM`.
        params: its frozen weights.
        prompts: `[R, L, D]` float32; `[R, 0, D]` if `kv_cache` is given.
        prompt_mask: `[R, L]` bool, False where a prompt is padded.
        pack: examples of the R runs.
        kv_cache: what the module keeps of the prompts.

    Returns:
        `[K]` float32; 0 for unused predictions.
    """
    layout = pack.layout(prompt_mask)
    hidden, _ = module.apply(params, prompts, pack.ids, layout, pack.query, kv_cache)
    logits = module.apply(params, hidden, method="logits")
    nll = jax.nn.logsumexp(logits, axis=-1)[pack.of] - logits[pack.of, pack.target]
    return jnp.where(pack.weight > 0, nll * pack.weight, 0)


def summed_losses(
    module: nn.Module, params: dict, prompts: jax.Array, prompt_mask: jax.Array, pack: PackedBatch
) -> tuple[jax.Array, jax.Array]:
    """The summed losses of each run's examples, and their number: `[R]` float32 each.

    The examples come with their gold labels alone. Arguments as for `prediction_losses`.
    """
    losses = prediction_losses(module, params, prompts, prompt_mask, pack)
    own = pack.token_run()[pack.query[pack.of]] == jnp.arange(len(prompts))[:, None]  # [R, K]
    # Masked, not multiplied: the NaN of a diverged run must stay its own. A weight is 1 over the
    # number of a continuation's tokens, so the weights count the examples.
    return jnp.where(own, losses, 0).sum(axis=1), jnp.where(own, pack.weight, 0).sum(axis=1)


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
