"""Which runs are tuned together, and in what shapes (NumPy, on the host).

The runs of a population take their steps together. At each step their prompts and examples fill
rows, which are divided among packs. The rows of a pack go through the model at once: enough tokens
to keep the device busy, few enough for its memory.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jax.sharding import Mesh

from wayward_jax.packing import PackedBatch, needed_shapes, pack_placed, place_segments
from wayward_jax.rows import fill_rows, row_sizes
from wayward_jax.runs import Run
from wayward_jax.segments import Segments, example_order
from wayward_jax.shapes import GRAIN, PackedShape, choose_shapes, first_fitting
from wayward_jax.sharding import ALL_SHARDS, Shards
from wayward_jax.training.flops import StepCost, step_cost

# Every shape is compiled. A few shapes waste little, and take little time to compile.
MAX_SHAPES = 4

# A pack may have this many times the tokens that are asked for. Few packs divide rows more evenly.
MAX_OVERFULL = 1.25

# The rows of so many steps are filled together. So many steps of one population of each task also
# choose the lengths of rows; all populations are alike.
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
        runs: those of one run shard after another, each sorted by prompt length.
        prompt_length: L, of the array of all prompts, each of them with the vectors of BOS before
            it. Shorter prompts are padded there, and nowhere else.
        run_shards: parts of the mesh that have runs of their own.
        data_shards: X, parts of the mesh among which the examples of each run are divided.
        packs_per_shard: P, packs that a run shard computes one after the other.
        runs_per_shard: R, runs of a run shard.
        eval_steps: steps after which the runs are evaluated; the last is the last step.
        steps_per_call: n, the most steps in one call of the training program.
        shapes: of packs, sorted by cost.
        call_shapes: which of the shapes the packs of each call have.
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
    call_shapes: tuple[int, ...] = ()

    @property
    def calls(self) -> list[tuple[int, int]]:
        """The first step of each call of the training program, and the step after its last."""
        return _calls(self.eval_steps, self.steps_per_call)

    @property
    def data_seeds(self) -> list[int]:
        """The seeds of the samples that the runs are tuned on, sorted."""
        return sorted({run.data_seed for run in self.runs})

    @property
    def prompt_lengths(self) -> np.ndarray:
        """The vectors of BOS and of each prompt, with those of `padded_runs`: `[R]`."""
        return np.array([run.input_length for run in self.padded_runs])

    @property
    def places(self) -> np.ndarray:
        """The place of each run among those of all shards, which have about as many runs."""
        shards = np.array_split(np.arange(len(self.runs)), self.run_shards)
        return np.concatenate(
            [i * self.runs_per_shard + np.arange(len(own)) for i, own in enumerate(shards)]
        )

    def in_places(self, values: Sequence[Any], empty: Any) -> list[Any]:
        """Puts a value of each run into its place; the other places are `empty`."""
        found = [empty] * (self.run_shards * self.runs_per_shard)
        for place, value in zip(self.places.tolist(), values, strict=True):
            found[place] = value
        return found

    @property
    def padded_runs(self) -> list[Run]:
        """One run for every place in the shards: the last run again where there are too few.

        The copies have no examples, so they cost next to nothing.
        """
        return self.in_places(self.runs, self.runs[-1])

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
                "call_shapes": tuple(values["call_shapes"]),
            }
        )


Train = Mapping[int, Segments]
"""Training examples by the data seed of their sample."""


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
    segments, orders = _orders(train, plan)
    calls = [
        (begin, end, plan.shapes[number])
        for (begin, end), number in zip(plan.calls, plan.call_shapes, strict=True)
        if begin >= first
    ]
    together = max(1, SAMPLE_STEPS // plan.steps_per_call)
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
        segments: from `_orders`.
        orders: from `_orders`.
        calls: the first step of each, the step after its last, and the shape of its packs.
        plan: of the population.
        shards: of which the packs are made.
    """
    numbers = np.stack(
        [
            _numbers(plan, orders[:, begin:end], shards, plan.steps_per_call - (end - begin))
            for begin, end, _ in calls
        ]
    )
    lengths = _prompt_lengths(plan, plan.steps_per_call, shards)
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
    for i, (begin, end, shape) in enumerate(calls):
        placed = place_segments(numbers[i], starts[i], copies[i], shape.slots, plan.packs_per_shard)
        packs = pack_placed(segments, placed, lengths, shape)
        data_shards = len(range(plan.data_shards)[shards[1]])
        yield Call(
            jax.tree.map(lambda x, n=data_shards: _by_shard(x, plan, n), packs),
            end - begin,
            step_cost(
                segments,
                orders[plan.places, begin:end],
                [run.input_length for run in plan.runs],
            ),
        )


def _calls(eval_steps: Sequence[int], steps_per_call: int) -> list[tuple[int, int]]:
    """See `PopulationPlan.calls`. The step of an evaluation is the last of a call."""
    return [
        (first, min(first + steps_per_call, end))
        for begin, end in zip([0, *eval_steps[:-1]], eval_steps, strict=True)
        for first in range(begin, end, steps_per_call)
    ]


def _by_shard(x: np.ndarray, plan: PopulationPlan, data_shards: int) -> np.ndarray:
    """Sorts an array of all packs of a call into `[n, run shards * P, X, ...]`."""
    axes = plan.steps_per_call, -1, data_shards, plan.packs_per_shard
    split = x.reshape(*axes, *x.shape[1:]).swapaxes(2, 3)
    return split.reshape(axes[0], -1, data_shards, *x.shape[1:])


def _orders(train: Train, plan: PopulationPlan) -> tuple[Segments, np.ndarray]:
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


def _numbers(
    plan: PopulationPlan, orders: np.ndarray, shards: Shards = ALL_SHARDS, empty: int = 0
) -> np.ndarray:
    """Divides the segments `[places, steps, B]` of some steps among the shards.

    Args:
        plan: of the population.
        orders: from `_orders`, of these steps.
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


def _prompt_lengths(plan: PopulationPlan, steps: int, shards: Shards = ALL_SHARDS) -> np.ndarray:
    """The vectors of the prompts of R runs, for each shard at each step: `[steps * shards, R]`."""
    lengths = plan.prompt_lengths.reshape(plan.run_shards, 1, -1)
    axes = steps, plan.run_shards, plan.data_shards, plan.runs_per_shard
    return np.broadcast_to(lengths, axes)[:, *shards].reshape(-1, plan.runs_per_shard)


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
    groups = [sorted(group, key=lambda run: run.input_length) for group in groups]
    run_shards, data_shards = mesh.shape["runs"], mesh.shape["data"]
    prompt_length = max(group[-1].input_length for group in groups)
    lengths = [
        np.concatenate([train[group[0].task][seed].sizes[:, 0] for seed in _data_seeds(group)])
        for group in groups
    ]
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
    eval_steps = sorted({max(1, round(steps * (i + 1) / num_evals)) for i in range(num_evals)})
    plans = [
        PopulationPlan(
            runs=_dealt(group[first::count], run_shards),
            prompt_length=prompt_length,
            run_shards=run_shards,
            data_shards=data_shards,
            packs_per_shard=min(packs, runs_per_shard),
            runs_per_shard=runs_per_shard,
            eval_steps=tuple(eval_steps),
        )
        for group, count in zip(groups, n_populations, strict=True)
        for first in range(count)
    ]
    slots = row_sizes(prompt_length, max(int(own.max()) for own in lengths), row_grain)
    firsts = [plans[i] for i in np.cumsum(n_populations) - n_populations]  # one of each group
    sample = _demands(train, firsts, slots, min(steps, SAMPLE_STEPS))
    shapes, _ = choose_shapes(sample.reshape(len(slots), -1, 5), MAX_SHAPES)
    row_slots = sorted({shape.slots for shape in shapes})
    demands = _demands(train, plans, row_slots, steps)
    steps_per_call, shapes = _choose_calls(demands, eval_steps)
    by_call = _by_call(demands, eval_steps, steps_per_call)
    call_shapes = first_fitting(shapes, by_call.reshape(len(row_slots), -1, 5))
    return [
        dataclasses.replace(
            plan, steps_per_call=steps_per_call, shapes=shapes, call_shapes=tuple(own.tolist())
        )
        for plan, own in zip(plans, call_shapes.reshape(len(plans), -1), strict=True)
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
            [end - begin for begin, end in _calls(eval_steps, steps)], len(demands[0])
        )
        shapes, cost = choose_shapes(by_call.reshape(len(demands), -1, 5), MAX_SHAPES, weights)
        found[steps] = shapes, cost * (1 + CALL_COST * by_call.shape[2] / eval_steps[-1])
    steps = min(found, key=lambda steps: found[steps][1])
    return steps, found[steps][0]


def _by_call(demands: np.ndarray, eval_steps: Sequence[int], steps_per_call: int) -> np.ndarray:
    """What the calls need: `[C, populations, calls, 5]`; arguments as for `_choose_calls`."""
    firsts = [begin for begin, _ in _calls(eval_steps, steps_per_call)]
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
    segments, orders = _orders(train, plan)

    def needed(first: int, slots: int) -> np.ndarray:
        some = orders[:, first : min(first + SAMPLE_STEPS, steps)]
        of_shards = needed_shapes(
            segments,
            _numbers(plan, some),
            _prompt_lengths(plan, some.shape[1]),
            slots,
            plan.packs_per_shard,
        )
        return of_shards.reshape(some.shape[1], -1, 5).max(axis=1)

    firsts = range(0, steps, SAMPLE_STEPS)
    return np.stack(
        [np.concatenate([needed(first, slots) for first in firsts]) for slots in row_slots]
    )
