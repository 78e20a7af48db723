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

# Every shape is compiled: a few of each waste little and do not take long.
MOST_LENGTHS = 4
MOST_SHAPES = 3


@dataclasses.dataclass(frozen=True)
class Plan:
    """A population and how it is computed.

    Attributes:
        runs: its runs, by rising prompt length.
        prompt_length: L, to which their prompts are padded.
        packs: G, to which the runs are dealt out in order.
        pack_runs: of each pack; where there are fewer runs, the rest have no examples.
        sides: of the packs, so many are computed side by side: `runs` of the mesh.
        data: X, to which the examples of each run are dealt out: `data` of the mesh.
        shapes: that packs come in, by rising tokens.
    """

    runs: tuple[Run, ...]
    prompt_length: int
    packs: int
    pack_runs: int
    sides: int
    data: int
    shapes: tuple[PackShape, ...]

    @property
    def padded_runs(self) -> list[Run]:
        """`G * pack_runs` runs: the last one again where there are too few."""
        missing = self.packs * self.pack_runs - len(self.runs)
        return [*self.runs, *[self.runs[-1]] * missing]


def plan(
    train: Sequence[Piece],
    runs: Sequence[Run],
    *,
    population: int | None,
    pack_tokens: int,
    mesh: Mesh,
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
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        shared = (run.steps, run.batch_size, run.method, run.template, run.k_shot, run.data_seed)
        groups.setdefault(shared, []).append(run)
    return [
        plan
        for group in groups.values()
        for plan in _plans(sizes(train), group, population, pack_tokens, mesh)
    ]


def _plans(
    train: np.ndarray, runs: Sequence[Run], population: int | None, pack_tokens: int, mesh: Mesh
) -> list[Plan]:
    """`plan` for runs that can be tuned together; `train` `[E, 3]` are `sizes`."""
    runs = sorted(runs, key=lambda run: run.prompt_length)
    sides, data = mesh.shape["runs"], mesh.shape["data"]
    run_tokens = train[:, 0].mean() * runs[0].batch_size / data + runs[-1].prompt_length
    pack_runs = max(1, round(pack_tokens / run_tokens))

    most = population or pack_runs * sides
    size = -(-len(runs) // -(-len(runs) // most))
    groups = [tuple(runs[first : first + size]) for first in range(0, len(runs), size)]
    pack_runs = -(-size // (-(-size // (pack_runs * sides)) * sides))
    # Of the last group maybe fewer: a pack without runs takes its time, too.
    packs = [-(-len(group) // (pack_runs * sides)) * sides for group in groups]

    longest = np.array([group[-1].prompt_length for group in groups])
    lengths = size_classes(longest, MOST_LENGTHS)
    of_length = [lengths[np.searchsorted(lengths, length)] for length in longest]
    plans = []
    for length in lengths:
        alike = [
            Plan(group, length, n, pack_runs, sides, data, ())
            for group, n, own in zip(groups, packs, of_length, strict=True)
            if own == length
        ]
        shapes = _shapes(train, alike)
        plans += [dataclasses.replace(plan, shapes=shapes) for plan in alike]
    return plans


def _shapes(train: np.ndarray, plans: Sequence[Plan]) -> tuple[PackShape, ...]:
    """A few shapes that fit all packs of the plans."""
    slots = int(padded(train[:, 0].max()))
    packs, windows = [], 1
    for plan in plans:
        for runs in filter(None, _dealt(plan.runs, plan)):
            examples = [train[_order(run, len(train))] for run in runs]  # [steps, B, 3] each
            for part in range(plan.data):
                own = [each[:, part :: plan.data] for each in examples]
                packs.append(sum(each.sum(axis=1) for each in own))
                last = max(first_fit(each[:, :, 0], slots).max() for each in own)
                windows = max(windows, int(last // slots) + 1)
    demand = np.concatenate(packs)  # [steps of all packs, 3]
    demand[:, 0] = padded(demand[:, 0])
    shapes = []
    for tokens in size_classes(demand[:, 0], MOST_SHAPES):
        _, queries, predictions = demand[demand[:, 0] <= tokens].max(axis=0)
        shapes.append(
            PackShape(tokens, int(padded(queries)), int(padded(predictions)), windows, slots)
        )
    return tuple(shapes)


def batches(train: Sequence[Piece], plan: Plan, n: int) -> Iterator[Batches]:
    """The examples of all steps, n steps at a time; made when they are asked for."""
    orders = {run: _order(run, len(train)) for run in plan.runs}
    packs = _dealt(plan.runs, plan)
    tokens = [shape.tokens for shape in plan.shapes]
    for first in range(0, plan.runs[0].steps, n):
        made, shape = [], []
        for step in range(first, first + n):
            for runs in packs:
                for part in range(plan.data):
                    examples = [
                        [train[i] for i in orders[run][step, part :: plan.data]] for run in runs
                    ]
                    empty = [[]] * (plan.pack_runs - len(runs))
                    made.append(make_pack([*examples, *empty], plan.shapes[-1]))
                    shape.append(np.searchsorted(tokens, (made[-1].slot >= 0).sum()))
        yield Batches(
            packs=jax.tree.map(
                lambda *x: np.stack(x).reshape(n, plan.packs, plan.data, *x[0].shape), *made
            ),
            # All devices compute the same shape at a time, as what they exchange has to be equal.
            shape=np.array(shape, np.int32).reshape(n, plan.sides, -1, plan.data).max(axis=(1, 3)),
        )


def _order(run: Run, n_examples: int) -> np.ndarray:
    """`[steps, B]`, the examples of each step."""
    order = example_order(n_examples, run.steps * run.batch_size, run.seed)
    return order.reshape(run.steps, run.batch_size)


def _dealt(runs: Sequence[Run], plan: Plan) -> list[Sequence[Run]]:
    """The runs of each of the G packs; the last may have fewer, or none."""
    firsts = [pack * plan.pack_runs for pack in range(plan.packs)]
    return [runs[first : first + plan.pack_runs] for first in firsts]
