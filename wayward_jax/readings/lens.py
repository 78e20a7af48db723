"""The logit lens (nostalgebraist, 2020) on the positions of a prompt.

The last norm and the output head of the model turn the hidden state of each position, at any layer,
into a distribution over tokens.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from wayward_jax.models import LanguageModel
from wayward_jax.models.causal_lm import CausalLM
from wayward_jax.readings.hidden import (
    likeliest_tokens,
    mask_of,
    masked_mean,
    negative_log_likelihood,
    prompt_states,
)
from wayward_jax.sharding import on_host


@dataclasses.dataclass(frozen=True)
class Lens:
    """Reads each position as the likeliest token after some layers.

    Attributes:
        layer: the number of layers that were computed: 0 is before the first, and the model's depth
            is after the last, where the lens gives the model's own prediction.
    """

    layer: int

    def __str__(self) -> str:
        return f"lens:{self.layer}"

    def read(
        self, model: LanguageModel, prompts: ArrayLike, mask: ArrayLike | None = None
    ) -> jax.Array:
        """See `readings.Method`; special tokens are left out as for nearest tokens."""
        return likeliest_tokens(_logits_of(model, prompts, self.layer), model.valid_tokens())

    def loss(
        self,
        model: LanguageModel,
        prompts: ArrayLike,
        targets: ArrayLike,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """See `readings.Method`: the mean negative log-likelihood of the target, nats a token."""
        nll = negative_log_likelihood(_logits_of(model, prompts, self.layer), targets)
        return masked_mean(nll, mask_of(prompts, mask))


def read_layers(model: LanguageModel, prompt: ArrayLike) -> np.ndarray:
    """Reads a prompt `[L, D]` at all layers in one program: `[depth + 1, L]` int32."""
    prompts = jnp.asarray(prompt)[None]
    ids = _read_layers(
        model.module, model.params, prompts, model.bos_ids, jnp.asarray(model.valid_tokens())
    )
    return on_host(ids)


def _logits_of(model: LanguageModel, prompts: ArrayLike, layer: int) -> jax.Array:
    return _logits(model.module, model.params, jnp.asarray(prompts), model.bos_ids, layer)


@functools.partial(jax.jit, static_argnames=("module", "bos_ids", "layer"))
def _logits(
    module: CausalLM,
    params: dict[str, Any],
    prompts: jax.Array,
    bos_ids: tuple[int, ...],
    layer: int,
) -> jax.Array:
    """Computes the logits of the prompts' positions after a layer: `[R, L, V]` float32."""
    states = prompt_states(module, params, prompts, bos_ids, layer)[-1]
    logits = module.apply(params, states.reshape(-1, states.shape[-1]), method="lens")
    return logits.reshape(*states.shape[:2], -1)


@functools.partial(jax.jit, static_argnames=("module", "bos_ids"))
def _read_layers(
    module: CausalLM,
    params: dict[str, Any],
    prompts: jax.Array,
    bos_ids: tuple[int, ...],
    valid: jax.Array,
) -> jax.Array:
    def read(states: jax.Array) -> jax.Array:
        return likeliest_tokens(module.apply(params, states, method="lens"), valid)

    return jax.lax.map(
        read, prompt_states(module, params, prompts, bos_ids, module.config.depth)[:, 0]
    )
