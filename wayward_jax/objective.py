"""The loss of a continuous prompt: task loss and distance to a target text (paper, section 3)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from wayward_jax.packing import PackedBatch
from wayward_jax.projection import c_proj


def losses(
    module: nn.Module,
    params: dict[str, Any],
    prompts: jax.Array,
    batch: PackedBatch,
    target_ids: jax.Array,
    gamma: ArrayLike,
    bos_ids: Sequence[int] = (),
) -> jax.Array:
    """The losses that the paper minimizes, of R prompts on their own examples (section 3).

    The trainer minimizes the same sum but differentiates its two terms apart: the task loss is a
    sum over packs and data shards, and the distance is computed once.

    Args:
        module: a `CausalLM`.
        params: its frozen weights.
        prompts: `[R, L, D]` float32.
        batch: examples of the R runs with their gold labels. A prompt has `len(bos_ids)` vectors
            more there.
        target_ids: `[R, L]` int32.
        gamma: `[R]` or `[]`.
        bos_ids: tokens that stand before each prompt.

    Returns:
        `[R]` float32, nats a token plus gamma times squared distance.
    """
    mask = jnp.ones(prompts.shape[:2], bool)
    table = module.apply(params, method="embedding_table")
    targets, bos = c_proj(table, target_ids), c_proj(table, jnp.asarray(bos_ids, jnp.int32))
    before = jnp.broadcast_to(bos, (len(prompts), *bos.shape))
    inputs = jnp.concatenate([before, prompts], axis=1)
    summed, examples = summed_losses(module, params, inputs, batch)
    task_loss = summed / jnp.maximum(examples, 1)
    return task_loss + gamma * distance(prompts, targets, mask)


def summed_losses(
    module: nn.Module, params: dict[str, Any], prompts: jax.Array, batch: PackedBatch
) -> tuple[jax.Array, jax.Array]:
    """Sums the losses of each run's examples, and counts them: `[R]` float32 each.

    The examples have their gold labels alone. A label's probability is the sum over its words, so
    the loss of an example is `-log sum_w exp(-nll_w)`. The arguments are those of
    `prediction_losses`.
    """
    shares = prediction_losses(module, params, prompts, batch)
    finite = jnp.isfinite(shares)
    losses, starts = _label_losses(jnp.where(finite, shares, 0), batch)
    own = batch.prediction_runs() == jnp.arange(len(prompts))[:, None]  # [R, K]
    summed = jnp.where(own, losses, 0).sum(axis=1)
    # Masked, not multiplied: the NaN of a diverged run must stay its own.
    diverged = (own & ~finite).any(axis=1)
    return jnp.where(diverged, jnp.nan, summed), (own & starts).sum(axis=1).astype(jnp.float32)


def _label_losses(shares: jax.Array, batch: PackedBatch) -> tuple[jax.Array, jax.Array]:
    """The share of each predicted token in its label's loss `-log sum_w exp(-nll_w)`.

    With `q_w` for the share of a word in its label's probability, that loss is
    `sum_w q_w (nll_w + log q_w)`, and its gradient is `sum_w q_w` times that of `nll_w`. So `q` is
    a constant for the gradient. It is exactly 1 for the only word of a label.

    Args:
        shares: `[K]`, finite, from `prediction_losses`.
        batch: the examples. Predictions of an example stand together, and so do those of a word.

    Returns:
        `[K]` float32, whose sum over an example is its loss, and `[K]` bool, where an example
        starts.
    """
    used = jnp.asarray(batch.weight) > 0
    segment = jnp.ravel(batch.segment)[batch.query[batch.of]]
    starts = _changes(segment) | _changes(used)
    starts_word = starts | _changes(batch.score)
    example, word = jnp.cumsum(starts) - 1, jnp.cumsum(starts_word) - 1

    def summed(x: jax.Array, group: jax.Array) -> jax.Array:
        """Sums each group, and puts the sum wherever the group is."""
        return jax.ops.segment_sum(x, group, len(x), indices_are_sorted=True)[group]

    nll = summed(jax.lax.stop_gradient(shares), word)
    least = jax.ops.segment_min(nll, example, len(nll), indices_are_sorted=True)[example]
    total = summed(jnp.where(starts_word, jnp.exp(least - nll), 0), example)
    log_q = least - nll - jnp.log(total)
    q = jnp.exp(log_q)
    return q * shares + jnp.where(starts_word & used, q * log_q, 0), starts & used


def _changes(x: ArrayLike) -> jax.Array:
    """Tells where a value differs from the one before: `[K]` bool, True at the first."""
    x = jnp.asarray(x)
    return jnp.append(True, x[1:] != x[:-1])


def prediction_losses(
    module: nn.Module, params: dict[str, Any], prompts: jax.Array, batch: PackedBatch
) -> jax.Array:
    """The share of each predicted token in its continuation's mean NLL, in nats.

    Summed by `batch.score`, the shares are the losses of the paper's labels: a mean over the tokens
    from the first at which the labels differ to EOS. Logits are computed only where a token is
    predicted.

    Args:
        module: a `CausalLM`.
        params: its frozen weights.
        prompts: `[R, L, D]` float32, each as long as `batch.prompt_lengths` says.
        batch: examples of the R runs.

    Returns:
        `[K]` float32; 0 for unused predictions, and NaN where the prompt is not finite.
    """
    x = embed_batch(module, params, prompts, batch)
    mask = batch.attention_mask()
    hidden = module.apply(params, x, jnp.ravel(batch.positions), mask, batch.query)
    normalizers = module.apply(params, hidden, method="log_normalizers")
    chosen = module.apply(params, hidden[batch.of], batch.target, method="token_logits")
    nll = normalizers[batch.of] - chosen
    # Attention takes what is not finite for 0, so examples do not see that their prompt is broken.
    broken = ~(jnp.isfinite(prompts) | ~_own_vectors(prompts, batch)).all(axis=(1, 2))
    nll = jnp.where(broken[batch.prediction_runs()], jnp.nan, nll)
    return jnp.where(batch.weight > 0, nll * batch.weight, 0)


def embed_batch(
    module: nn.Module, params: dict[str, Any], prompts: jax.Array, batch: PackedBatch
) -> jax.Array:
    """Puts the prompts' vectors and the tokens' embeddings into the slots of a batch: `[T, D]`.

    The arguments are those of `prediction_losses`. The result has the dtype of the weights.
    """
    tokens = module.apply(params, jnp.ravel(batch.ids), method="embed_tokens")
    return _insert(prompts, tokens, batch)


@jax.custom_vjp
def _insert(prompts: jax.Array, tokens: jax.Array, batch: PackedBatch) -> jax.Array:
    """Puts each prompt `[R, L, D]` over `tokens` `[T, D]` wherever a copy of it stands.

    The gradient of a prompt is gathered from its copies. JAX would scatter it, which is slow and
    sums in no fixed order.
    """
    is_prompt = batch.is_prompt().ravel()
    run, vector = jnp.ravel(batch.run), jnp.ravel(batch.positions)
    vectors = prompts[jnp.where(is_prompt, run, 0), jnp.where(is_prompt, vector, 0)]
    return jnp.where(is_prompt[:, None], vectors.astype(tokens.dtype), tokens)


def _insert_forward(
    prompts: jax.Array, tokens: jax.Array, batch: PackedBatch
) -> tuple[jax.Array, tuple[Any, ...]]:
    return _insert(prompts, tokens, batch), (prompts, batch)


def _insert_backward(residuals: tuple[Any, ...], gradient: jax.Array) -> tuple[Any, ...]:
    prompts, batch = residuals
    slots = batch.copies[..., None] + jnp.arange(prompts.shape[1])  # [R, n, L]
    own = _own_vectors(prompts, batch)[:, None] & (batch.copies >= 0)[..., None, None]
    of_copies = jnp.where(own, gradient[jnp.where(own[..., 0], slots, 0)], 0)
    return of_copies.astype(prompts.dtype).sum(axis=1), None, None


_insert.defvjp(_insert_forward, _insert_backward)


def _own_vectors(prompts: jax.Array, batch: PackedBatch) -> jax.Array:
    """Tells the vectors of prompts from their padding: `[R, L, 1]` bool."""
    return (jnp.arange(prompts.shape[1]) < jnp.asarray(batch.prompt_lengths)[:, None])[..., None]


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
