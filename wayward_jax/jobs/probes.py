"""The tools with which experiments measure finished prompts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from wayward_jax import metrics
from wayward_jax.models import LanguageModel
from wayward_jax.projection import c_proj
from wayward_jax.readings import Method
from wayward_jax.runs import RunRecord, write_bits
from wayward_jax.sharding import on_host
from wayward_jax.training.evaluation import score_prompts
from wayward_jax.training.examples import EncodedTask
from wayward_jax.training.memory import busy_tokens, row_grain
from wayward_jax.training.scoring import EvaluationSet, with_room

# Prompts that are longer than the tuned ones are padded to a multiple of this many tokens.
GRAIN = 64

Measurement = tuple[str, Callable[[], list[dict[str, Any]]]]
"""A unique key, and a function that gives the rows. A row about a run has the run's id as `id`."""


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeContext:
    """All that an experiment measures finished prompts with, for one model at a time.

    Attributes:
        model: the frozen model.
        mesh: the model's devices.
        tasks: the encoded tasks, by name.
        records: the job's runs, also those of other models.
        select: the split on which gammas are chosen, `dev` or `test`.
        load_prompt: gives the prompt `[L, D]` of a run.
        starts: the saved prompts `[L, D]` that runs of this model start from, by `Run.init`.
        readings: those that prompts are tuned to deceive beside nearest tokens, by name.
    """

    model: LanguageModel
    mesh: Mesh
    tasks: Mapping[str, EncodedTask]
    records: Sequence[RunRecord]
    select: str
    load_prompt: Callable[[RunRecord], np.ndarray]
    starts: Mapping[str, np.ndarray]
    readings: Mapping[str, Method]

    @property
    def own_records(self) -> list[RunRecord]:
        """The runs of this model."""
        return [record for record in self.records if record.run.model == self.model.name]

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        """Makes a prompt of L tokens with `c_proj`: `[L, D]` float32."""
        return on_host(c_proj(self.model.embedding_table(), np.asarray(ids, np.int32)))

    def score(self, prompts: Sequence[np.ndarray], examples: EvaluationSet) -> np.ndarray:
        """Scores examples with `evaluation.score_prompts`: `[N, E, C]` float32, nats a token.

        BOS is put before each prompt if the model expects it there. Prompts are padded so that
        programs are compiled for few lengths.
        """
        longest = max(len(prompt) for prompt in prompts)
        length = max(record.run.prompt_length for record in self.records)
        if longest > length:
            length = min(-(-longest // GRAIN) * GRAIN, self.max_positions)
            examples = with_room(
                examples,
                length + len(self.model.bos_ids),
                tokens=busy_tokens(self.mesh),
                row_grain=row_grain(self.mesh),
            )
        inputs = [self.model.with_bos(prompt) for prompt in prompts]
        length += len(self.model.bos_ids)
        return score_prompts(self.model, inputs, examples, self.mesh, length=length)

    @property
    def max_positions(self) -> int:
        """The largest number of tokens that the model can read after BOS."""
        return self.model.module.config.max_positions - len(self.model.bos_ids)


def answers(scores: np.ndarray, examples: EvaluationSet) -> dict[str, Any]:
    """The entries of a row that say which of E examples a prompt answers right.

    These are the `accuracy`, `n_eval` (E), and a bit for each example, `correct`, from which tables
    compute intervals.

    Args:
        scores: `[E, C]`, of which that of the right label should be the lowest.
        examples: with their labels.
    """
    correct = metrics.predict(scores) == examples.labels
    return {
        "accuracy": float(correct.mean()),
        "n_eval": len(correct),
        "correct": write_bits(correct),
    }
