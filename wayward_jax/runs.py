"""What defines a run, and a name for it."""

import dataclasses
import hashlib
import json
from typing import Any, Self

from wayward_jax.targets import Target

P_STAR = "p_star"

CONSTRAINTS = ("penalty", "dual", "cell")
"""How a prompt is held to its target: by the distance term with a given gamma (the paper's way) or
with one that is found while tuning, or by keeping its vectors in the cells of the target's tokens.
"""

# Where a gamma that is found while tuning starts.
FIRST_GAMMA = 1.0


@dataclasses.dataclass(frozen=True)
class Run:
    """One prompt optimisation; equal runs give equal prompts.

    A run without `target_ids` is unconstrained: a `p_star`, whose gamma is 0.

    Attributes:
        model: name of the frozen model.
        task: name of the task.
        prompt_length: L.
        target_name: name of the target, or `P_STAR`.
        target_text: the text that the prompt shall read as.
        target_ids: its L tokens.
        init: a start of `initialization.STARTS`.
        constraint: one of `CONSTRAINTS`.
        gamma: weight of the distance term; where it is found while tuning, the first one.
        margin: of the cells, see `cells`; 0 where they do not matter.
        seed: of the start and the order of examples.
        steps: optimiser steps.
        batch_size: examples a step.
        learning_rate: at the first step.
        method: `direct` or `channel`.
        template: index of the task's template.
        k_shot: training examples a class; -1 is all of them.
        data_seed: of the choice of training examples.
    """

    model: str
    task: str
    prompt_length: int
    target_name: str = P_STAR
    target_text: str = ""
    target_ids: tuple[int, ...] = ()
    init: str = "vocab"
    constraint: str = "penalty"
    gamma: float = 0.0
    margin: float = 0.0
    seed: int = 1
    steps: int = 2000
    batch_size: int = 8
    learning_rate: float = 0.01
    method: str = "direct"
    template: int = 1
    k_shot: int = -1
    data_seed: int = 100

    @classmethod
    def towards(cls, target: Target, **settings: Any) -> Self:
        """A run for `target`, of its length; `settings` are the other attributes."""
        return cls(
            prompt_length=len(target.ids),
            target_name=target.name,
            target_text=target.text,
            target_ids=target.ids,
            **settings,
        )

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that all of the above decides."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
