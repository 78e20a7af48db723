"""The population trainer: many prompts tuned at once over one frozen model.

Runs differ only in their prompts, so they stand on a leading axis and share every matrix product.
Each example's loss depends on its own run's prompt alone, so the gradient of the summed losses
holds every run's own exact gradient. Clipping, the optimiser and the freezing of diverged runs
are per run: one run is a population of one, and what else is in a population changes nothing.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct

from wayward_jax.batching import Batch
from wayward_jax.objective import distance, prediction_losses
from wayward_jax.projection import c_proj


@struct.dataclass
class Population:
    """What each of R runs is tuned for.

    targets: `[R, L]` int32 token ids, padded at the end to the longest.
    mask: `[R, L]` bool, True on a run's own prompt length.
    gamma: `[R]` float32, weight of the distance term.
    learning_rate: `[R]` float32, at the first step; it falls linearly to 0.
    """

    targets: jax.Array
    mask: jax.Array
    gamma: jax.Array
    learning_rate: jax.Array


@struct.dataclass
class TuningState:
    """Where a population stands.

    prompts: `[R, L, D]` float32.
    optimizer: the optax state of every run, stacked.
    step: `[]` int32, steps taken.
    diverged_at: `[R]` int32, the step whose loss or gradient was not finite, from which on the
        run's prompt stays as it was; -1 for the others.
    """

    prompts: jax.Array
    optimizer: optax.OptState
    step: jax.Array
    diverged_at: jax.Array


@struct.dataclass
class Losses:
    """What the loss was made of at each of n steps: `[n, R]` float32, before each step's update."""

    task: jax.Array
    distance: jax.Array


def prompt_optimizer(steps: int) -> optax.GradientTransformation:
    """AdamW at a learning rate of 1, decaying linearly to 0 over `steps`, without weight decay.

    The gradient's norm is clipped to 1 first (the paper's code; Adam's own defaults otherwise).
    """
    schedule = optax.linear_schedule(1.0, 0.0, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.0))


def start(prompts: jax.Array, steps: int) -> TuningState:
    """The state before the first of `steps` steps, from prompts `[R, L, D]`."""
    return TuningState(
        prompts=prompts.astype(jnp.float32),
        optimizer=jax.vmap(prompt_optimizer(steps).init)(prompts.astype(jnp.float32)),
        step=jnp.zeros((), jnp.int32),
        diverged_at=jnp.full(len(prompts), -1, jnp.int32),
    )


def losses(
    module: nn.Module, params: dict, population: Population, prompts: jax.Array, batch: Batch
) -> Losses:
    """Task loss and distance of each run (paper, eq. 2), `[R]` each.

    The batch holds each run's examples with their gold labels alone. A weight is 1 over the number
    of a continuation's tokens, so the weights sum to the number of examples.
    """
    targets = c_proj(module.apply(params, method="table"), population.targets)
    nll = prediction_losses(module, params, prompts, population.mask, batch)
    task = nll.sum(axis=(1, 2)) / batch.weight.sum(axis=(1, 2))
    return Losses(task, distance(prompts, targets, population.mask))


@functools.partial(jax.jit, static_argnames=("module", "steps"), donate_argnames="state")
def tune(
    module: nn.Module,
    params: dict,
    population: Population,
    state: TuningState,
    batches: Batch,
    steps: int,
) -> tuple[TuningState, Losses]:
    """Takes n steps on the device, one a batch.

    Args:
        module: a `CausalLM`.
        params: its frozen weights.
        population: R runs.
        state: is given up (its buffers are reused).
        batches: `[n, R, N, S]`, each run's examples with their gold labels.
        steps: of the whole training, over which the learning rate falls.

    Returns:
        The state n steps later, and the losses on the way.
    """
    optimizer = prompt_optimizer(steps)

    def total(prompts: jax.Array, batch: Batch) -> tuple[jax.Array, Losses]:
        parts = losses(module, params, population, prompts, batch)
        return (parts.task + population.gamma * parts.distance).sum(), parts

    def step(state: TuningState, batch: Batch) -> tuple[TuningState, Losses]:
        gradients, parts = jax.grad(total, has_aux=True)(state.prompts, batch)
        gradients = jnp.where(population.mask[..., None], gradients, 0)
        updates, stepped = jax.vmap(optimizer.update)(gradients, state.optimizer, state.prompts)
        moved = state.prompts + population.learning_rate[:, None, None] * updates

        loss = parts.task + parts.distance
        finite = jnp.isfinite(loss) & jnp.isfinite(moved).all(axis=(1, 2))
        alive = finite & (state.diverged_at < 0)

        def keep(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(alive.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        state = TuningState(
            prompts=keep(moved, state.prompts),
            optimizer=jax.tree.map(keep, stepped, state.optimizer),
            step=state.step + 1,
            diverged_at=jnp.where(finite | (state.diverged_at >= 0), state.diverged_at, state.step),
        )
        return state, parts

    return jax.lax.scan(step, state, batches)
