"""Selects the runs that are compared with each other (paper, section 4.2)."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from wayward_jax.analysis.statistics import Compared, Interval, accuracy, mean_drop
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
    """A target's runs at one gamma beside two kinds of runs without a constraint.

    Attributes:
        p_star: the best unconstrained runs of the same task and length, one a seed.
        wayward: the target's runs, one a seed.
        unconstrained: runs with the target's start and order of examples and nothing that holds
            them to the target, one a seed; empty if there are none. Beside them one sees what the
            constraint costs, beside p_star what the start costs, too.
        gammas: those of which the target's runs have the best one.
        p_star_tries: of how many starts and orders p_star is the best; at most `tries`.
    """

    p_star: tuple[RunRecord, ...]
    wayward: tuple[RunRecord, ...]
    unconstrained: tuple[RunRecord, ...] = ()
    gammas: frozenset[float] = frozenset()
    p_star_tries: int = 1

    @property
    def tries(self) -> int:
        """The number of gammas; gamma 0, which is no constraint, is one if there is no other."""
        return max(len(self.gammas), 1)

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
        """The accuracy drop from p_star in percent."""
        return mean_drop([self.beside_p_star])

    @property
    def learned(self) -> bool:
        """True if p_star's accuracy is beyond that of the majority class and of no prompt at all.

        That is, the intervals of p_star's accuracy, and of what it gains over no prompt, are.
        """
        return self.p_star_accuracy.low > self.p_star[0].majority and (
            self.gain is None or self.gain.low > 0
        )

    @cached_property
    def p_star_accuracy(self) -> Interval:
        """The accuracy of p_star, as a share."""
        return accuracy(_correct(self.p_star))

    @cached_property
    def gain(self) -> Interval | None:
        """The accuracy of p_star less that without any prompt; None if that was not measured."""
        unprompted = self.p_star[0].unprompted
        return None if unprompted is None else accuracy(_correct(self.p_star), unprompted)

    @property
    def unprompted(self) -> float:
        """The accuracy without any prompt; NaN if it was not measured."""
        return self.best_accuracy - self.gain.value if self.gain else float("nan")

    @cached_property
    def beside_p_star(self) -> Compared:
        """The target's runs and p_star, for `statistics`."""
        return self._beside(self.p_star)

    @cached_property
    def beside_unconstrained(self) -> Compared | None:
        """The target's runs and those without the constraint; None if there are none."""
        if not self.unconstrained:
            return None
        of_seed = {record.run.seed: record for record in self.unconstrained}
        twins = [of_seed.get(record.run.seed) for record in self.wayward]
        if None in twins or len(twins) != len(self.unconstrained):
            return self._beside(self.unconstrained)
        return self._beside(twins)._replace(twins=True)

    def _beside(self, records: Sequence[RunRecord]) -> Compared:
        run = self.wayward[0].run
        return Compared(
            _correct(records),
            _correct(self.wayward),
            group=tuple(record.id for record in records),
            text=(run.target_name, run.target_text, run.prompt_length),
            choice=run.data_seed,
        )


def setting(record: RunRecord) -> tuple:
    """The key that a target's run shares with the p_star that it is compared with."""
    run = record.run
    return (run.prompt_length, record.n_eval, *(getattr(run, name) for name in SETTING))


def p_stars(records: Sequence[RunRecord]) -> dict[tuple, list[tuple[RunRecord, ...]]]:
    """Groups the unconstrained runs by `setting`, and within it by try.

    A try is a start and an attempt, with one run a seed. Those from common tokens come first, and
    first attempts before others.
    """
    found: dict[tuple, dict[tuple, tuple[RunRecord, ...]]] = {}
    for record in records:
        if not record.run.has_target:
            tries = found.setdefault(setting(record), {})
            which = record.run.init != "vocab", record.run.attempt, record.run.init
            tries[which] = (*tries.get(which, ()), record)
    return {
        key: [tries[which] for which in sorted(tries, key=lambda which: which[:2])]
        for key, tries in found.items()
    }


def best_try(tries: Sequence[tuple[RunRecord, ...]], select: str = "dev") -> tuple[RunRecord, ...]:
    """Selects the try with the highest mean accuracy; `select` is as for `best_gamma`."""
    return max(tries, key=lambda records: _mean(records, ACCURACY[select]))


def best_gamma(records: Sequence[RunRecord], select: str = "dev") -> list[RunRecord]:
    """Selects the runs at the gamma with the highest mean accuracy.

    Gammas whose mean prompt F1 is below `F1_THRESHOLD` are left out, unless all are. Gamma 0 is no
    constraint, and is left out if there is another.

    Args:
        records: a target's runs, at any gammas and seeds.
        select: the split of the accuracy: `dev`, or `test`, which is also reported (the paper's
            code chooses on the split that it reports).
    """
    by_gamma: dict[float, list[RunRecord]] = {}
    for record in records:
        by_gamma.setdefault(record.run.gamma, []).append(record)
    if len(by_gamma) > 1 and records[0].run.constraint == "penalty":
        by_gamma.pop(0.0, None)
    faithful = [group for group in by_gamma.values() if _mean(group, "prompt_f1") >= F1_THRESHOLD]
    return max(faithful or by_gamma.values(), key=lambda group: _mean(group, ACCURACY[select]))


def compare(records: Sequence[RunRecord], select: str = "dev") -> list[Comparison]:
    """Makes a comparison for each task, target and setting, in the order of the records.

    p_star is the best of as many tries as the target has gammas, or of as many as there are.
    Targets without a p_star of their setting are left out. `select` is as for `best_gamma`.
    """
    tries_of = p_stars(records)
    groups: dict[tuple, list[RunRecord]] = {}
    unconstrained: dict[tuple, list[RunRecord]] = {}
    for record in records:
        run = record.run
        if run.has_target and (key := setting(record)) in tries_of:
            target = run.target_name, run.target_text
            held = tuple(getattr(run, name) for name in HELD_BY)
            groups.setdefault((key, target, held), []).append(record)
            if run.is_unconstrained:
                unconstrained.setdefault((key, target, run.init), []).append(record)
    compared = []
    for (key, target, held), group in groups.items():
        if all(record.run.is_unconstrained for record in group) and any(
            other[:2] == (key, target) and other[2][0] == held[0] and other[2] != held
            for other in groups
        ):
            continue  # beside which another constraint stands
        gammas = frozenset(r.run.gamma for r in group if not r.run.is_unconstrained)
        p_star_tries = tries_of[key][: max(len(gammas), 1)]
        wayward = tuple(best_gamma(group, select))
        beside: Sequence[RunRecord] = ()
        if not wayward[0].run.is_unconstrained:
            own = unconstrained.get((key, target, held[0]), ())
            beside = _first_attempt(tries_of[key], held[0]) or own
        compared.append(
            Comparison(
                best_try(p_star_tries, select), wayward, tuple(beside), gammas, len(p_star_tries)
            )
        )
    return compared


def _first_attempt(tries: Sequence[tuple[RunRecord, ...]], init: str) -> tuple[RunRecord, ...]:
    """The first attempt of p_star from a start, where runs with a target begin, too; or none."""
    firsts = (each for each in tries if each[0].run.init == init and each[0].run.attempt == 0)
    return next(firsts, ())


def by_target(comparisons: Sequence[Comparison]) -> list[list[Comparison]]:
    """Groups the comparisons of a target and setting that differ in the training examples alone."""
    found: dict[tuple, list[Comparison]] = {}
    for comparison in comparisons:
        first = comparison.wayward[0]
        run = dataclasses.replace(first.run, data_seed=0)
        held = tuple(getattr(run, name) for name in HELD_BY)
        key = setting(dataclasses.replace(first, run=run)), run.target_name, run.target_text, held
        found.setdefault(key, []).append(comparison)
    return list(found.values())


def _correct(records: Sequence[RunRecord]) -> np.ndarray:
    """Which test examples are predicted right: `[S, E]` bool."""
    return np.stack([record.correct for record in records])


def _mean(records: Sequence[RunRecord], name: str) -> float:
    return float(np.mean([getattr(record, name) for record in records]))
