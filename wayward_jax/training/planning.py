"""Which runs are tuned together, and in what shapes (NumPy, on the host).

The runs of a population take their steps together. At each step they are divided among packs, and
the tokens of a pack go through the model at once: enough tokens to keep the device busy, few enough
for its memory.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh

from wayward_jax.packing import (
    PackedShape,
    Segment,
    example_order,
    first_fit,
    pack_segments,
    padded,
    size_classes,
    sizes,
)
from wayward_jax.runs import Run
from wayward_jax.training.step import Batches

# Every size is compiled. A few sizes waste little, and take little time to compile.
MAX_LENGTH_CLASSES = 4
MAX_SHAPES = 3

# The most steps in one call of the training program. The packs of a call have one shape, so a call
# takes fewer steps where less than this share of its tokens would be real.
MAX_STEPS_PER_CALL = 5
MIN_REAL_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class PopulationPlan:
    """A population of runs and how it is computed.

    Attributes:
        runs: sorted by prompt length.
        prompt_length: L, to which all prompts are padded.
        run_shards: parts of the mesh that have runs of their own.
        data_shards: X, parts of the mesh among which the examples of each run are divided.
        packs_per_shard: P, packs that a run shard computes one after the other.
        runs_per_pack: M.
        eval_steps: steps after which the runs are evaluated; the last is the last step.
        steps_per_call: n, steps in one call of the training program; it divides every eval step.
        shapes: of packs, sorted by tokens.
    """

    runs: tuple[Run, ...]
    prompt_length: int
    run_shards: int
    data_shards: int
    packs_per_shard: int
    runs_per_pack: int
    eval_steps: tuple[int, ...]
    steps_per_call: int = 1
    shapes: tuple[PackedShape, ...] = ()

    @property
    def data_seeds(self) -> list[int]:
        """The seeds of the samples that the runs are tuned on, sorted."""
        return sorted({run.data_seed for run in self.runs})

    @property
    def padded_runs(self) -> list[Run]:
        """One run for every place in the packs: the last run again where there are too few.

        The copies have no examples, so they cost next to nothing.
        """
        places = self.run_shards * self.packs_per_shard * self.runs_per_pack
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
) -> list[PopulationPlan]:
    """Groups runs of one task into populations.

    The runs of a population share the number of steps, the batch size, the optimizer, and how
    examples are made. They may differ in everything else, in k-shot samples too. (Samples of all
    examples have large dev sets, each of which is scored for all runs, so those samples stay
    apart.) Runs of similar prompt length come together, because that saves padding.

    Args:
        train: the task's training examples for each data seed of the runs.
        runs: in any order.
        population: the most runs to tune at once; None means one pack for every run shard.
        pack_tokens: about how many tokens go through the model at once.
        mesh: see `sharding.AXES`.
        num_evals: how often runs are evaluated, at equal distances.
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
            _sizes(train, group), group, population, pack_tokens, mesh, num_evals
        )
    ]


def iter_batches(train: Train, plan: PopulationPlan, first: int = 0) -> Iterator[Batches]:
    """The batches of the calls from step `first` on, each made when it is asked for.

    `first` must be the first step of a call.
    """
    orders = [_example_order(run, len(train[run.data_seed])) for run in plan.runs]
    dealt = _deal_runs(_sizes(train, plan.runs), orders, plan)
    limits = [shape.tokens for shape in plan.shapes]

    def segments_of(run: int, step: int, part: int) -> list[Segment]:
        if run >= len(orders):
            return []
        segments = train[plan.runs[run].data_seed]
        return [segments[i] for i in orders[run][step, part :: plan.data_shards]]

    for begin in range(first, plan.runs[0].steps, plan.steps_per_call):
        runs = dealt[begin : begin + plan.steps_per_call]  # [n, run_shards * P, M]
        packs = [
            [segments_of(run, begin + step, part) for run in pack]
            for step, own in enumerate(runs)
            for pack in own
            for part in range(plan.data_shards)
        ]
        most = max(sum(len(s.ids) for run in pack for s in run) for pack in packs)
        shape = plan.shapes[int(np.searchsorted(limits, most))]
        packed = [pack_segments(pack, shape) for pack in packs]
        axes = (*runs.shape[:2], plan.data_shards)
        yield Batches(
            packs=jax.tree.map(lambda *x: np.stack(x).reshape(*axes, *x[0].shape), *packed),  # noqa: B023
            run_index=runs % (plan.packs_per_shard * plan.runs_per_pack),
        )


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
) -> list[PopulationPlan]:
    """`plan_populations` of runs that can be tuned together; `train` is from `_sizes`."""
    runs = sorted(runs, key=lambda run: run.prompt_length)
    run_shards, data_shards = mesh.shape["runs"], mesh.shape["data"]
    lengths = np.concatenate([each[:, 0] for each in train.values()])
    run_tokens = lengths.mean() * runs[0].batch_size / data_shards + runs[-1].prompt_length
    runs_per_pack = max(1, round(pack_tokens / run_tokens))

    most = population or runs_per_pack * run_shards
    size = -(-len(runs) // -(-len(runs) // most))
    groups = [tuple(runs[first : first + size]) for first in range(0, len(runs), size)]
    packs = -(-size // (runs_per_pack * run_shards))
    runs_per_pack = -(-size // (packs * run_shards))
    steps = runs[0].steps
    eval_steps = sorted({max(1, round(steps * (i + 1) / num_evals)) for i in range(num_evals)})
    prompts = np.array([group[-1].prompt_length for group in groups])
    classes = size_classes(prompts, MAX_LENGTH_CLASSES)
    of_length = [classes[np.searchsorted(classes, length)] for length in prompts]
    longest = int(lengths.max())
    plans = []
    for length in classes:
        alike = [
            PopulationPlan(
                runs=group,
                prompt_length=length,
                run_shards=run_shards,
                data_shards=data_shards,
                packs_per_shard=packs,
                runs_per_pack=runs_per_pack,
                eval_steps=tuple(eval_steps),
            )
            for group, own in zip(groups, of_length, strict=True)
            if own == length
        ]
        demand = np.stack([_demand(train, plan, longest) for plan in alike])
        steps_per_call, shapes = _choose_shapes(demand, eval_steps, longest)
        plans += [
            dataclasses.replace(plan, steps_per_call=steps_per_call, shapes=shapes)
            for plan in alike
        ]
    return plans


def _demand(train: Mapping[int, np.ndarray], plan: PopulationPlan, longest: int) -> np.ndarray:
    """`[steps, packs, 5]`: tokens, queries, predictions, rows, and the most rows of one run."""
    slots = int(padded(longest))
    orders = [_example_order(run, len(train[run.data_seed])) for run in plan.runs]
    dealt = _deal_runs(train, orders, plan)
    needed = np.zeros((len(plan.padded_runs), len(dealt), plan.data_shards, 4), np.int64)
    for number, (run, order) in enumerate(zip(plan.runs, orders, strict=True)):
        for part in range(plan.data_shards):
            own = train[run.data_seed][order[:, part :: plan.data_shards]]  # [steps, B / X, 3]
            rows = first_fit(own[:, :, 0], slots).max(axis=1) // slots + 1
            needed[number, :, part] = np.column_stack([own.sum(axis=1), rows])
    each = needed[dealt, np.arange(len(dealt))[:, None, None]]  # [steps, run_shards * P, M, X, 4]
    packs = np.concatenate([each.sum(axis=2), each[..., 3:].max(axis=2)], axis=-1)
    return packs.reshape(len(dealt), -1, 5)


def _choose_shapes(
    demand: np.ndarray, eval_steps: Sequence[int], longest: int
) -> tuple[int, tuple[PackedShape, ...]]:
    """Chooses the steps of a call, and a few shapes of packs, one of which fits each call.

    Args:
        demand: `[populations, steps, packs, 5]`, see `_demand`.
        eval_steps: steps at which a call must end.
        longest: tokens of the longest example.
    """
    demand = np.concatenate([padded(demand[..., :3]), demand[..., 3:]], axis=-1)
    for steps in range(MAX_STEPS_PER_CALL, 0, -1):
        if any(step % steps for step in eval_steps):
            continue
        by_call = demand.reshape(-1, steps * demand.shape[2], 5)
        most = by_call.max(axis=1)  # [calls, 5]
        classes = size_classes(most[:, 0], MAX_SHAPES)
        computed = np.take(classes, np.searchsorted(classes, most[:, 0])).sum() * by_call.shape[1]
        if steps == 1 or by_call[..., 0].sum() >= MIN_REAL_SHARE * computed:
            break
    shapes = []
    for tokens in classes:
        fitting = most[most[:, 0] <= tokens].max(axis=0).tolist()
        shapes.append(
            PackedShape(tokens, *fitting[1:4], most[:, 4].max().item(), int(padded(longest)))
        )
    return steps, tuple(shapes)


def _deal_runs(
    train: Mapping[int, np.ndarray], orders: Sequence[np.ndarray], plan: PopulationPlan
) -> np.ndarray:
    """The runs of every pack at every step: `[steps, run_shards * P, M]` int32.

    The runs of a shard, the one with the longest examples first, go to the packs in turn, forwards
    and backwards, so that packs are about equally long.

    Args:
        train: from `_sizes`.
        orders: `[steps, B]`, the examples of each run.
        plan: of the population.
    """
    tokens = np.zeros((len(orders[0]), len(plan.padded_runs)), np.int64)
    for number, (run, order) in enumerate(zip(plan.runs, orders, strict=True)):
        tokens[:, number] = train[run.data_seed][order, 0].sum(axis=1)
    by_shard = tokens.reshape(len(tokens), plan.run_shards, -1)
    ranked = np.argsort(-by_shard, axis=2, kind="stable")
    rounds = ranked.reshape(*by_shard.shape[:2], plan.runs_per_pack, plan.packs_per_shard)
    rounds[:, :, 1::2] = rounds[:, :, 1::2, ::-1].copy()
    first = np.arange(plan.run_shards)[:, None, None] * by_shard.shape[2]
    runs = rounds.swapaxes(2, 3) + first
    return runs.reshape(len(tokens), -1, plan.runs_per_pack).astype(np.int32)


def _example_order(run: Run, n_examples: int) -> np.ndarray:
    """The examples of each step: `[steps, B]`."""
    order = example_order(n_examples, run.steps * run.batch_size, run.seed)
    return order.reshape(run.steps, run.batch_size)
