"""The training step of a population: many prompts tuned at once over one frozen model.

The runs of a population differ only in their prompts. The prompts are stacked on a leading axis and
share, a pack at a time, every matrix product. An example's loss depends on its own run's prompt
alone, so the gradient of the summed losses contains every run's own exact gradient. Clipping, the
optimizer and the freezing of diverged runs are per run: one run is a population of one, and a run's
result does not depend on what else is in its population.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, PartitionSpec
from jax.typing import ArrayLike

from wayward_jax.constraints import Constraint, Target
from wayward_jax.objective import distance, summed_losses
from wayward_jax.projection import c_proj
from wayward_jax.sharding import BY_RUN


@struct.dataclass
class Population:
    """Everything that R runs are tuned with, apart from their examples.

    target_ids: `[R, L]` int32 tokens, after those of BOS and padded at the end to the longest.
    mask: `[R, L]` bool, True on the vectors of a run's own prompt, which alone are trained.
    learning_rate: `[R]` float32, the peak of each run's.
    constraint: `[R]` int32, which of `constraints` each run has.
    constraints: the constraints of all runs, each once.
    vocab_size: rows of the embedding table that can be read.
    """

    target_ids: jax.Array
    mask: jax.Array
    learning_rate: jax.Array
    constraint: jax.Array
    constraints: tuple[Constraint, ...] = struct.field(pytree_node=False)
    vocab_size: int = struct.field(pytree_node=False)


@struct.dataclass
class TrainState:
    """A population between two steps.

    prompts: `[R, L, D]` float32.
    constraint_states: the state of each of the population's constraints, `[R, ...]`.
    optimizer_state: the optax state of every run, `[R, ...]`.
    step: `[]` int32, steps taken.
    diverged_at: `[R]` int32, the step whose loss or gradient was not finite, from which on the
        run's prompt stays as it was; -1 for the others.
    """

    prompts: jax.Array
    constraint_states: tuple[Any, ...]
    optimizer_state: optax.OptState
    step: jax.Array
    diverged_at: jax.Array


STATE_SPECS = TrainState(
    prompts=BY_RUN,
    constraint_states=BY_RUN,
    optimizer_state=BY_RUN,
    step=PartitionSpec(),
    diverged_at=BY_RUN,
)


@struct.dataclass
class Losses:
    """The two parts of the loss at each of n steps, before its update: `[n, R]` float32 each.

    The task loss is NaN where the loss or the new prompt is not finite.
    """

    task: jax.Array
    distance: jax.Array


# The axes of the packs `[n, run shards * P, X, ...]` of n steps. A run shard computes P packs one
# after the other. The examples of a run are divided among X data shards.
BATCH_SPECS = PartitionSpec(None, "runs", "data")


Sums = tuple[jax.Array, jax.Array, jax.Array]
"""Gradients `[R, L, D]`, losses `[R]` and numbers of examples `[R]`."""

SumLosses = Callable[[nn.Module, dict[str, Any], jax.Array, Any], tuple[jax.Array, jax.Array]]
"""Sums the losses of each run's examples in a pack, and counts them, as `summed_losses` does."""

# All runs share the table and the weights.
TARGET_AXES = Target(ids=0, embeddings=0, mask=0, table=None, params=None)


def init_state(
    population: Population,
    table: jax.Array,
    prompts: jax.Array,
    optimizer: optax.GradientTransformation,
    *,
    gamma: ArrayLike,
    margin: ArrayLike,
    steps: int,
) -> TrainState:
    """The state before the first step; the prompts are projected by their constraints.

    Args:
        population: R runs.
        table: `[V, D]`, the model's embedding table.
        prompts: `[R, L, D]`, where the runs start.
        optimizer: of one prompt.
        gamma: `[R]`, of each run.
        margin: `[R]`, of each run.
        steps: of the whole training.
    """
    prompts = prompts.astype(jnp.float32)
    targets = embed_targets(population, table)
    gamma, margin = jnp.asarray(gamma, jnp.float32), jnp.asarray(margin, jnp.float32)
    states = tuple(
        jax.vmap(functools.partial(each.init, steps=steps), in_axes=(TARGET_AXES, 0, 0))(
            targets, gamma, margin
        )
        for each in population.constraints
    )
    prompts, _ = apply_constraints(population, targets, prompts, states, remaining=1.0)
    return TrainState(
        prompts=prompts,
        # Copies, because states may share arrays, and no buffer can be donated twice.
        constraint_states=jax.tree.map(jnp.copy, states),
        optimizer_state=jax.vmap(optimizer.init)(prompts),
        step=jnp.zeros((), jnp.int32),
        diverged_at=jnp.full(len(prompts), -1, jnp.int32),
    )


@functools.partial(
    jax.jit,
    static_argnames=("module", "optimizer", "steps", "mesh", "sum_losses"),
    donate_argnames="state",
)
def train_steps(
    module: nn.Module,
    params: dict,
    population: Population,
    state: TrainState,
    packs: Any,
    count: ArrayLike,
    optimizer: optax.GradientTransformation,
    steps: int,
    mesh: Mesh,
    sum_losses: SumLosses = summed_losses,
) -> tuple[TrainState, Losses]:
    """Takes up to n steps on the devices.

    Args:
        module: a `CausalLM`.
        params: its frozen weights.
        population: R runs.
        state: before the steps; its buffers are reused.
        packs: a pytree of each run's examples at n steps, see `BATCH_SPECS`; a `PackedBatch` with
            their gold labels, or what else `sum_losses` takes.
        count: of the n steps that are taken, at least 1. One program takes any number of them.
        optimizer: of one prompt. Its updates are multiplied by each run's learning rate.
        steps: of the whole training.
        mesh: of axes `runs`, `data` and `model`. Runs never communicate; a run's gradient is summed
            over `data`; the compiler distributes what is sharded over `model`.
        sum_losses: the task loss of the runs in a pack.

    Returns:
        The state after the steps, and the losses at them, NaN for those that are not taken.
    """
    end = state.step + count

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec(), BY_RUN, STATE_SPECS, BATCH_SPECS, PartitionSpec()),
        out_specs=(STATE_SPECS, PartitionSpec(None, "runs")),
        axis_names={"runs", "data"},
        check_vma=False,
    )
    def train_shard(
        params: dict, population: Population, state: TrainState, packs: Any, end: jax.Array
    ) -> tuple[TrainState, Losses]:
        table = module.apply(params, method="embedding_table")
        targets = embed_targets(population, table, params)

        def step(state: TrainState, packs: Any) -> tuple[TrainState, Losses]:
            # The loss is the task loss plus the constraint's penalty. Each is differentiated apart:
            # the task's gradient is a sum over packs and data shards, the penalty's is not.
            penalty_gradients = _penalty_gradients(
                state.prompts, population, targets, state.constraint_states
            )
            summed = _summed_gradients(sum_losses, module, params, state.prompts, packs)
            task_gradients, task_losses, examples = jax.lax.psum(summed, "data")
            task_losses = task_losses / jnp.maximum(examples, 1)
            task_gradients = task_gradients / jnp.maximum(examples, 1)[:, None, None]
            gradients = task_gradients + penalty_gradients
            gradients = jnp.where(population.mask[..., None], gradients, 0)

            updates, optimizer_state = jax.vmap(optimizer.update)(
                gradients, state.optimizer_state, state.prompts
            )
            updates = jnp.where(population.mask[..., None], updates, 0)
            new_prompts = state.prompts + population.learning_rate[:, None, None] * updates
            distances = distance(state.prompts, targets.embeddings, population.mask)
            finite = jnp.isfinite(task_losses + distances)
            finite &= jnp.isfinite(new_prompts).all(axis=(1, 2))
            new_prompts, constraint_states = apply_constraints(
                population, targets, new_prompts, state.constraint_states, 1 - state.step / steps
            )

            healthy = finite & (state.diverged_at < 0)

            def keep(new: jax.Array, old: jax.Array) -> jax.Array:
                return jnp.where(healthy.reshape(-1, *[1] * (new.ndim - 1)), new, old)

            diverges_now = ~finite & (state.diverged_at < 0)
            new_state = TrainState(
                prompts=keep(new_prompts, state.prompts),
                constraint_states=jax.tree.map(keep, constraint_states, state.constraint_states),
                optimizer_state=jax.tree.map(keep, optimizer_state, state.optimizer_state),
                step=state.step + 1,
                diverged_at=jnp.where(diverges_now, state.step, state.diverged_at),
            )
            return new_state, Losses(jnp.where(finite, task_losses, jnp.nan), distances)

        def skip(state: TrainState, packs: Any) -> tuple[TrainState, Losses]:
            nothing = jnp.full(len(state.prompts), jnp.nan)
            return state, Losses(nothing, nothing)

        def step_until_end(state: TrainState, packs: Any) -> tuple[TrainState, Losses]:
            return jax.lax.cond(state.step < end, step, skip, state, packs)

        return jax.lax.scan(step_until_end, state, packs)

    return train_shard(params, population, state, packs, end)


def embed_targets(
    population: Population, table: jax.Array, params: dict[str, Any] | None = None
) -> Target:
    """The targets of all runs, `[R, ...]`, from the model's embedding table `[V, D]`."""
    return Target(
        ids=population.target_ids,
        embeddings=c_proj(table, population.target_ids),
        mask=population.mask,
        table=table[: population.vocab_size],
        params=params,
    )


def apply_constraints(
    population: Population,
    targets: Target,
    prompts: jax.Array,
    states: tuple[Any, ...],
    remaining: ArrayLike,
) -> tuple[jax.Array, tuple[Any, ...]]:
    """Projects every prompt by its own run's constraint.

    Args:
        population: R runs.
        targets: theirs.
        prompts: `[R, L, D]`.
        states: of the population's constraints.
        remaining: `[]`, the fraction of the steps that is still to come.

    Returns:
        The prompts and the states after it.
    """
    projected, new_states = prompts, []
    for number, (constraint, state) in enumerate(zip(population.constraints, states, strict=True)):
        own, new_state = jax.vmap(constraint.project, in_axes=(0, 0, TARGET_AXES, None))(
            state, prompts, targets, remaining
        )
        mine = (population.constraint == number)[:, None, None] & population.mask[..., None]
        projected = jnp.where(mine, own, projected)
        new_states.append(new_state)
    return projected, tuple(new_states)


def _penalty_gradients(
    prompts: jax.Array, population: Population, targets: Target, states: tuple[Any, ...]
) -> jax.Array:
    """The gradient of each run's penalty: `[R, L, D]`. No run's depends on another's prompt."""
    total = jnp.zeros_like(prompts)
    for number, (constraint, state) in enumerate(zip(population.constraints, states, strict=True)):
        own = population.constraint == number
        total += _gradients_of_own(constraint, own, state, prompts, targets)
    return total


def _gradients_of_own(
    constraint: Constraint, own: jax.Array, state: Any, prompts: jax.Array, targets: Target
) -> jax.Array:
    """The gradients of one constraint's penalties, for its own runs (`[R]` bool): `[R, L, D]`.

    As many runs go through it together as it says, its own ones first; a chunk without any is left
    out.
    """
    gradients = jax.vmap(jax.grad(constraint.penalty, argnums=1), in_axes=(0, 0, TARGET_AXES))
    order = jnp.argsort(~own)
    chunks = _chunks(len(prompts), constraint.runs_at_once)

    def of_chunk(runs: tuple[Any, ...]) -> jax.Array:
        own, state, prompts, *rows = runs
        ids, embeddings, mask = rows
        of_runs = dataclasses.replace(targets, ids=ids, embeddings=embeddings, mask=mask)
        return jax.lax.cond(
            own.any(),
            lambda: jnp.where(own[:, None, None], gradients(state, prompts, of_runs), 0),
            lambda: jnp.zeros_like(prompts),
        )

    runs = (own, state, prompts, targets.ids, targets.embeddings, targets.mask)
    chunked = jax.tree.map(lambda x: x[order].reshape(chunks, -1, *x.shape[1:]), runs)
    found = jax.lax.map(of_chunk, chunked)
    return jnp.zeros_like(prompts).at[order].set(found.reshape(prompts.shape))


def _chunks(runs: int, at_once: int | None) -> int:
    """The least number of equally large chunks of at most `at_once` runs; None is all runs."""
    sizes = range(1, runs + 1)
    return next(n for n in sizes if runs % n == 0 and runs // n <= (at_once or runs))


def _summed_gradients(
    sum_losses: SumLosses, module: nn.Module, params: dict, prompts: jax.Array, packs: Any
) -> Sums:
    """Gradients `[R, L, D]`, losses `[R]` and numbers of examples `[R]` of one step.

    All are sums over a run's examples, computed a pack after the other. No run's loss depends on
    another's prompt, so the gradient of all losses together contains each run's own.
    """

    def add_pack(sums: Sums, packs: Any) -> tuple[Sums, None]:
        pack = jax.tree.map(lambda x: x[0], packs)  # this device's among the data shards

        def total(prompts: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            losses, examples = sum_losses(module, params, prompts, pack)
            return losses.sum(), (losses, examples)

        gradients, (losses, examples) = jax.grad(total, has_aux=True)(prompts)
        return jax.tree.map(jnp.add, sums, (gradients, losses, examples)), None

    none = jnp.zeros(len(prompts))
    sums, _ = jax.lax.scan(add_pack, (jnp.zeros_like(prompts), none, none), packs)
    return sums
