"""Selects the runs that are compared with each other (paper, section 4.2)."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from wayward_jax.analysis.statistics import Interval, drop_over_examples
from wayward_jax.runs import RunRecord

# A prompt reads as its target if its prompt F1 is at least this, as in the paper.
F1_THRESHOLD = 0.98

# A wayward prompt and the p_star that it is compared with have these attributes of a run in common,
# and their length and number of test examples.
SETTING = (
    "model",
    "task",
    "method",
    "template",
    "k_shot",
    "data_seed",
    "steps",
    "batch_size",
    "learning_rate",
    "optimizer",
    "warmup",
    "weight_decay",
    "keep",
    "model_digest",
)

# All runs of a target that are compared as one group have these in common, too.
HELD_BY = ("init", "constraint", "margin")

# The attribute of a record that holds its accuracy on a split.
ACCURACY = {"dev": "dev_accuracy", "test": "accuracy"}

ModelKey = tuple[str, str]
"""The name of a model and the digest of its weights."""


def model_key(record: RunRecord) -> ModelKey:
    """The model that a run is for."""
    return record.run.model, record.run.model_digest


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A target's runs at one gamma beside the unconstrained runs of the same task and length.

    Attributes:
        p_star: the unconstrained runs, one a seed.
        wayward: the target's runs, one a seed.
    """

    p_star: tuple[RunRecord, ...]
    wayward: tuple[RunRecord, ...]

    @property
    def best_accuracy(self) -> float:
        """Mean accuracy of the unconstrained runs."""
        return _mean(self.p_star, "accuracy")

    @property
    def accuracy(self) -> float:
        """Mean accuracy of the target's runs."""
        return _mean(self.wayward, "accuracy")

    @property
    def prompt_f1(self) -> float:
        """Mean prompt F1 of the target's runs."""
        return _mean(self.wayward, "prompt_f1")

    @cached_property
    def drop(self) -> Interval:
        """The accuracy drop in percent, with an interval over test examples."""
        p_star, wayward = (
            np.stack([record.correct for record in records])
            for records in (self.p_star, self.wayward)
        )
        return drop_over_examples(p_star, wayward)


def setting(record: RunRecord) -> tuple:
    """The key that a target's run shares with the p_star that it is compared with."""
    run = record.run
    return (run.prompt_length, record.n_eval, *(getattr(run, name) for name in SETTING))


def p_stars(records: Sequence[RunRecord]) -> dict[tuple, tuple[RunRecord, ...]]:
    """Groups the unconstrained runs by `setting`."""
    found: dict[tuple, tuple[RunRecord, ...]] = {}
    for record in records:
        if not record.run.has_target:
            found[setting(record)] = (*found.get(setting(record), ()), record)
    return found


def best_gamma(records: Sequence[RunRecord], select: str = "dev") -> list[RunRecord]:
    """Selects the runs at the gamma with the highest mean accuracy.

    Gammas whose mean prompt F1 is below `F1_THRESHOLD` are left out, unless all are.

    Args:
        records: a target's runs, at any gammas and seeds.
        select: the split of the accuracy: `dev`, or `test`, which is also reported (the paper's
            code chooses on the split that it reports).
    """
    by_gamma: dict[float, list[RunRecord]] = {}
    for record in records:
        by_gamma.setdefault(record.run.gamma, []).append(record)
    faithful = [group for group in by_gamma.values() if _mean(group, "prompt_f1") >= F1_THRESHOLD]
    return max(faithful or by_gamma.values(), key=lambda group: _mean(group, ACCURACY[select]))


def compare(records: Sequence[RunRecord], select: str = "dev") -> list[Comparison]:
    """Makes a comparison for each task, target and setting, in the order of the records.

    Targets without a p_star of their setting are left out. `select` is as for `best_gamma`.
    """
    unconstrained = p_stars(records)
    groups: dict[tuple, list[RunRecord]] = {}
    for record in records:
        run = record.run
        if run.has_target and (key := setting(record)) in unconstrained:
            target = (run.target_name, run.target_text, *(getattr(run, name) for name in HELD_BY))
            groups.setdefault((key, target), []).append(record)
    return [
        Comparison(unconstrained[key], tuple(best_gamma(group, select)))
        for (key, _), group in groups.items()
    ]


def correctness(comparisons: Sequence[Comparison]) -> tuple[np.ndarray, np.ndarray]:
    """Tabulates which test examples p_star and the targets' runs predict right.

    Returns:
        Two arrays `[T, S, E]` float32 by target, seed and example, the first for p_star. S counts
        the seeds that all comparisons have; several runs of a seed are averaged. Without a common
        seed, S is 1 and the values are means over all runs.
    """
    by_seed = [tuple(map(_by_seed, (c.p_star, c.wayward))) for c in comparisons]
    shared = sorted(set.intersection(*(set(found) for pair in by_seed for found in pair)))
    best, wayward = (
        np.array(
            [
                [pair[i][seed] for seed in shared] or [np.mean([*pair[i].values()], axis=0)]
                for pair in by_seed
            ]
        )
        for i in (0, 1)
    )
    return best, wayward


def _by_seed(records: Sequence[RunRecord]) -> dict[int, np.ndarray]:
    """For each seed, the share of its runs that predict each example right: `[E]` float32."""
    by_seed: dict[int, list[np.ndarray]] = {}
    for record in records:
        by_seed.setdefault(record.run.seed, []).append(record.correct)
    return {seed: np.mean(each, axis=0, dtype=np.float32) for seed, each in by_seed.items()}


def _mean(records: Sequence[RunRecord], name: str) -> float:
    return float(np.mean([getattr(record, name) for record in records]))
