"""Simulates how often intervals hold the truth: `python -m experiments.calibration`.

Jobs are simulated whose truth is known. An example is predicted right if its easiness, which all
prompts share, plus the prompt's ability plus chance is above 0. The accuracy of a run is that of
its target (or p_star) plus noise of training; targets vary around the mean of their group, and so
do p_star and targets from one choice of training examples to the other.
"""

import itertools
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy import special

from experiments import flags
from wayward_jax.analysis.statistics import Compared, Interval, difference, mean_drop
from wayward_jax.jobs.settings import CalibrationSettings

SEEDS = (2, 3, 5, 10)
TARGETS = (1, 3, 9, 30)
NOISES = (0.0, 0.01, 0.02, 0.03)
SPREADS = (0.0, 0.02)
EXAMPLES = (256, 872, 1821)
SHARED = (0.0, 0.5)

# Shares of the variance of what decides whether a prediction is right.
EASINESS, CHANCE = 0.7, 0.3

# True accuracies of p_star and of targets, in two groups.
FIRST, SECOND = (0.88, 0.86), (0.87, 0.83)

KINDS = {
    "drop": "a drop (of a target, or of a group)",
    "shared": "a difference of groups that share a p_star",
    "own": "a difference of groups with p_stars of their own",
    "paired": "the same, target by target",
    "cost": "what a constraint costs (a drop from twins)",
    "choices": "a drop over five choices of training examples",
}

# The numbers of choices of training examples, and of the most targets that are tuned with each.
CHOICES, MOST_WITH_CHOICES = 5, 9


TITLE = """# How often intervals hold the truth

`python -m experiments.calibration --trials={trials} --seed={seed}` made this table. It simulates
{trials} jobs with a known truth for each combination of 256, 872 and 1,821 test examples, training
noise of 0, 1, 2 and 3 points of accuracy, and a spread of the T targets of 0 and 2 points. Each
cell is the share of the intervals, stated as 95 %, that hold the truth over all 24 combinations.
The width is that of the intervals over the width of the narrowest intervals of this form that
hold in 95 % of cases, for the T where it is largest."""

SECTIONS = {
    0.0: "## Noise that is independent from run to run",
    0.5: "## Half of the noise's variance shared by all runs of a seed",
}


class Case(NamedTuple):
    """A simulated case: numbers of seeds and examples, and standard deviations of accuracies.

    Of the variance of the noise, all runs of a seed have the part `shared` in common.
    """

    seeds: int
    examples: int
    noise: float
    spread: float
    shared: float = 0.0


class Outcome(NamedTuple):
    """An interval's error against the truth, half its width, and whether it holds the truth."""

    miss: float
    half: float

    @property
    def holds(self) -> bool:
        """True if the truth is in the interval."""
        return self.miss <= self.half


def simulate(
    case: Case, targets: tuple[int, ...], rng: np.random.Generator
) -> Iterator[tuple[str, int, Outcome]]:
    """Simulates one job, and yields kind, number of targets, and what came of the interval."""
    most = max(targets)
    effects = rng.normal(0, case.spread, (3, most))
    # Targets of the second group: other texts, and the same texts as the first group's.
    levels = [FIRST[1] + effects[0], SECOND[1] + effects[1], SECOND[1] + effects[0]]
    twins_of_first = np.full(most, FIRST[0])
    accuracies = np.concatenate([[FIRST[0], SECOND[0]], *levels, twins_of_first])
    right = iter(_predict(accuracies, case, rng))
    best, other = next(right), next(right)
    first, second, same, twins = ([next(right) for _ in range(most)] for _ in range(4))
    for n in targets:
        a = [Compared(best, each, "first", i) for i, each in enumerate(first[:n])]
        sharing = [Compared(best, each, "first", i) for i, each in enumerate(second[:n])]
        own = [Compared(other, each, "second", i) for i, each in enumerate(second[:n])]
        again = [Compared(other, each, "second", i) for i, each in enumerate(same[:n])]
        # The truth of a single target is its own, that of several the mean they vary around.
        means = [levels[0][0], levels[1][0]] if n == 1 else [FIRST[1], SECOND[1]]
        drop, shared, apart = (
            100 * (1 - mean / p_star)
            for mean, p_star in (
                (means[0], FIRST[0]),
                (means[1], FIRST[0]),
                (means[1], SECOND[0]),
            )
        )
        yield "drop", n, _outcome(mean_drop(a), drop)
        pairs = zip(twins, first[:n], strict=False)
        cost = [Compared(twin, each, i, i, twins=True) for i, (twin, each) in enumerate(pairs)]
        yield "cost", n, _outcome(mean_drop(cost), drop)
        settings = {"same_examples": True}
        yield "shared", n, _outcome(difference(a, sharing, paired=False, **settings), drop - shared)
        yield "own", n, _outcome(difference(a, own, paired=False, **settings), drop - apart)
        if n > 1:
            yield "paired", n, _outcome(difference(a, again, paired=True, **settings), drop - apart)
    yield from _simulate_choices(case, tuple(n for n in targets if n <= MOST_WITH_CHOICES), rng)


def _simulate_choices(
    case: Case, targets: tuple[int, ...], rng: np.random.Generator
) -> Iterator[tuple[str, int, Outcome]]:
    """Simulates one job with several choices of training examples, as `simulate` does."""
    most = max(targets)
    levels = np.array([FIRST[0], *(FIRST[1] + rng.normal(0, case.spread, most))])
    accuracies = levels + rng.normal(0, case.spread, (CHOICES, most + 1))
    right = _predict(accuracies.ravel(), case, rng).reshape(*accuracies.shape, case.seeds, -1)
    for n in targets:
        compared = [
            Compared(of_choice[0], of_choice[1 + i], choice, i, choice)
            for choice, of_choice in enumerate(right)
            for i in range(n)
        ]
        truth = 100 * (1 - (levels[1] if n == 1 else FIRST[1]) / FIRST[0])
        yield "choices", n, _outcome(mean_drop(compared), truth)


def _predict(accuracies: np.ndarray, case: Case, rng: np.random.Generator) -> np.ndarray:
    """Simulates which examples are predicted right: `[N, S, E]` bool for N accuracies."""
    shape = len(accuracies), case.seeds
    own, shared = rng.normal(0, case.noise, shape), rng.normal(0, case.noise, case.seeds)
    noise = np.sqrt(1 - case.shared) * own + np.sqrt(case.shared) * shared
    of_runs = accuracies[:, None] + noise
    ability = special.ndtri(np.clip(of_runs, 0.01, 0.99)).astype(np.float32)
    easiness = np.sqrt(EASINESS) * rng.standard_normal(case.examples, np.float32)
    chance = rng.standard_normal((*shape, case.examples), np.float32)
    return ability[..., None] + easiness + np.float32(np.sqrt(CHANCE)) * chance > 0


def _outcome(found: Interval, truth: float) -> Outcome:
    return Outcome(abs(found.value - truth), (found.high - found.low) / 2)


def run_case(case: Case, trials: int, seed: int) -> dict[tuple[str, int], np.ndarray]:
    """Simulates jobs; for each kind and number of targets, misses and half-widths `[trials, 2]`."""
    shares = (case.noise, case.spread, case.shared)
    numbers = [case.seeds, case.examples, *(round(1000 * share) for share in shares)]
    rng = np.random.default_rng([seed, *numbers])
    found = defaultdict(list)
    for _ in range(trials):
        for kind, targets, outcome in simulate(case, TARGETS, rng):
            found[kind, targets].append(outcome)
    return {key: np.array(outcomes) for key, outcomes in found.items()}


def coverage(outcomes: np.ndarray) -> float:
    """The share of intervals `[N, 2]` that hold the truth."""
    return float(np.mean(outcomes[:, 0] <= outcomes[:, 1]))


def relative_width(outcomes: np.ndarray) -> float:
    """The width of intervals over that of the narrowest of this form that hold in 95 % of cases.

    Those are the same intervals with all widths multiplied by one number.
    """
    with np.errstate(divide="ignore"):
        ratios = outcomes[:, 0] / outcomes[:, 1]
    return float(1 / np.quantile(ratios, 0.95))


def main(given: flags.Given) -> None:
    """Simulates all cases, and prints a table in Markdown."""
    settings = CalibrationSettings.parse(given)
    cases = [Case(*each) for each in itertools.product(SEEDS, EXAMPLES, NOISES, SPREADS, SHARED)]
    pooled = defaultdict(list)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        repeated = [settings.trials] * len(cases), [settings.seed] * len(cases)
        for found in zip(cases, pool.map(run_case, cases, *repeated), strict=True):
            case, by_kind = found
            for (kind, targets), outcomes in by_kind.items():
                pooled[case.shared, kind, case.seeds, targets].append(outcomes)
    print(TITLE.format(trials=settings.trials, seed=settings.seed))
    for shared, section in SECTIONS.items():
        print(f"\n{section}\n")
        print("| interval of | seeds | " + " | ".join(f"T = {n}" for n in TARGETS) + " | width |")
        print("|---|--:|" + "--:|" * (len(TARGETS) + 1))
        for (kind, title), seeds in itertools.product(KINDS.items(), SEEDS):
            cells = [np.concatenate(pooled.get((shared, kind, seeds, n), [[]])) for n in TARGETS]
            shares = " | ".join(
                f"{100 * coverage(each):.1f} %" if len(each) else "" for each in cells
            )
            widest = max(relative_width(each) for each in cells if len(each))
            print(f"| {title} | {seeds} | {shares} | {widest:.2f} |")


if __name__ == "__main__":
    flags.run(main, CalibrationSettings)
