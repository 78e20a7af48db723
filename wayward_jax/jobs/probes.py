"""What experiments measure finished prompts with."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from wayward_jax.analysis.selection import Comparison, Row, compare
from wayward_jax.models import LanguageModel
from wayward_jax.projection import c_proj
from wayward_jax.sharding import on_host
from wayward_jax.training.evaluation import EvaluationSet, score_prompts
from wayward_jax.training.examples import EncodedTask

# Longer prompts than those that were tuned are padded to multiples of this many tokens.
GRAIN = 64

Measurement = tuple[str, Callable[[], list[dict[str, Any]]]]
"""A name of its own, and what gives its rows. One that is about a run names it as `id`."""


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeContext:
    """A model, its tasks, and what was tuned.

    Attributes:
        model: the frozen model.
        mesh: its devices.
        tasks: examples by task.
        rows: of the job's runs, those of other models too.
        select: the split that gammas are chosen on.
        load_prompt: gives the prompt `[L, D]` of a row.
    """

    model: LanguageModel
    mesh: Mesh
    tasks: Mapping[str, EncodedTask]
    rows: Sequence[Row]
    select: str
    load_prompt: Callable[[Row], np.ndarray]

    def comparisons(self) -> list[Comparison]:
        """Those of this model, at the best gamma of each target."""
        return compare([row for row in self.rows if row["model"] == self.model.name], self.select)

    def embeddings(self, ids: Sequence[int]) -> np.ndarray:
        """`c_proj` of L tokens: `[L, D]`."""
        return on_host(c_proj(self.model.embedding_table(), np.asarray(ids, np.int32)))

    def score(self, prompts: Sequence[np.ndarray], examples: EvaluationSet) -> np.ndarray:
        """`evaluation.score_prompts`, padded so that few lengths are compiled: `[N, E, C]`."""
        longest = max(len(prompt) for prompt in prompts)
        length = max(row["prompt_length"] for row in self.rows)
        if longest > length:
            length = min(-(-longest // GRAIN) * GRAIN, self.positions)
        return score_prompts(self.model, prompts, examples, self.mesh, length=length)

    @property
    def positions(self) -> int:
        """The most tokens that the model reads."""
        return self.model.module.config.max_positions


def accuracy(scores: np.ndarray, examples: EvaluationSet) -> float:
    """Of `[E, C]` scores, the share of examples whose right label has the lowest."""
    return float(np.mean(scores.argmin(axis=-1) == examples.labels))
