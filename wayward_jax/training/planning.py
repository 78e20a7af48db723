"""Which runs are tuned together, and in what shapes (NumPy, on the host).

The runs of a population take their steps together. At each step their prompts and examples fill
rows, which are divided among packs. The rows of a pack go through the model at once: enough tokens
to keep the device busy, few enough for its memory.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh

from wayward_jax.packing import (
    GRAIN,
    PackedBatch,
    PackedShape,
    Segment,
    choose_shapes,
    example_order,
    needed_shapes,
    pack_segments,
    row_sizes,
    segment_sizes,
    sizes,
)
from wayward_jax.runs import Run

# Every shape is compiled. A few shapes waste little, and take little time to compile.
MAX_SHAPES = 4

# A pack may have this many times the tokens that are asked for. Few packs divide rows more evenly.
MAX_OVERFULL = 1.25

# The lengths of rows are chosen by so many steps of one population; all populations are alike.
SAMPLE_STEPS = 100

# The most steps in one call of the training program. The packs of a call have one shape, so many
# steps a call leave more slots unused.
MAX_STEPS_PER_CALL = 5

# A call takes about this part of a step's time beside the steps themselves.
CALL_COST = 0.025


@dataclasses.dataclass(frozen=True)
class PopulationPlan:
    """A population of runs and how it is computed.

    Attributes:
        runs: sorted by prompt length.
        prompt_length: L, of the array of all prompts, each of them with the vectors of BOS before
            it. Shorter prompts are padded there, and nowhere else.
        run_shards: parts of the mesh that have runs of their own.
        data_shards: X, parts of the mesh among which the examples of each run are divided.
        packs_per_shard: P, packs that a run shard computes one after the other.
        runs_per_shard: R, runs of a run shard.
        eval_steps: steps after which the runs are evaluated; the last is the last step.
        steps_per_call: n, steps in one call of the training program; it divides every eval step.
        shapes: of packs, sorted by cost.
    """

    runs: tuple[Run, ...]
    prompt_length: int
    run_shards: int
    data_shards: int
    packs_per_shard: int
    runs_per_shard: int
    eval_steps: tuple[int, ...]
    steps_per_call: int = 1
    shapes: tuple[PackedShape, ...] = ()

    @property
    def data_seeds(self) -> list[int]:
        """The seeds of the samples that the runs are tuned on, sorted."""
        return sorted({run.data_seed for run in self.runs})

    @property
    def prompt_lengths(self) -> np.ndarray:
        """The vectors of BOS and of each prompt, with those of `padded_runs`: `[R]`."""
        return np.array([run.input_length for run in self.padded_runs])

    @property
    def padded_runs(self) -> list[Run]:
        """One run for every place in the shards: the last run again where there are too few.

        The copies have no examples, so they cost next to nothing.
        """
        places = self.run_shards * self.runs_per_shard
        return [*self.runs, *[self.runs[-1]] * (places - len(self.runs))]

    def to_json(self) -> dict[str, Any]:
        """Plain values; runs by id."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **values,
            "runs": [run.id for run in self.runs],
            "shapes": [shape._asdict() for shape in self.shapes],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], runs: Mapping[str, Run]) -> Self:
        """The plan that `to_json` made `values` of.

        Args:
            values: from `to_json`.
            runs: by id.

        Raises:
            KeyError, TypeError: `values` are not of such a plan, or a run is missing.
        """
        return cls(
            **{
                **values,
                "runs": tuple(runs[run] for run in values["runs"]),
                "eval_steps": tuple(values["eval_steps"]),
                "shapes": tuple(PackedShape(**shape) for shape in values["shapes"]),
            }
        )


Train = Mapping[int, Sequence[Segment]]
"""Training examples by the data seed of their sample."""


def plan_populations(
    train: Train,
    runs: Sequence[Run],
    *,
    population: int | None,
    pack_tokens: int,
    mesh: Mesh,
    num_evals: int = 4,
    row_grain: int = GRAIN,
) -> list[PopulationPlan]:
    """Groups runs of one task into populations.

    The runs of a population share the number of steps, the batch size, the optimizer, and how
    examples are made. They may differ in everything else, in k-shot samples too. (Samples of all
    examples have large dev sets, each of which is scored for all runs, so those samples stay
    apart.) Every population has short and long prompts alike, so that all need the same shapes.

    Args:
        train: the task's training examples for each data seed of the runs.
        runs: in any order.
        population: the most runs to tune at once; None means one pack for every run shard.
        pack_tokens: about how many tokens go through the model at once.
        mesh: see `sharding.AXES`.
        num_evals: how often runs are evaluated, at equal distances.
        row_grain: see `packing.row_sizes`.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        shared = (
            *(run.steps, run.batch_size, run.method, run.template, run.k_shot),
            run.data_seed if run.k_shot < 0 else None,
            *(run.optimizer, run.warmup, run.weight_decay),
        )
        groups.setdefault(shared, []).append(run)
    return [
        plan
        for group in groups.values()
        for plan in _plan_group(
            _sizes(train, group), group, population, pack_tokens, mesh, num_evals, row_grain
        )
    ]


def iter_batches(train: Train, plan: PopulationPlan, first: int = 0) -> Iterator[PackedBatch]:
    """The packs of the calls from step `first` on, each made when it is asked for.

    `first` must be the first step of a call. The packs are as `step.train_steps` takes them.
    """
    orders = [_example_order(run, len(train[run.data_seed])) for run in plan.runs]
    shards = plan.prompt_lengths.reshape(plan.run_shards, -1)  # [run shards, R]

    def segments_of(run: int, step: int, part: int) -> list[Segment]:
        if run >= len(orders):
            return []
        segments = train[plan.runs[run].data_seed]
        return [segments[i] for i in orders[run][step, part :: plan.data_shards]]

    for begin in range(first, plan.runs[0].steps, plan.steps_per_call):
        axes = plan.steps_per_call, plan.run_shards, plan.data_shards
        parts = [
            [
                segments_of(shard * plan.runs_per_shard + run, begin + step, part)
                for run in range(plan.runs_per_shard)
            ]
            for step, shard, part in np.ndindex(axes)
        ]
        lengths = np.broadcast_to(shards[:, None], (*axes, plan.runs_per_shard))
        lengths = lengths.reshape(-1, plan.runs_per_shard)
        shape = _first_fitting(parts, lengths, plan)
        packed = pack_segments(parts, lengths, shape, plan.packs_per_shard)
        yield jax.tree.map(lambda x: _by_shard(x, plan), packed)


def _by_shard(x: np.ndarray, plan: PopulationPlan) -> np.ndarray:
    """Sorts an array of all packs of a call into `[n, run shards * P, X, ...]`."""
    axes = plan.steps_per_call, plan.run_shards, plan.data_shards, plan.packs_per_shard
    split = x.reshape(*axes, *x.shape[1:]).swapaxes(2, 3)
    return split.reshape(axes[0], -1, plan.data_shards, *x.shape[1:])


def _first_fitting(
    parts: Sequence[Sequence[Sequence[Segment]]], prompt_lengths: np.ndarray, plan: PopulationPlan
) -> PackedShape:
    """The first of the plan's shapes that all packs fit; `prompt_lengths` is `[parts, R]`."""
    segments = segment_sizes(parts)
    for shape in plan.shapes[:-1]:
        needed = needed_shapes(segments, prompt_lengths, shape.slots, plan.packs_per_shard)
        if (needed <= np.array(shape)).all():
            return shape
    return plan.shapes[-1]


def _sizes(train: Train, runs: Sequence[Run]) -> dict[int, np.ndarray]:
    """`packing.sizes` of the runs' training examples: `[E, 3]` by data seed."""
    return {seed: sizes(train[seed]) for seed in {run.data_seed for run in runs}}


def _plan_group(
    train: Mapping[int, np.ndarray],
    runs: Sequence[Run],
    population: int | None,
    pack_tokens: int,
    mesh: Mesh,
    num_evals: int,
    row_grain: int,
) -> list[PopulationPlan]:
    """`plan_populations` of runs that can be tuned together; `train` is from `_sizes`."""
    runs = sorted(runs, key=lambda run: run.input_length)
    run_shards, data_shards = mesh.shape["runs"], mesh.shape["data"]
    lengths = np.concatenate([each[:, 0] for each in train.values()])
    run_tokens = lengths.mean() * runs[0].batch_size / data_shards + runs[-1].input_length
    runs_per_pack = max(1, round(pack_tokens / run_tokens))

    most = population or runs_per_pack * run_shards
    n_groups = -(-len(runs) // most)
    size = -(-len(runs) // n_groups)
    runs_per_shard = -(-size // run_shards)
    packs = math.ceil(runs_per_shard * run_tokens / (MAX_OVERFULL * pack_tokens))
    packs = min(packs, runs_per_shard)
    steps = runs[0].steps
    eval_steps = sorted({max(1, round(steps * (i + 1) / num_evals)) for i in range(num_evals)})
    plans = [
        PopulationPlan(
            runs=tuple(runs[first::n_groups]),
            prompt_length=runs[-1].input_length,
            run_shards=run_shards,
            data_shards=data_shards,
            packs_per_shard=packs,
            runs_per_shard=runs_per_shard,
            eval_steps=tuple(eval_steps),
        )
        for first in range(n_groups)
    ]
    slots = row_sizes(runs[-1].input_length, int(lengths.max()), row_grain)
    sample = _demands(train, plans[:1], slots, SAMPLE_STEPS)
    shapes, _ = choose_shapes(sample.reshape(len(sample), -1, 5), MAX_SHAPES)
    row_slots = sorted({shape.slots for shape in shapes})
    steps_per_call, shapes = _choose_calls(_demands(train, plans, row_slots, steps), eval_steps)
    return [
        dataclasses.replace(plan, steps_per_call=steps_per_call, shapes=shapes) for plan in plans
    ]


def _choose_calls(
    demands: np.ndarray, eval_steps: Sequence[int]
) -> tuple[int, tuple[PackedShape, ...]]:
    """Chooses the steps of a call, and a few shapes of packs, one of which fits each call.

    Args:
        demands: `[C, steps of all populations, shards, 5]`, from `_demands`.
        eval_steps: steps at which a call must end.
    """
    found = {}
    for steps in range(1, MAX_STEPS_PER_CALL + 1):
        if not any(step % steps for step in eval_steps):
            by_call = demands.reshape(len(demands), -1, steps * demands.shape[2], 5)
            found[steps] = choose_shapes(by_call.max(axis=2), MAX_SHAPES)
    steps = min(found, key=lambda steps: found[steps][1] * (1 + CALL_COST / steps))
    return steps, found[steps][0]


def _demands(
    train: Mapping[int, np.ndarray],
    plans: Sequence[PopulationPlan],
    row_slots: Sequence[int],
    steps: int,
) -> np.ndarray:
    """`needed_shapes` of the packs of the first steps with rows of each of C lengths.

    Returns:
        `[C, steps of all populations, shards, 5]`, for each of the run and data shards.
    """
    return np.stack(
        [
            np.concatenate([_demand(train, plan, slots, steps) for plan in plans])
            for slots in row_slots
        ]
    )


def _demand(
    train: Mapping[int, np.ndarray], plan: PopulationPlan, slots: int, steps: int
) -> np.ndarray:
    """`needed_shapes` of the first steps of a population: `[steps, shards, 5]`."""
    orders = [_example_order(run, len(train[run.data_seed]))[:steps] for run in plan.runs]
    per_part = -(-orders[0].shape[1] // plan.data_shards)
    steps = len(orders[0])
    axes = steps, plan.run_shards, plan.data_shards, plan.runs_per_shard
    of_runs = np.zeros((*axes, per_part, 3), np.int64)
    for number, (run, order) in enumerate(zip(plan.runs, orders, strict=True)):
        shard, place = divmod(number, plan.runs_per_shard)
        for part in range(plan.data_shards):
            own = train[run.data_seed][order[:, part :: plan.data_shards]]
            of_runs[:, shard, part, place, : own.shape[1]] = own
    shards = plan.prompt_lengths.reshape(plan.run_shards, 1, -1)
    needed = needed_shapes(
        of_runs.reshape(-1, *of_runs.shape[3:]),
        np.broadcast_to(shards, axes).reshape(-1, plan.runs_per_shard),
        slots,
        plan.packs_per_shard,
    )
    return needed.reshape(steps, -1, 5)


def _example_order(run: Run, n_examples: int) -> np.ndarray:
    """The examples of each step: `[steps, B]`."""
    order = example_order(n_examples, run.steps * run.batch_size, run.seed)
    return order.reshape(run.steps, run.batch_size)
