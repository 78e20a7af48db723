"""Which runs are tuned together, and in what shapes (NumPy, on the host).

The runs of a population take their steps together. At each step their prompts and examples fill
rows, which are divided among packs. The rows of a pack go through the model at once: enough tokens
to keep the device busy, few enough for its memory.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from wayward_jax.packing import needed_shapes
from wayward_jax.rows import row_sizes
from wayward_jax.runs import Run
from wayward_jax.shapes import GRAIN, PackedShape, choose_shapes, first_fitting
from wayward_jax.training.calls import (
    STEPS_TOGETHER,
    Train,
    divide_prompt_lengths,
    divide_segments,
    draw_orders,
)
from wayward_jax.training.population import PopulationPlan, calls_between

# Every shape is compiled. A few shapes waste little, and take little time to compile.
MAX_SHAPES = 4

# A pack may have this many times the tokens that are asked for. Few packs divide rows more evenly.
MAX_OVERFULL = 1.25

# The lengths of rows are chosen for so many steps of one population of each task. The other
# populations of the task are like it.
SAMPLE_STEPS = 100

# The most steps in one call of the training program. The packs of a call have one shape, so many
# steps a call leave more slots unused.
MAX_STEPS_PER_CALL = 5

# A call takes about this part of a step's time beside the steps themselves.
CALL_COST = 0.025


def plan_populations(
    train: Mapping[str, Train],
    runs: Sequence[Run],
    *,
    population: int | None,
    pack_tokens: int,
    mesh: Mesh,
    num_evals: int = 4,
    row_grain: int = GRAIN,
) -> list[PopulationPlan]:
    """Groups runs of one model into populations.

    The runs of a population share the task, the number of steps, the batch size, the optimizer, and
    how examples are made. They may differ in everything else, in k-shot samples too. (Samples of
    all examples have large dev sets, each of which is scored for all runs, so those samples stay
    apart.)

    Populations that share the number of steps, the batch size and the optimizer share their
    programs, whatever their tasks are: as many places for runs, and packs of the same few shapes. A
    population of long texts has fewer runs. Every population has short and long prompts alike.

    Args:
        train: for each task, the training examples for each data seed of its runs.
        runs: in any order; those of a task together.
        population: the most runs to tune at once; None means one pack for every run shard.
        pack_tokens: about how many tokens go through the model at once.
        mesh: see `sharding.AXES`.
        num_evals: how often runs are evaluated, at equal distances.
        row_grain: see `rows.row_sizes`.
    """
    plans = [
        plan
        for groups in _group(runs)
        for plan in _plan_alike(train, groups, population, pack_tokens, mesh, num_evals, row_grain)
    ]
    tasks = list(dict.fromkeys(run.task for run in runs))
    return sorted(plans, key=lambda plan: tasks.index(plan.runs[0].task))


def most_at_once(runs: Sequence[Run], population: int | None) -> int:
    """The most runs that `plan_populations` would tune together if memory did not matter."""
    most = max((len(group) for groups in _group(runs) for group in groups), default=0)
    return most if population is None else min(most, population)


def _group(runs: Sequence[Run]) -> list[list[list[Run]]]:
    """Groups the runs that share programs, and among these the ones that can be tuned together."""
    groups: dict[tuple, dict[tuple, list[Run]]] = {}
    for run in runs:
        programs = (run.steps, run.batch_size, run.optimizer, run.warmup, run.weight_decay)
        data_seed = run.data_seed if run.k_shot < 0 else None
        examples = (run.task, run.method, run.template, run.k_shot, data_seed)
        groups.setdefault(programs, {}).setdefault(examples, []).append(run)
    return [list(alike.values()) for alike in groups.values()]


def _plan_alike(
    train: Mapping[str, Train],
    groups: Sequence[Sequence[Run]],
    population: int | None,
    pack_tokens: int,
    mesh: Mesh,
    num_evals: int,
    row_grain: int,
) -> list[PopulationPlan]:
    """`plan_populations` of runs that can share programs, in groups that can be tuned together."""
    lengths = [
        np.concatenate([train[group[0].task][seed].sizes[:, 0] for seed in _data_seeds(group)])
        for group in groups
    ]
    divided = _divide(groups, lengths, population, pack_tokens, mesh, num_evals)
    plans = [plan for of_group in divided for plan in of_group]
    first, steps = plans[0], groups[0][0].steps
    slots = row_sizes(first.prompt_length, max(int(own.max()) for own in lengths), row_grain)
    sample = _demands(train, [own[0] for own in divided], slots, min(steps, SAMPLE_STEPS))
    shapes, _ = choose_shapes(sample.reshape(len(slots), -1, 5), MAX_SHAPES)
    row_slots = sorted({shape.slots for shape in shapes})
    demands = _demands(train, plans, row_slots, steps)
    steps_per_call, shapes = _choose_calls(demands, first.eval_steps)
    by_call = _by_call(demands, first.eval_steps, steps_per_call)
    call_shapes = first_fitting(shapes, by_call.reshape(len(row_slots), -1, 5))
    return [
        dataclasses.replace(
            plan, steps_per_call=steps_per_call, shapes=shapes, call_shapes=tuple(own.tolist())
        )
        for plan, own in zip(plans, call_shapes.reshape(len(plans), -1), strict=True)
    ]


def _divide(
    groups: Sequence[Sequence[Run]],
    lengths: Sequence[np.ndarray],
    population: int | None,
    pack_tokens: int,
    mesh: Mesh,
    num_evals: int,
) -> list[list[PopulationPlan]]:
    """The populations of each group, of equal numbers of places and packs, without their shapes.

    `lengths` are those of each group's training examples, in tokens.
    """
    run_shards, data_shards = mesh.shape["runs"], mesh.shape["data"]
    batch_size, steps = groups[0][0].batch_size, groups[0][0].steps
    # Of one run of each group: tokens of a step on a data shard.
    tokens = [
        own.mean() * batch_size / data_shards + np.mean([run.input_length for run in group])
        for own, group in zip(lengths, groups, strict=True)
    ]
    counts = np.array([len(group) for group in groups])
    in_packs = np.array([max(1, round(pack_tokens / each)) for each in tokens]) * run_shards
    if population is not None:
        # As many packs as the runs with the shortest texts need. Fewer runs have longer texts.
        at_once = -(-min(population, int(counts.max())) // run_shards)
        packs = math.ceil(at_once * min(tokens) / (MAX_OVERFULL * pack_tokens))
        room = [packs * MAX_OVERFULL * pack_tokens / each for each in tokens]
        of_shard = np.clip(np.floor(np.array(room) + 1e-6), 1, at_once).astype(int)
        in_packs = np.minimum(population, of_shard * run_shards)
    n_populations = -(-counts // in_packs)
    per_shard = -(-counts // (n_populations * run_shards))
    runs_per_shard = int(per_shard.max())
    packs = max(
        math.ceil(runs * each / (MAX_OVERFULL * pack_tokens))
        for runs, each in zip(per_shard, tokens, strict=True)
    )
    groups = [sorted(group, key=lambda run: run.input_length) for group in groups]
    shared = {
        "prompt_length": max(group[-1].input_length for group in groups),
        "run_shards": run_shards,
        "data_shards": data_shards,
        "packs_per_shard": min(packs, runs_per_shard),
        "runs_per_shard": runs_per_shard,
        "eval_steps": tuple(
            sorted({max(1, round(steps * (i + 1) / num_evals)) for i in range(num_evals)})
        ),
    }
    return [
        [PopulationPlan(_dealt(group[i::count], run_shards), **shared) for i in range(count)]
        for group, count in zip(groups, n_populations, strict=True)
    ]


def _dealt(runs: Sequence[Run], shards: int) -> tuple[Run, ...]:
    """Deals sorted runs to shards, so that each has short and long prompts."""
    return tuple(run for shard in range(shards) for run in runs[shard::shards])


def _data_seeds(runs: Sequence[Run]) -> set[int]:
    return {run.data_seed for run in runs}


def _choose_calls(
    demands: np.ndarray, eval_steps: Sequence[int]
) -> tuple[int, tuple[PackedShape, ...]]:
    """Chooses the steps of a call, and a few shapes of packs, one of which fits each call.

    Args:
        demands: `[C, populations, steps, 5]`, from `_demands`.
        eval_steps: steps at which a call must end.
    """
    longest = int(np.diff(eval_steps, prepend=0).max())
    found = {}
    for steps in range(1, min(MAX_STEPS_PER_CALL, longest) + 1):
        by_call = _by_call(demands, eval_steps, steps)
        weights = np.tile(
            [end - begin for begin, end in calls_between(eval_steps, steps)], len(demands[0])
        )
        shapes, cost = choose_shapes(by_call.reshape(len(demands), -1, 5), MAX_SHAPES, weights)
        found[steps] = shapes, cost * (1 + CALL_COST * by_call.shape[2] / eval_steps[-1])
    steps = min(found, key=lambda steps: found[steps][1])
    return steps, found[steps][0]


def _by_call(demands: np.ndarray, eval_steps: Sequence[int], steps_per_call: int) -> np.ndarray:
    """What the calls need: `[C, populations, calls, 5]`; arguments as for `_choose_calls`."""
    firsts = [begin for begin, _ in calls_between(eval_steps, steps_per_call)]
    return np.maximum.reduceat(demands, firsts, axis=2)


def _demands(
    train: Mapping[str, Train],
    plans: Sequence[PopulationPlan],
    row_slots: Sequence[int],
    steps: int,
) -> np.ndarray:
    """The `needed_shapes` of the first steps with rows of each of C lengths.

    Returns:
        `[C, populations, steps, 5]`, in which all shards have room.
    """
    return np.stack(
        [_demand(train[plan.runs[0].task], plan, row_slots, steps) for plan in plans], axis=1
    )


def _demand(train: Train, plan: PopulationPlan, row_slots: Sequence[int], steps: int) -> np.ndarray:
    """See `_demands`: `[C, steps, 5]`."""
    segments, orders = draw_orders(train, plan)

    def needed(first: int, slots: int) -> np.ndarray:
        some = orders[:, first : min(first + STEPS_TOGETHER, steps)]
        of_shards = needed_shapes(
            segments,
            divide_segments(plan, some),
            divide_prompt_lengths(plan, some.shape[1]),
            slots,
            plan.packs_per_shard,
        )
        return of_shards.reshape(some.shape[1], -1, 5).max(axis=1)

    firsts = range(0, steps, STEPS_TOGETHER)
    return np.stack(
        [np.concatenate([needed(first, slots) for first in firsts]) for slots in row_slots]
    )
