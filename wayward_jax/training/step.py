"""The population trainer: many prompts tuned at once over one frozen model.

Runs differ only in their prompts, so they stand on a leading axis and, a pack at a time, share
every matrix product. Each example's loss depends on its own run's prompt alone, so the gradient of
the summed losses holds every run's own exact gradient. Clipping, the optimiser and the freezing of
diverged runs are per run: one run is a population of one, and what else is in a population changes
nothing.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from wayward_jax.constraints import Cells, cell_exit, retract
from wayward_jax.objective import distance, summed_losses
from wayward_jax.packing import PackedBatch
from wayward_jax.projection import c_proj
from wayward_jax.sharding import BY_RUN

# The most that a gamma goes up to which is found on the way: more makes no difference, since
# gradients are clipped, and takes long to come down from.
MOST_GAMMA = 10.0

# It goes up so much faster than down, and not down any more when this share of the steps is left:
# a vector that leaves its cell late has little time to come back.
UP = 3.0
STAYING = 0.25


@struct.dataclass
class Population:
    """What each of R runs is tuned for.

    targets: `[R, L]` int32 token ids, padded at the end to the longest.
    mask: `[R, L]` bool, True on a run's own prompt length.
    learning_rate: `[R]` float32, at the first step; it falls linearly to 0.
    cells: what else holds prompts to their targets; None if nothing does in any run.
    """

    targets: jax.Array
    mask: jax.Array
    learning_rate: jax.Array
    cells: Cells | None = None


@struct.dataclass
class TuningState:
    """Where a population stands.

    prompts: `[R, L, D]` float32.
    gamma: `[R]` float32, weight of the distance term.
    optimizer: the optax state of every run, stacked.
    step: `[]` int32, steps taken.
    diverged_at: `[R]` int32, the step whose loss or gradient was not finite, from which on the
        run's prompt stays as it was; -1 for the others.
    """

    prompts: jax.Array
    gamma: jax.Array
    optimizer: optax.OptState
    step: jax.Array
    diverged_at: jax.Array


STATE_SPECS = TuningState(
    prompts=BY_RUN, gamma=BY_RUN, optimizer=BY_RUN, step=PartitionSpec(), diverged_at=BY_RUN
)


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


def start(prompts: jax.Array, gamma: jax.Array, steps: int) -> TuningState:
    """The state before the first of `steps` steps, from prompts `[R, L, D]` and gammas `[R]`."""
    return TuningState(
        prompts=prompts.astype(jnp.float32),
        gamma=gamma.astype(jnp.float32),
        optimizer=jax.vmap(prompt_optimizer(steps).init)(prompts.astype(jnp.float32)),
        step=jnp.zeros((), jnp.int32),
        diverged_at=jnp.full(len(prompts), -1, jnp.int32),
    )


@struct.dataclass
class Batches:
    """The examples of n steps, in packs of M runs each.

    The runs are shared out to the mesh's `runs`, a side each; a side computes P packs one after
    the other, and the examples of a run are dealt out to the mesh's X `data`.

    packs: `[n, sides * P, X, ...]`, all of one shape.
    members: `[n, sides * P, M]` int32, the runs of a pack, counted within their side. Every run of
        a side is in one of its packs.
    """

    packs: PackedBatch
    members: jax.Array


BATCH_SPECS = Batches(
    packs=PartitionSpec(None, "runs", "data"), members=PartitionSpec(None, "runs")
)


@functools.partial(jax.jit, static_argnames=("module", "steps", "mesh"), donate_argnames="state")
def tune(
    module: nn.Module,
    params: dict,
    population: Population,
    state: TuningState,
    batches: Batches,
    steps: int,
    mesh: jax.sharding.Mesh,
) -> tuple[TuningState, Losses]:
    """Takes n steps on the devices.

    Args:
        module: a `CausalLM`.
        params: its frozen weights.
        population: R runs.
        state: is given up (its buffers are reused).
        batches: each run's examples with their gold labels.
        steps: of the whole training, over which the learning rate falls.
        mesh: of axes `runs`, `data` and `model`. Runs never communicate; a run's gradient is
            summed over `data`, and what is sharded over `model` is the compiler's business.

    Returns:
        The state n steps later, and the losses on the way.
    """
    optimizer = prompt_optimizer(steps)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec(), BY_RUN, STATE_SPECS, BATCH_SPECS),
        out_specs=(STATE_SPECS, PartitionSpec(None, "runs")),
        axis_names={"runs", "data"},
        check_vma=False,
    )
    def tune_shard(
        params: dict, population: Population, state: TuningState, batches: Batches
    ) -> tuple[TuningState, Losses]:
        table = module.apply(params, method="embedding_table")
        targets = c_proj(table, population.targets)

        def pull(prompts: jax.Array, gamma: jax.Array) -> tuple[jax.Array, jax.Array]:
            far = distance(prompts, targets, population.mask)
            return (gamma * far).sum(), far

        def step(state: TuningState, batch: Batches) -> tuple[TuningState, Losses]:
            pulls, far = jax.grad(pull, has_aux=True)(state.prompts, state.gamma)
            summed = _summed_gradients(module, params, state.prompts, population.mask, batch)
            gradients, losses, examples = jax.lax.psum(summed, "data")
            task = losses / jnp.maximum(examples, 1)
            gradients = gradients / jnp.maximum(examples, 1)[:, None, None] + pulls
            gradients = jnp.where(population.mask[..., None], gradients, 0)
            updates, stepped = jax.vmap(optimizer.update)(gradients, state.optimizer, state.prompts)
            moved = state.prompts + population.learning_rate[:, None, None] * updates

            finite = jnp.isfinite(task + far) & jnp.isfinite(moved).all(axis=(1, 2))
            going_on = finite & (state.diverged_at < 0)
            moved, gamma = held(table, population, moved, state.gamma, 1 - state.step / steps)

            def keep(new: jax.Array, old: jax.Array) -> jax.Array:
                return jnp.where(going_on.reshape(-1, *[1] * (new.ndim - 1)), new, old)

            first = ~finite & (state.diverged_at < 0)
            state = TuningState(
                prompts=keep(moved, state.prompts),
                gamma=keep(gamma, state.gamma),
                optimizer=jax.tree.map(keep, stepped, state.optimizer),
                step=state.step + 1,
                diverged_at=jnp.where(first, state.step, state.diverged_at),
            )
            return state, Losses(task, far)

        return jax.lax.scan(step, state, batches)

    return tune_shard(params, population, state, batches)


def held(
    table: jax.Array, population: Population, prompts: jax.Array, gamma: jax.Array, left: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """What a population's cells make of a step: its prompts and gammas after it.

    Hard cells pull back what has left them. Otherwise a gamma may be found on the way, by a dual
    update: the Lagrange multiplier of the constraint that the prompt reads as its target goes up
    while a vector is outside its cell and down, by ever less, while all are inside. It comes from
    above, since a gamma that is too small for long leaves too few steps to get to the target.

    Args:
        table: `[V, D]`.
        population: R runs.
        prompts: `[R, L, D]`.
        gamma: `[R]`.
        left: the share of the steps that is still to come.
    """
    cells = population.cells
    if cells is None:
        return prompts, gamma
    table = table[: cells.vocab_size]
    within = cell_exit(table, population.targets, cells.nearest, prompts)
    back = retract(prompts, c_proj(table, population.targets), within, cells.share)
    hard = cells.hard[:, None] & population.mask
    outside = (cells.share[:, None] * within < 1) & population.mask
    change = cells.dual_rate * jnp.where(outside.any(axis=1), UP, -jnp.maximum(left - STAYING, 0))
    found = jnp.minimum(gamma * jnp.exp(change), MOST_GAMMA)
    gamma = jnp.where(cells.dual_rate > 0, found, gamma)
    return jnp.where(hard[..., None], back, prompts), gamma


def _summed_gradients(
    module: nn.Module, params: dict, prompts: jax.Array, prompt_mask: jax.Array, batch: Batches
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of one step, a pack after the other: gradients `[R, L, D]`, losses and examples `[R]`.

    All are sums over a run's examples. No run's loss depends on another's prompt, so the gradient
    of all losses together holds each run's own.
    """

    def of_pack(inputs: tuple[jax.Array, PackedBatch]) -> tuple[jax.Array, jax.Array, jax.Array]:
        members, packs = inputs
        pack = jax.tree.map(lambda x: x[0], packs)  # one of the X is this device's

        def total(prompts: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            losses, examples = summed_losses(module, params, prompts, prompt_mask[members], pack)
            return losses.sum(), (losses, examples)

        gradients, (losses, examples) = jax.grad(total, has_aux=True)(prompts[members])
        return gradients, losses, examples

    by_pack = jax.lax.map(of_pack, (batch.members, batch.packs))
    place = jnp.argsort(batch.members.ravel())  # of each run among the members of all packs
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[place], by_pack)
