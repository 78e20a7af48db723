"""A population: runs that are tuned together, and how they are computed (NumPy, on the host)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from wayward_jax.runs import Run
from wayward_jax.shapes import PackedShape


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
        return calls_between(self.eval_steps, self.steps_per_call)

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


def calls_between(eval_steps: Sequence[int], steps_per_call: int) -> list[tuple[int, int]]:
    """Divides steps into calls of at most `steps_per_call`, none of which spans an evaluation.

    Returns:
        The first step of each call, and the step after its last.
    """
    return [
        (first, min(first + steps_per_call, end))
        for begin, end in zip([0, *eval_steps[:-1]], eval_steps, strict=True)
        for first in range(begin, end, steps_per_call)
    ]
