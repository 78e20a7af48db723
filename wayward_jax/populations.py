"""Which runs are tuned together, and in what shapes (NumPy, on the host).

Runs of a population take their steps together. Within it they are dealt out to packs, whose tokens
go through the model at once: large enough to keep the device busy, small enough for its memory.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from wayward_jax.batching import (
    PackShape,
    Piece,
    example_order,
    first_fit,
    make_pack,
    padded,
    size_classes,
    sizes,
)
from wayward_jax.runs import Run
from wayward_jax.tuning import Batches

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
        pack_runs: M, of each pack.
        stops: the steps after which the runs are measured; the last is the last step.
        chunk: n, steps taken in one go, in packs of one shape; it divides every stop.
        shapes: that packs come in, by rising tokens.
    """

    runs: tuple[Run, ...]
    prompt_length: int
    sides: int
    data: int
    packs: int
    pack_runs: int
    stops: tuple[int, ...]
    chunk: int = 1
    shapes: tuple[PackShape, ...] = ()

    @property
    def padded_runs(self) -> list[Run]:
        """As many runs as there are places in packs: the last one again where there are fewer.

        Those have no examples, so they hardly cost anything.
        """
        places = self.sides * self.packs * self.pack_runs
        return [*self.runs, *[self.runs[-1]] * (places - len(self.runs))]


def plan(
    train: Sequence[Piece],
    runs: Sequence[Run],
    *,
    population: int | None,
    pack_tokens: int,
    mesh: Mesh,
    points: int = 4,
) -> list[Plan]:
    """Groups runs of one task into populations.

    The runs of a population share the number of steps, the batch size and the examples; the rest
    differs as it may. Runs of like prompt length stand together, which saves padding.

    Args:
        train: the task's training examples.
        runs: in any order.
        population: the most runs to tune at once; None is one pack for every side of the mesh.
        pack_tokens: about how many tokens go through the model at once.
        mesh: see `mesh.AXES`; runs and examples are dealt out to it.
        points: how often runs are measured on their way, equally far apart.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        shared = (run.steps, run.batch_size, run.method, run.template, run.k_shot, run.data_seed)
        groups.setdefault(shared, []).append(run)
    return [
        plan
        for group in groups.values()
        for plan in _plans(sizes(train), group, population, pack_tokens, mesh, points)
    ]


def batches(train: Sequence[Piece], plan: Plan, first: int = 0) -> Iterator[Batches]:
    """The examples of the steps from `first` on, a chunk at a time; made when they are asked for.

    `first` is where a chunk begins.
    """
    lengths = sizes(train)[:, 0]
    orders = [_order(run, len(train)) for run in plan.runs]
    members = _members(lengths, orders, plan)
    fits = [shape.tokens for shape in plan.shapes]

    def examples(run: int, step: int, part: int) -> list[Piece]:
        if run >= len(orders):
            return []
        return [train[i] for i in orders[run][step, part :: plan.data]]

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
        made = [make_pack(pack, shape) for pack in dealt]
        axes = (*chunk.shape[:2], plan.data)
        yield Batches(
            packs=jax.tree.map(lambda *x: np.stack(x).reshape(*axes, *x[0].shape), *made),  # noqa: B023
            members=chunk % (plan.packs * plan.pack_runs),
        )


def _plans(
    train: np.ndarray,
    runs: Sequence[Run],
    population: int | None,
    pack_tokens: int,
    mesh: Mesh,
    points: int,
) -> list[Plan]:
    """`plan` for runs that can be tuned together; `train` `[E, 3]` are `sizes`."""
    runs = sorted(runs, key=lambda run: run.prompt_length)
    sides, data = mesh.shape["runs"], mesh.shape["data"]
    run_tokens = train[:, 0].mean() * runs[0].batch_size / data + runs[-1].prompt_length
    pack_runs = max(1, round(pack_tokens / run_tokens))

    most = population or pack_runs * sides
    size = -(-len(runs) // -(-len(runs) // most))
    groups = [tuple(runs[first : first + size]) for first in range(0, len(runs), size)]
    packs = -(-size // (pack_runs * sides))
    pack_runs = -(-size // (packs * sides))
    steps = runs[0].steps
    stops = tuple(sorted({max(1, round(steps * (i + 1) / points)) for i in range(points)}))
    longest = np.array([group[-1].prompt_length for group in groups])
    lengths = size_classes(longest, MOST_LENGTHS)
    of_length = [lengths[np.searchsorted(lengths, length)] for length in longest]
    plans = []
    for length in lengths:
        alike = [
            Plan(group, length, sides, data, packs, pack_runs, stops)
            for group, own in zip(groups, of_length, strict=True)
            if own == length
        ]
        demand = np.stack([_demand(train, plan) for plan in alike])
        chunk, shapes = _shapes(demand, stops, int(train[:, 0].max()))
        plans += [dataclasses.replace(plan, chunk=chunk, shapes=shapes) for plan in alike]
    return plans


def _demand(train: np.ndarray, plan: Plan) -> np.ndarray:
    """`[steps, packs, 5]`: tokens, queries, predictions, windows, and the windows of one run."""
    slots = int(padded(train[:, 0].max()))
    orders = [_order(run, len(train)) for run in plan.runs]
    members = _members(train[:, 0], orders, plan)
    needed = np.zeros((len(plan.padded_runs), len(members), plan.data, 4), np.int64)
    for run, order in enumerate(orders):
        for part in range(plan.data):
            own = train[order[:, part :: plan.data]]  # [steps, B / X, 3]
            windows = first_fit(own[:, :, 0], slots).max(axis=1) // slots + 1
            needed[run, :, part] = np.column_stack([own.sum(axis=1), windows])
    each = needed[members, np.arange(len(members))[:, None, None]]  # [steps, sides * P, M, X, 4]
    packs = np.concatenate([each.sum(axis=2), each[..., 3:].max(axis=2)], axis=-1)
    return packs.reshape(len(members), -1, 5)


def _shapes(
    demand: np.ndarray, stops: Sequence[int], longest: int
) -> tuple[int, tuple[PackShape, ...]]:
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
            PackShape(tokens, *fitting[1:4], most[:, 4].max().item(), int(padded(longest)))
        )
    return chunk, tuple(shapes)


def _members(lengths: np.ndarray, orders: Sequence[np.ndarray], plan: Plan) -> np.ndarray:
    """`[steps, sides * P, M]` int32, the runs of every pack.

    At each step a side's runs are dealt out by falling length of their examples, to and fro, so
    that its packs are about equally long. `lengths` `[E]`, `orders` `[steps, B]` each.
    """
    tokens = np.zeros((len(orders[0]), len(plan.padded_runs)), np.int64)
    tokens[:, : len(orders)] = np.stack([lengths[order].sum(axis=1) for order in orders], axis=1)
    by_side = tokens.reshape(len(tokens), plan.sides, -1)
    ranked = np.argsort(-by_side, axis=2, kind="stable")
    rounds = ranked.reshape(*by_side.shape[:2], plan.pack_runs, plan.packs)
    rounds[:, :, 1::2] = rounds[:, :, 1::2, ::-1].copy()
    first = np.arange(plan.sides)[:, None, None] * by_side.shape[2]
    members = rounds.swapaxes(2, 3) + first
    return members.reshape(len(tokens), -1, plan.pack_runs).astype(np.int32)


def _order(run: Run, n_examples: int) -> np.ndarray:
    """`[steps, B]`, the examples of each step."""
    order = example_order(n_examples, run.steps * run.batch_size, run.seed)
    return order.reshape(run.steps, run.batch_size)
