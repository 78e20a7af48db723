"""The progress of a population, and the metrics of its steps."""

import dataclasses
from typing import Any, Self

import jax
import numpy as np
from flax import serialization, struct

from wayward_jax.training.flops import StepCost
from wayward_jax.training.step import Losses, TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class StepMetrics:
    """The metrics of n steps that were just taken.

    Attributes:
        step: steps taken so far, these included.
        run_ids: of the R runs.
        task_loss: `[n, R]` float32, each run's at each step.
        distance: `[n, R]` float32, to the run's target; NaN for runs without a target.
        cost: of the n steps; zero for steps that an earlier process took.
    """

    step: int
    run_ids: tuple[str, ...]
    task_loss: np.ndarray
    distance: np.ndarray
    cost: StepCost


@struct.dataclass
class TrainProgress:
    """A population in training: all that it takes to continue, and to make its results.

    state: after the steps so far. The next steps reuse its buffers.
    losses: of those steps, call by call.
    nll: for each evaluation so far, the `evaluation.start_scoring` of the runs' dev subsets.
    read: for each evaluation, the tokens `[R, L]` that the prompts read as.
    prompts: for each evaluation, the prompts `[R, L, D]`; empty if all runs keep their last.
    """

    state: TrainState
    losses: tuple[Losses, ...] = ()
    nll: tuple[list[jax.Array], ...] = ()
    read: tuple[jax.Array, ...] = ()
    prompts: tuple[jax.Array, ...] = ()

    @property
    def step(self) -> int:
        """Steps taken."""
        return sum(len(call.task) for call in self.losses)

    def to_tree(self) -> dict[str, Any]:
        """Copies of all arrays (on the host), in dicts and lists alone, for a checkpoint."""
        task, distance = (
            np.concatenate([getattr(call, part) for call in self.losses])
            for part in ("task", "distance")
        )
        tree = {
            "state": serialization.to_state_dict(self.state),
            "losses": [task, distance],
            "nll": list(self.nll),
            "read": list(self.read),
            "prompts": list(self.prompts),
        }
        return jax.tree.map(np.array, tree)

    @classmethod
    def from_tree(cls, tree: dict[str, Any], state: TrainState) -> Self:
        """The progress that `to_tree` copied.

        Args:
            tree: from `to_tree`.
            state: of the same population, before its first step.
        """
        return cls(
            state=serialization.from_state_dict(state, tree["state"]),
            losses=(Losses(*tree["losses"]),),
            nll=tuple(tree["nll"]),
            read=tuple(tree["read"]),
            prompts=tuple(tree["prompts"]),
        )
