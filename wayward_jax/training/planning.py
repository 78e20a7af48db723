"""Which runs are tuned together, and in what shapes (NumPy, on the host).

Runs of a population take their steps together. Within it they are dealt out to packs, whose tokens
go through the model at once: large enough to keep the device busy, small enough for its memory.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

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

# Every size is compiled: a few of each waste little and do not take long.
MOST_LENGTHS = 4
MOST_SHAPES = 3

# The most steps taken in one go. Their packs have one shape, so fewer are taken where less than
# this share of the tokens would be real.
CHUNK = 5
FILLED = 0.9


@dataclasses.dataclass(frozen=True)
class Plan:
    """A population and how it is computed.

    Attributes:
        runs: its runs, by rising prompt length.
        prompt_length: L, to which their prompts are padded.
        sides: parts of the mesh that have their own runs.
        data: X, to which the examples of each run are dealt out.
        packs: P, of each side.
        runs_per_pack: M, of each pack.
        stops: the steps after which the runs are measured; the last is the last step.
        chunk: n, steps taken in one go, in packs of one shape; it divides every stop.
        shapes: that packs come in, by rising tokens.
    """

    runs: tuple[Run, ...]
    prompt_length: int
    sides: int
    data: int
    packs: int
    runs_per_pack: int
    stops: tuple[int, ...]
    chunk: int = 1
    shapes: tuple[PackedShape, ...] = ()

    @property
    def data_seeds(self) -> list[int]:
        """Of the samples of examples that the runs are tuned on, rising."""
        return sorted({run.data_seed for run in self.runs})

    @property
    def padded_runs(self) -> list[Run]:
        """As many runs as there are places in packs: the last one again where there are fewer.

        Those have no examples, so they hardly cost anything.
        """
        places = self.sides * self.packs * self.runs_per_pack
        return [*self.runs, *[self.runs[-1]] * (places - len(self.runs))]


Train = Mapping[int, Sequence[Segment]]
"""Training examples by the data seed that they were chosen with."""


def plan(
    train: Train,
    runs: Sequence[Run],
    *,
    population: int | None,
    pack_tokens: int,
    mesh: Mesh,
    points: int = 4,
) -> list[Plan]:
    """Groups runs of one task into populations.

    The runs of a population share the number of steps, the batch size and how examples are made;
    the rest differs as it may, k-shot samples too. (Samples of all examples have large dev sets,
    each of which is scored for all runs, so those stay apart.) Runs of like prompt length stand
    together, which saves padding.

    Args:
        train: the task's training examples, of each data seed of the runs.
        runs: in any order.
        population: the most runs to tune at once; None is one pack for every side of the mesh.
        pack_tokens: about how many tokens go through the model at once.
        mesh: see `mesh.AXES`; runs and examples are dealt out to it.
        points: how often runs are measured on their way, equally far apart.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        sample = run.data_seed if run.k_shot < 0 else None
        shared = (run.steps, run.batch_size, run.method, run.template, run.k_shot, sample)
        groups.setdefault(shared, []).append(run)
    return [
        plan
        for group in groups.values()
        for plan in _plans(_sizes(train, group), group, population, pack_tokens, mesh, points)
    ]


def batches(train: Train, plan: Plan, first: int = 0) -> Iterator[Batches]:
    """The examples of the steps from `first` on, a chunk at a time; made when they are asked for.

    `first` is where a chunk begins.
    """
    orders = [_order(run, len(train[run.data_seed])) for run in plan.runs]
    members = _members(_sizes(train, plan.runs), orders, plan)
    fits = [shape.tokens for shape in plan.shapes]

    def examples(run: int, step: int, part: int) -> list[Segment]:
        if run >= len(orders):
            return []
        segments = train[plan.runs[run].data_seed]
        return [segments[i] for i in orders[run][step, part :: plan.data]]

    for begin in range(first, plan.runs[0].steps, plan.chunk):
        chunk = members[begin : begin + plan.chunk]  # [n, packs of all sides, M]
        dealt = [
            [examples(run, begin + step, part) for run in pack]
            for step, packs in enumerate(chunk)
            for pack in packs
            for part in range(plan.data)
        ]
        most = max(sum(len(p.ids) for run in pack for p in run) for pack in dealt)
        shape = plan.shapes[int(np.searchsorted(fits, most))]
        made = [pack_segments(pack, shape) for pack in dealt]
        axes = (*chunk.shape[:2], plan.data)
        yield Batches(
            packs=jax.tree.map(lambda *x: np.stack(x).reshape(*axes, *x[0].shape), *made),  # noqa: B023
            members=chunk % (plan.packs * plan.runs_per_pack),
        )


def _sizes(train: Train, runs: Sequence[Run]) -> dict[int, np.ndarray]:
    """`sizes` of the runs' training examples, `[E, 3]` by data seed."""
    return {seed: sizes(train[seed]) for seed in {run.data_seed for run in runs}}


def _plans(
    train: Mapping[int, np.ndarray],
    runs: Sequence[Run],
    population: int | None,
    pack_tokens: int,
    mesh: Mesh,
    points: int,
) -> list[Plan]:
    """`plan` for runs that can be tuned together; `train` are `_sizes`."""
    runs = sorted(runs, key=lambda run: run.prompt_length)
    sides, data = mesh.shape["runs"], mesh.shape["data"]
    lengths = np.concatenate([each[:, 0] for each in train.values()])
    run_tokens = lengths.mean() * runs[0].batch_size / data + runs[-1].prompt_length
    runs_per_pack = max(1, round(pack_tokens / run_tokens))

    most = population or runs_per_pack * sides
    size = -(-len(runs) // -(-len(runs) // most))
    groups = [tuple(runs[first : first + size]) for first in range(0, len(runs), size)]
    packs = -(-size // (runs_per_pack * sides))
    runs_per_pack = -(-size // (packs * sides))
    steps = runs[0].steps
    stops = tuple(sorted({max(1, round(steps * (i + 1) / points)) for i in range(points)}))
    prompts = np.array([group[-1].prompt_length for group in groups])
    classes = size_classes(prompts, MOST_LENGTHS)
    of_length = [classes[np.searchsorted(classes, length)] for length in prompts]
    longest = int(lengths.max())
    plans = []
    for length in classes:
        alike = [
            Plan(group, length, sides, data, packs, runs_per_pack, stops)
            for group, own in zip(groups, of_length, strict=True)
            if own == length
        ]
        demand = np.stack([_demand(train, plan, longest) for plan in alike])
        chunk, shapes = _shapes(demand, stops, longest)
        plans += [dataclasses.replace(plan, chunk=chunk, shapes=shapes) for plan in alike]
    return plans


def _demand(train: Mapping[int, np.ndarray], plan: Plan, longest: int) -> np.ndarray:
    """`[steps, packs, 5]`: tokens, queries, predictions, rows, and the rows of one run."""
    slots = int(padded(longest))
    orders = [_order(run, len(train[run.data_seed])) for run in plan.runs]
    members = _members(train, orders, plan)
    needed = np.zeros((len(plan.padded_runs), len(members), plan.data, 4), np.int64)
    for number, (run, order) in enumerate(zip(plan.runs, orders, strict=True)):
        for part in range(plan.data):
            own = train[run.data_seed][order[:, part :: plan.data]]  # [steps, B / X, 3]
            rows = first_fit(own[:, :, 0], slots).max(axis=1) // slots + 1
            needed[number, :, part] = np.column_stack([own.sum(axis=1), rows])
    each = needed[members, np.arange(len(members))[:, None, None]]  # [steps, sides * P, M, X, 4]
    packs = np.concatenate([each.sum(axis=2), each[..., 3:].max(axis=2)], axis=-1)
    return packs.reshape(len(members), -1, 5)


def _shapes(
    demand: np.ndarray, stops: Sequence[int], longest: int
) -> tuple[int, tuple[PackedShape, ...]]:
    """How many steps to take in one go, and a few shapes, one of which fits each such chunk.

    Args:
        demand: `[populations, steps, packs, 5]`, see `_demand`.
        stops: chunks must end at these steps.
        longest: tokens of the longest example.
    """
    demand = np.concatenate([padded(demand[..., :3]), demand[..., 3:]], axis=-1)
    for chunk in range(CHUNK, 0, -1):
        if any(stop % chunk for stop in stops):
            continue
        by_chunk = demand.reshape(-1, chunk * demand.shape[2], 5)
        most = by_chunk.max(axis=1)  # [chunks, 5]
        classes = size_classes(most[:, 0], MOST_SHAPES)
        computed = np.take(classes, np.searchsorted(classes, most[:, 0])).sum() * by_chunk.shape[1]
        if chunk == 1 or by_chunk[..., 0].sum() >= FILLED * computed:
            break
    shapes = []
    for tokens in classes:
        fitting = most[most[:, 0] <= tokens].max(axis=0).tolist()
        shapes.append(
            PackedShape(tokens, *fitting[1:4], most[:, 4].max().item(), int(padded(longest)))
        )
    return chunk, tuple(shapes)


def _members(
    train: Mapping[int, np.ndarray], orders: Sequence[np.ndarray], plan: Plan
) -> np.ndarray:
    """`[steps, sides * P, M]` int32, the runs of every pack.

    At each step a side's runs are dealt out by falling length of their examples, to and fro, so
    that its packs are about equally long. `train` are `_sizes`, `orders` `[steps, B]` each.
    """
    tokens = np.zeros((len(orders[0]), len(plan.padded_runs)), np.int64)
    for number, (run, order) in enumerate(zip(plan.runs, orders, strict=True)):
        tokens[:, number] = train[run.data_seed][order, 0].sum(axis=1)
    by_side = tokens.reshape(len(tokens), plan.sides, -1)
    ranked = np.argsort(-by_side, axis=2, kind="stable")
    rounds = ranked.reshape(*by_side.shape[:2], plan.runs_per_pack, plan.packs)
    rounds[:, :, 1::2] = rounds[:, :, 1::2, ::-1].copy()
    first = np.arange(plan.sides)[:, None, None] * by_side.shape[2]
    members = rounds.swapaxes(2, 3) + first
    return members.reshape(len(tokens), -1, plan.runs_per_pack).astype(np.int32)


def _order(run: Run, n_examples: int) -> np.ndarray:
    """`[steps, B]`, the examples of each step."""
    order = example_order(n_examples, run.steps * run.batch_size, run.seed)
    return order.reshape(run.steps, run.batch_size)
