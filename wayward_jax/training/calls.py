"""The examples of a population's steps, laid out in packs (NumPy, on the host)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from wayward_jax.packing import PackedBatch, pack_placed, place_segments
from wayward_jax.rows import fill_rows
from wayward_jax.segments import Segments, example_order
from wayward_jax.shapes import PackedShape
from wayward_jax.sharding import ALL_SHARDS, Shards
from wayward_jax.training.flops import StepCost, step_cost
from wayward_jax.training.population import PopulationPlan

# The rows of so many steps are filled together.
STEPS_TOGETHER = 100

Train = Mapping[int, Segments]
"""Training examples by the data seed of their sample."""


class Call(NamedTuple):
    """The examples of one call of the training program.

    Attributes:
        packs: as `step.train_steps` takes them, those of some shards.
        steps: that have examples; the rest of the n steps are not taken.
        cost: of all runs.
    """

    packs: PackedBatch
    steps: int
    cost: StepCost


def iter_calls(
    train: Train, plan: PopulationPlan, first: int = 0, shards: Shards = ALL_SHARDS
) -> Iterator[Call]:
    """Yields the calls from step `first` on, each made when it is asked for.

    Args:
        train: the task's training examples.
        plan: of the population.
        first: the first step of a call.
        shards: of which the packs are made.
    """
    segments, orders = draw_orders(train, plan)
    calls = [
        (begin, end, plan.shapes[number])
        for (begin, end), number in zip(plan.calls, plan.call_shapes, strict=True)
        if begin >= first
    ]
    together = max(1, STEPS_TOGETHER // plan.steps_per_call)
    for i in range(0, len(calls), together):
        yield from _lay_out(segments, orders, calls[i : i + together], plan, shards)


def _lay_out(
    segments: Segments,
    orders: np.ndarray,
    calls: Sequence[tuple[int, int, PackedShape]],
    plan: PopulationPlan,
    shards: Shards,
) -> Iterator[Call]:
    """Yields the calls of some steps, whose rows are filled together.

    Args:
        segments: from `draw_orders`.
        orders: from `draw_orders`.
        calls: the first step of each, the step after its last, and the shape of its packs.
        plan: of the population.
        shards: of which the packs are made.
    """
    numbers = np.stack(
        [
            divide_segments(plan, orders[:, begin:end], shards, plan.steps_per_call - (end - begin))
            for begin, end, _ in calls
        ]
    )
    lengths = divide_prompt_lengths(plan, plan.steps_per_call, shards)
    slots = np.array([shape.slots for _, _, shape in calls])
    starts, copies = np.empty((2, *numbers.shape), np.int64)
    for each in set(slots.tolist()):
        own = numbers[slots == each]
        filled = fill_rows(
            segments.lengths(own.reshape(-1, *own.shape[2:])),
            np.tile(lengths, (len(own), 1)),
            each,
        )
        starts[slots == each], copies[slots == each] = (x.reshape(own.shape) for x in filled)
    lengths = lengths.repeat(plan.packs_per_shard, axis=0)
    data_shards = len(range(plan.data_shards)[shards[1]])
    for i, (begin, end, shape) in enumerate(calls):
        placed = place_segments(numbers[i], starts[i], copies[i], shape.slots, plan.packs_per_shard)
        packs = pack_placed(segments, placed, lengths, shape)
        yield Call(
            jax.tree.map(lambda x: _by_shard(x, plan, data_shards), packs),
            end - begin,
            step_cost(
                segments,
                orders[plan.places, begin:end],
                [run.input_length for run in plan.runs],
            ),
        )


def _by_shard(x: np.ndarray, plan: PopulationPlan, data_shards: int) -> np.ndarray:
    """Sorts an array of all packs of a call into `[n, run shards * P, X, ...]`."""
    axes = plan.steps_per_call, -1, data_shards, plan.packs_per_shard
    split = x.reshape(*axes, *x.shape[1:]).swapaxes(2, 3)
    return split.reshape(axes[0], -1, data_shards, *x.shape[1:])


def draw_orders(train: Train, plan: PopulationPlan) -> tuple[Segments, np.ndarray]:
    """The segments of all samples, and those of each place at each step: `[places, steps, B]`.

    Places without a run have none: -1.
    """
    samples = [train[seed] for seed in plan.data_seeds]
    firsts = np.cumsum([0, *map(len, samples)])
    steps, batch_size = plan.runs[0].steps, plan.runs[0].batch_size
    orders = np.full((len(plan.padded_runs), steps, batch_size), -1, np.int32)
    drawn: dict[tuple[int, int], np.ndarray] = {}
    for place, run in zip(plan.places, plan.runs, strict=True):
        if (run.data_seed, run.seed) not in drawn:
            sample = plan.data_seeds.index(run.data_seed)
            order = example_order(len(samples[sample]), steps * batch_size, run.seed)
            drawn[run.data_seed, run.seed] = firsts[sample] + order.reshape(steps, batch_size)
        orders[place] = drawn[run.data_seed, run.seed]
    return Segments.concatenate(samples), orders


def divide_segments(
    plan: PopulationPlan, orders: np.ndarray, shards: Shards = ALL_SHARDS, empty: int = 0
) -> np.ndarray:
    """Divides the segments `[places, steps, B]` of some steps among the shards.

    Args:
        plan: of the population.
        orders: from `draw_orders`, of these steps.
        shards: those that are wanted.
        empty: steps without segments that are added at the end.

    Returns:
        `[steps * shards, R, B / X]`, -1 where a data shard has fewer.
    """
    _, steps, batch_size = orders.shape
    own = -(-batch_size // plan.data_shards)
    missing = ((0, 0), (0, empty), (0, own * plan.data_shards - batch_size))
    orders = np.pad(orders, missing, constant_values=-1)
    axes = plan.run_shards, plan.runs_per_shard, steps + empty, own, plan.data_shards
    by_shard = orders.reshape(axes).transpose(2, 0, 4, 1, 3)[:, *shards]
    return by_shard.reshape(-1, *by_shard.shape[3:])


def divide_prompt_lengths(
    plan: PopulationPlan, steps: int, shards: Shards = ALL_SHARDS
) -> np.ndarray:
    """The vectors of the prompts of R runs, for each shard at each step: `[steps * shards, R]`."""
    lengths = plan.prompt_lengths.reshape(plan.run_shards, 1, -1)
    axes = steps, plan.run_shards, plan.data_shards, plan.runs_per_shard
    return np.broadcast_to(lengths, axes)[:, *shards].reshape(-1, plan.runs_per_shard)
