"""The hidden states of the positions of prompts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from wayward_jax.models.causal_lm import CausalLM
from wayward_jax.projection import c_proj


def prompt_states(
    module: CausalLM,
    params: dict[str, Any],
    prompts: jax.Array,
    bos_ids: tuple[int, ...],
    layers: int,
) -> jax.Array:
    """Computes the hidden states of R prompts behind BOS: `[layers + 1, R, L, D]`.

    Attention is causal, so what stands after a prompt, its padding for instance, does not matter.

    Args:
        module: a `CausalLM`.
        params: its frozen weights.
        prompts: `[R, L, D]`.
        bos_ids: tokens that stand before each prompt.
        layers: the number of layers; 0 gives the inputs of the first layer alone.
    """
    runs, _, width = prompts.shape
    table = module.apply(params, method="embedding_table")
    bos = jnp.broadcast_to(c_proj(table, np.asarray(bos_ids, int)), (runs, len(bos_ids), width))
    rows = jnp.concatenate([bos, prompts], axis=1).astype(table.dtype)
    slots = rows.shape[1]
    states = module.apply(
        params,
        rows.reshape(-1, width),
        jnp.tile(jnp.arange(slots), runs),
        jnp.broadcast_to(jnp.tril(jnp.ones((slots, slots), bool)), (runs, slots, slots)),
        layers,
        method="hidden_states",
    )
    return states.reshape(layers + 1, runs, slots, width)[:, :, len(bos_ids) :]


def mask_of(prompts: ArrayLike, mask: ArrayLike | None) -> jax.Array:
    """Makes the mask `[R, L]` bool of prompts `[R, L, D]`; without one, all vectors count."""
    shape = jnp.shape(prompts)[:2]
    return jnp.ones(shape, bool) if mask is None else jnp.asarray(mask, bool)


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Averages `[..., L]` where the mask is True: `[...]`."""
    return jnp.where(mask, values, 0).sum(-1) / mask.sum(-1)


def likeliest_tokens(logits: jax.Array, valid: ArrayLike) -> jax.Array:
    """Finds the likeliest of the valid tokens (`[V]` bool): `[..., V]` -> `[...]` int32."""
    return jnp.where(valid, logits, -jnp.inf).argmax(-1).astype(jnp.int32)


def negative_log_likelihood(logits: jax.Array, targets: ArrayLike) -> jax.Array:
    """Computes the negative log-likelihood of tokens: `[..., V]`, `[...]` -> `[...]`, in nats."""
    ids = jnp.asarray(targets, jnp.int32)[..., None]
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, ids, axis=-1)[..., 0]
