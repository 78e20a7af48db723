"""Bootstrap intervals, and permutation tests of differences between groups (SciPy)."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000

# Resamples that are held in memory together: with 7,600 examples they take 12 MB.
RESAMPLES_AT_ONCE = 200


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, whose ends are NaN if there is a single value.

    Attributes:
        value: the estimate from all the data.
        low: the lower end of the interval.
        high: the upper end of the interval.
    """

    value: float
    low: float
    high: float

    @property
    def within_noise(self) -> bool:
        """True if the interval holds 0."""
        return not (self.low > 0 or self.high < 0)


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference between the means of two groups.

    Attributes:
        value: the mean of the first group minus the mean of the second.
        p_value: the share of random regroupings whose difference is at least as large, in either
            direction; NaN if a group has a single value.
    """

    value: float
    p_value: float


def drop_over_examples(p_star: np.ndarray, wayward: np.ndarray) -> Interval:
    """The accuracy drop of given prompts in percent, with an interval over test examples.

    The bootstrap is paired: an example is drawn for all prompts together. The correctness of an
    example is averaged over seeds, so the interval says nothing about other seeds.

    Args:
        p_star: `[P, E]` bool, which of E examples the unconstrained prompts predict right.
        wayward: `[R, E]` bool, which of them the prompts with a target predict right.
    """
    return _bootstrap((p_star.mean(axis=0), wayward.mean(axis=0)), _relative_drop, paired=True)


def drop_over_all(p_star: np.ndarray, wayward: np.ndarray) -> Interval:
    """The mean accuracy drop of T targets in percent, with an interval over all that was sampled.

    Targets, seeds and test examples are crossed: all targets of a seed share their p_star, and all
    prompts share the examples. So the bootstrap draws whole targets, seeds and examples, each
    independently of the others (Owen, 2007, "The pigeonhole bootstrap"). A single target, seed or
    example is kept in every resample. The interval is too narrow if there are few targets or seeds,
    because a few of them show little of their spread.

    Args:
        p_star: `[T, S, E]`, the share of runs, from 0 to 1, that predict each example right, for
            the unconstrained prompts that the targets are compared with.
        wayward: `[T, S, E]`, the same share for the targets' prompts.
    """

    def mean_drop(
        targets: np.ndarray, seeds: np.ndarray, examples: np.ndarray, axis: int = -1
    ) -> np.ndarray:
        weights = _shares(examples, p_star.shape[-1])
        drawn = [
            _drawn(np.tensordot(weights, right, ([-1], [-1])), targets, seeds)
            for right in (p_star, wayward)
        ]
        return _relative_drop(*drawn).mean(axis=axis)

    return _bootstrap([_indices(n) for n in wayward.shape], mean_drop, paired=False)


def mean_over_prompts(values: np.ndarray) -> Interval:
    """The mean of `[N]` values, one a prompt, with an interval over prompts."""
    if len(values) == 1:
        return Interval(float(values[0]), np.nan, np.nan)
    return _bootstrap((values,), np.mean, paired=False)


def difference(first: np.ndarray, second: np.ndarray, *, paired: bool) -> Difference:
    """Compares the means of two groups by a two-sided permutation test.

    Args:
        first: `[N]` values, such as the drops of targets.
        second: `[M]` values.
        paired: True if `first[i]` and `second[i]` belong together, as two drops of a target do.
    """
    value = float(np.mean(first) - np.mean(second))
    if min(len(first), len(second)) < 2:
        return Difference(value, np.nan)
    test = stats.permutation_test(
        (first, second),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        permutation_type="samples" if paired else "independent",
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return Difference(value, float(test.pvalue))


def adjusted(p_values: Sequence[float]) -> np.ndarray:
    """Adjusts p-values for the number of tests (Benjamini and Hochberg, 1995); NaNs stay NaN."""
    adjusted_values = np.array(p_values, float)
    known = ~np.isnan(adjusted_values)
    if known.any():
        adjusted_values[known] = stats.false_discovery_control(adjusted_values[known])
    return adjusted_values


def _relative_drop(best: np.ndarray, accuracy: np.ndarray, axis: int = -1) -> np.ndarray:
    """Applies `metrics.accuracy_drop` to the means over an axis."""
    best, accuracy = best.mean(axis=axis), accuracy.mean(axis=axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(best > 0, 100 * (best - accuracy) / best, np.nan)


def _indices(n: int) -> np.ndarray:
    """The sample of n indices to draw from; a single one is there twice, so it never varies."""
    return np.arange(n) if n > 1 else np.zeros(2, int)


def _shares(drawn: np.ndarray, n: int) -> np.ndarray:
    """The share of draws that fall on each of n indices: `[..., D]` -> `[..., n]`."""
    counts = np.apply_along_axis(np.bincount, -1, drawn, minlength=n)
    return counts.astype(np.float32) / drawn.shape[-1]


def _drawn(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Takes rows `[..., A]` and columns `[..., B]` of values `[..., T, S]`: `[..., A, B]`."""
    of_rows = np.take_along_axis(values, rows[..., :, None], axis=-2)
    return np.take_along_axis(of_rows, columns[..., None, :], axis=-1)


def _bootstrap(
    samples: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], *, paired: bool
) -> Interval:
    value = float(statistic(*samples, axis=-1))
    if np.isnan(value):
        return Interval(np.nan, np.nan, np.nan)
    found = stats.bootstrap(
        samples,
        statistic,
        paired=paired,
        vectorized=True,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        batch=RESAMPLES_AT_ONCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high))
