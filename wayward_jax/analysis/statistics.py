"""Intervals of accuracy drops and of their differences, in closed form.

The model: the accuracy of a run is that of its prompt's definition (a target, or p_star) plus noise
of training, which is independent from run to run and equally large for the runs that share a
p_star.
Targets are a sample of texts, and test examples are a sample that all prompts share. Where there
are several choices of training examples (k-shot samples), these are a sample, too, and each has a
p_star of its own. A drop is linearized in the accuracies of its runs. The variance of an estimate
is the sum of the parts of runs, targets, choices and examples, each estimated from its mean
squares; what two parts both contain, such as the chance of a single prediction, is subtracted once.
Satterthwaite's (1946) degrees of freedom give the quantile of Student's t.

Twins, a run and one of the same start and order of examples without its constraint, may have much
of their noise in common, or little of it after many steps. A single target has two intervals
beside its twins: one that takes all noise to be independent, and one of the differences within
pairs. Both hold either way. The narrower one is taken, a little wider.
`experiments.calibration` measures how often the intervals hold.
"""

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special, stats

LEVEL = 0.95

# Drops that are smaller, in percent, count as none (paper, section 4.2).
MARGIN = 2.0

# Satterthwaite's quantile is slightly too small where a part with few degrees of freedom meets one
# with many, and the sum of squared half-widths (Graybill and Wang, 1980) is too wide. Variances are
# taken so far from the first to the second.
TOWARDS_WIDER = 0.2

# The narrower of two intervals holds less often than either. Its error is taken so many times, and
# fewer twins have one interval alone, because a spread within two pairs says next to nothing.
OF_NARROWER = 1.15
FEWEST_TWINS = 3

# The most seeds and examples that a power line asks for.
MOST_SEEDS = 200
MOST_EXAMPLES = 10**6


class Compared(NamedTuple):
    """A target's runs beside the unconstrained runs that they are compared with.

    Attributes:
        p_star: `[S, E]` bool, which of E examples each of S unconstrained runs predicts right.
        wayward: `[S', E]` bool, the same for the target's runs.
        group: equal for targets that share their p_star.
        text: the target.
        choice: the choice of training examples, which all these runs share.
        twins: True if run s of both has the same seed, start and order of examples.
    """

    p_star: np.ndarray
    wayward: np.ndarray
    group: Hashable = 0
    text: Hashable = 0
    choice: Hashable = 0
    twins: bool = False


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        value: the estimate.
        error: its standard error; the error of `value` over it has the t distribution of `df`.
        df: degrees of freedom.
        of_seeds: False if there is a run without another seed. Then the interval is about these
            very prompts and other test examples, and says nothing about other runs.
        by_seeds: the part of the squared error that falls as the number of seeds grows.
        by_examples: the part that falls as the number of examples grows.
        seeds: the fewest seeds of a target or p_star.
        examples: the fewest test examples.
        level: of the interval.
    """

    value: float
    error: float = math.nan
    df: float = math.inf
    of_seeds: bool = False
    by_seeds: float = 0.0
    by_examples: float = 0.0
    seeds: int = 1
    examples: int = 1
    level: float = LEVEL

    @property
    def low(self) -> float:
        """The lower end."""
        return self.value - self._half_width

    @property
    def high(self) -> float:
        """The upper end."""
        return self.value + self._half_width

    @property
    def p_value(self) -> float:
        """The p-value of the hypothesis that the truth is 0; NaN without several seeds."""
        if not self.of_seeds:
            return math.nan
        if self.error == 0:
            return 1.0 if self.value == 0 else 0.0
        return float(2 * special.stdtr(self.df, -abs(self.value) / self.error))

    def verdict(self, margin: float) -> str:
        """Tells whether the truth is within a margin of 0: `within`, `beyond` or `cannot tell`.

        It is within if the interval lies between -margin and margin, beyond if the interval lies
        above or below both. Without several seeds nothing can be told.
        """
        if self.of_seeds and max(-self.low, self.high) <= margin:
            return WITHIN
        if self.of_seeds and max(self.low, -self.high) > margin:
            return BEYOND
        return CANNOT_TELL

    def needed(self, margin: float) -> tuple[int | None, int | None]:
        """The seeds, and the examples, that would give a verdict if the estimate stayed.

        Each is the number needed if the other stays, None if no number up to `MOST_SEEDS` or
        `MOST_EXAMPLES` is enough or where the spread between seeds is not known.
        """
        room = abs(abs(self.value) - margin)
        if not self.of_seeds or math.isnan(room):
            return None, None
        return (
            self._least(room, self.seeds, self.by_seeds, MOST_SEEDS, more_runs=True),
            self._least(room, self.examples, self.by_examples, MOST_EXAMPLES, more_runs=False),
        )

    def _least(
        self, room: float, now: int, part: float, most: int, *, more_runs: bool
    ) -> int | None:
        numbers = np.unique(np.geomspace(now, most, 400).round())
        errors = np.sqrt(np.maximum(self.error**2 - part * (1 - now / numbers), 0))
        df = self.df * (numbers - 1) / (now - 1) if more_runs else self.df
        enough = numbers[_quantile(df, self.level) * errors <= room]
        return int(enough[0]) if len(enough) else None

    @property
    def _half_width(self) -> float:
        return float(_quantile(self.df, self.level)) * self.error


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A ratio of two means with its confidence interval, in percent.

    Attributes:
        value: the estimate.
        error: the standard error of its logarithm, whose error over it has the t distribution of
            `df`.
        df: degrees of freedom.
        level: of the interval.
    """

    value: float
    error: float = math.nan
    df: float = math.inf
    level: float = LEVEL

    @property
    def low(self) -> float:
        """The lower end."""
        return self.value / self._factor

    @property
    def high(self) -> float:
        """The upper end."""
        return self.value * self._factor

    @property
    def _factor(self) -> float:
        return math.exp(float(_quantile(self.df, self.level)) * self.error)


WITHIN, BEYOND, CANNOT_TELL = "within", "beyond", "cannot tell"


def judge(found: Interval | Ratio, margin: float) -> str:
    """Tells whether the truth is at most a margin: `within`, `beyond` or `cannot tell`.

    It is within if the interval lies below the margin, and beyond if it lies above. This is about
    the very prompts that were compared, so no other seed is needed.
    """
    if found.high <= margin:
        return WITHIN
    return BEYOND if found.low > margin else CANNOT_TELL


def mean_drop(compared: Sequence[Compared]) -> Interval:
    """The accuracy drop in percent, averaged over targets, with its interval.

    With several targets, the interval is about the texts that they are a sample of; with a single
    target it is about this target. With several choices of training examples it is about the
    choices that they are a sample of. Every target has the same choices. The interval of a single
    target beside its twins is that of pairs, where it is the narrower one.
    """
    found = _estimate([list(_units(compared).values())], same_examples=True)
    first, *others = compared
    if others or not first.twins or found.seeds < FEWEST_TWINS:
        return found
    narrower = min(found, _within_pairs(first), key=lambda each: each.high - each.low)
    return dataclasses.replace(narrower, value=found.value, error=OF_NARROWER * narrower.error)


def difference(
    first: Sequence[Compared],
    second: Sequence[Compared],
    *,
    paired: bool,
    same_examples: bool,
) -> Interval:
    """The mean drop of the first group minus that of the second, in points of percent.

    Args:
        first: targets of a group.
        second: targets of another group, which may share p_stars with the first.
        paired: True if both groups have the same texts and choices, which are compared one by one.
        same_examples: True if both groups have the same test examples.
    """
    a, b = _units(first), _units(second, sign=-1)
    if not paired:
        return _estimate([list(a.values()), list(b.values())], same_examples=same_examples)
    return _estimate([[a[text] + b[text] for text in a]], same_examples=same_examples)


def mean_of(values: np.ndarray) -> Interval:
    """The mean of `[N]` values, one a prompt, with the interval of Student's t over prompts."""
    n = len(values)
    if n == 1:
        return Interval(float(values[0]))
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(float(np.mean(values)), error, n - 1, of_seeds=True)


def ratio(values: np.ndarray, whole: np.ndarray) -> Ratio:
    """The mean of `[N]` positive values in percent of the mean of others, of the same N examples.

    The interval is that of the logarithm, from jackknife pseudo-values (Tukey, 1958) with Student's
    t: means of divergences are skewed, and the logarithm of their ratio is less so.
    """
    n = len(values)
    log_ratio = math.log(values.mean() / whole.mean())
    without = np.log((values.sum() - values) / (whole.sum() - whole))
    spread = mean_of(n * log_ratio - (n - 1) * without)
    return Ratio(100 * math.exp(log_ratio), spread.error, spread.df)


def accuracy(correct: np.ndarray, beside: np.ndarray | None = None) -> Interval:
    """The mean accuracy of runs with its interval over seeds and examples, as a share.

    Args:
        correct: `[S, E]` bool, which of E examples each of S runs predicts right.
        beside: `[E]` bool, other predictions whose accuracy is subtracted.
    """
    return _mean_of_runs(correct if beside is None else correct - np.asarray(beside, float))


def gap(correct: np.ndarray, beside: np.ndarray) -> Interval:
    """The mean accuracy of prompts less that of others, in points of percent.

    The interval is over prompts and examples.

    Args:
        correct: `[N, E]` bool, which of E examples each of N prompts predicts right.
        beside: `[N, E]` bool, the same for what each prompt is compared with.
    """
    return _mean_of_runs(100.0 * (correct.astype(float) - beside))


def adjusted(p_values: Sequence[float]) -> np.ndarray:
    """Adjusts p-values for the number of tests (Benjamini and Hochberg, 1995); NaNs stay NaN."""
    values = np.array(p_values, float)
    known = ~np.isnan(values)
    if known.any():
        values[known] = stats.false_discovery_control(values[known])
    return values


class _Runs(NamedTuple):
    """Sums of squares of runs that differ in their seed alone, in a table of seeds by examples."""

    seeds: int
    examples: int
    mean: float
    by_example: np.ndarray
    of_seeds: float  # sum of squared deviations of the runs' accuracies
    of_chance: float  # sum of squared residuals after seed and example

    @classmethod
    def of(cls, values: np.ndarray) -> "_Runs":
        seeds, examples = values.shape
        by_run, by_example = values.mean(axis=1), values.mean(axis=0)
        mean = float(by_run.mean())
        of_seeds = float(((by_run - mean) ** 2).sum())
        total = float(values.var()) * values.size
        of_examples = seeds * float(((by_example - mean) ** 2).sum())
        of_chance = max(total - of_examples - examples * of_seeds, 0.0)
        return cls(seeds, examples, mean, by_example, of_seeds, of_chance)


class _Noise(NamedTuple):
    """The variance of accuracies over seeds, pooled, and of single predictions within it."""

    variance: float
    df: float
    chance: float

    @classmethod
    def of(cls, runs: Sequence[_Runs]) -> "_Noise":
        df = sum(each.seeds - 1 for each in runs)
        chance = sum(each.of_chance for each in runs) / max(runs[0].examples - 1, 1)
        return cls(sum(each.of_seeds for each in runs) / df, df, chance / df)


class _Part(NamedTuple):
    """A part of a variance, estimated with so many degrees of freedom."""

    variance: float
    df: float = math.inf


Unit = list[tuple[int, Compared]]
"""A target's drops (sign 1), or the differences of two drops of it (signs 1 and -1), by choice."""


def _units(compared: Sequence[Compared], sign: int = 1) -> dict[Hashable, Unit]:
    """Makes a unit of each target."""
    units: dict[Hashable, Unit] = {}
    for each in compared:
        units.setdefault(each.text, []).append((sign, each))
    return units


def _estimate(samples: Sequence[Sequence[Unit]], *, same_examples: bool) -> Interval:
    """Sums the means of samples of units, with an interval.

    The targets of a sample with several units are random; a single unit is that very target.
    Likewise for the choices of training examples, which samples with equal ones share.
    """
    terms = [term for sample in samples for unit in sample for term in unit]
    p_stars = {each.group: _Runs.of(each.p_star) for _, each in terms}
    if any(runs.mean == 0 for runs in p_stars.values()):
        return Interval(math.nan)
    members: dict[Hashable, list[_Runs]] = {group: [runs] for group, runs in p_stars.items()}
    # The change of the estimate with the accuracy of the p_stars, and with that of single targets.
    weights = dict.fromkeys(p_stars, 0.0)
    in_targets = dict.fromkeys(p_stars, 0.0)
    of_single = dict.fromkeys(p_stars, 0.0)
    of_wayward = dict.fromkeys(p_stars, 0.0)
    places: dict[Hashable, tuple[tuple, int, int]] = {}  # choices, side and column of the p_stars
    by_choice: dict[tuple, np.ndarray] = {}
    influence: dict[tuple[tuple, int], np.ndarray] = {}
    of_targets, chance, value = [], 0.0, 0.0
    for sample in samples:
        choices = tuple(dict.fromkeys(each.choice for _, each in sample[0]))
        units, columns = len(sample), len(choices)
        drops = np.zeros((units, columns))
        slopes = {group: np.zeros(units) for group in p_stars}
        tables: dict[int, np.ndarray] = {}
        for i, unit in enumerate(sample):
            for sign, each in unit:
                best, runs = p_stars[each.group], _Runs.of(each.wayward)
                column, side = choices.index(each.choice), 0 if same_examples else sign
                members[each.group].append(runs)
                places[each.group] = choices, side, column
                slope = -100 * sign / best.mean / columns
                drops[i, column] += 100 * sign * (1 - runs.mean / best.mean)
                slopes[each.group][i] += 100 * sign * runs.mean / best.mean**2 / columns
                of_single[each.group] += slope**2 / runs.seeds if units == 1 else 0
                of_wayward[each.group] += (slope / units) ** 2 / runs.seeds
                table = tables.setdefault(side, np.zeros((units, columns, runs.examples)))
                table[i, column] += slope * runs.by_example
        value += float(drops.mean())
        by_choice[choices] = by_choice.get(choices, 0) + drops.mean(axis=0)
        for group, slopes_of_group in slopes.items():
            weights[group] += slopes_of_group.mean()
            if units > 1:
                in_targets[group] += slopes_of_group.var(ddof=1) / units
        for side, table in tables.items():
            key = choices, side
            influence[key] = influence.get(key, 0) + table.mean(axis=0)
            if units > 1:
                chance += _residual(table.sum(axis=1)) / units
        if units > 1:
            between = drops.mean(axis=1).var(ddof=1) - _residual(drops)
            of_targets.append(_Part(max(float(between), 0) / units, units - 1))
    for group, (choices, side, column) in places.items():
        influence[choices, side][column] += weights[group] * p_stars[group].by_example
    sides: dict[int, np.ndarray] = {}
    for (choices, side), table in influence.items():
        sides[side] = sides.get(side, 0) + table.sum(axis=0)
        if len(choices) > 1:
            chance += _residual(table) * len(choices)
    over_examples = float(sum(np.var(each, ddof=1) / len(each) for each in sides.values()))
    all_runs = [runs for each in members.values() for runs in each]
    seeds, examples = (min(getattr(r, name) for r in all_runs) for name in ("seeds", "examples"))
    if seeds == 1:
        return Interval(
            value, math.sqrt(over_examples), by_examples=over_examples, examples=examples
        )
    of_choices = [
        _Part(float(drops.var(ddof=1)) / len(drops), len(drops) - 1)
        for drops in by_choice.values()
        if len(drops) > 1
    ]
    of_runs, from_seeds = [], 0.0
    for group, best in p_stars.items():
        noise = _Noise.of(members[group])
        p_star = weights[group] ** 2 / best.seeds
        from_seeds += noise.variance * (p_star + of_wayward[group])
        if len(places[group][0]) == 1:  # the parts of several choices have their runs in them
            rest = max(p_star - in_targets[group] / best.seeds, 0) + of_single[group]
            of_runs.append(_Part(noise.variance * rest, noise.df))
            chance += noise.chance * (p_star + of_single[group]) / best.examples
    shared = _Part(max(over_examples - chance, 0.0))
    error, df = _combine([_pool(of_runs), _pool(of_targets), _pool(of_choices), shared])
    return Interval(
        value, error, df, True, min(from_seeds, error**2), over_examples, seeds, examples
    )


def _within_pairs(compared: Compared) -> Interval:
    """The interval of a drop from the differences of twins, linearized as the drop is."""
    best, own = compared.p_star.mean(), compared.wayward.mean()
    return _mean_of_runs(100 * (own / best**2 * compared.p_star - compared.wayward / best))


def _mean_of_runs(values: np.ndarray) -> Interval:
    """The mean of `[S, E]` values of S runs and E examples, with its interval over both."""
    runs = _Runs.of(values)
    over_examples = float(np.var(runs.by_example, ddof=1)) / runs.examples
    several, from_seeds = runs.seeds > 1, 0.0
    parts = [_Part(over_examples)]
    if several:
        noise = _Noise.of([runs])
        from_seeds = noise.variance / runs.seeds
        shared = over_examples - noise.chance / runs.seeds / runs.examples
        parts = [_Part(from_seeds, noise.df), _Part(max(shared, 0.0))]
    error, df = _combine(parts)
    return Interval(
        runs.mean, error, df, several, from_seeds, over_examples, runs.seeds, runs.examples
    )


def _residual(table: np.ndarray) -> float:
    """The mean square of what is left of `[U, E]` after rows and columns, over E."""
    units, examples = table.shape
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    return float((rest**2).sum()) / (units - 1) / max(examples - 1, 1) / examples


def _pool(parts: Sequence[_Part]) -> _Part:
    """The sum of parts, with Satterthwaite's degrees of freedom."""
    variance = sum(part.variance for part in parts)
    spread = sum(part.variance**2 / part.df for part in parts)
    return _Part(variance, variance**2 / spread if spread > 0 else math.inf)


def _combine(parts: Sequence[_Part]) -> tuple[float, float]:
    """The standard error of an estimate, and its degrees of freedom."""
    whole = _pool(parts)
    quantile = _quantile(whole.df)
    wider = sum(part.variance * (_quantile(part.df) / quantile) ** 2 for part in parts)
    variance = (1 - TOWARDS_WIDER) * whole.variance + TOWARDS_WIDER * wider
    return math.sqrt(variance), whole.df


def _quantile(df: float | np.ndarray, level: float = LEVEL) -> np.ndarray:
    """The factor from a standard error to half the width of an interval."""
    return special.stdtrit(df, (1 + level) / 2)
