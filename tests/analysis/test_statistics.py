"""Intervals against formulas worked by hand, textbook cases, and simulated truths."""

import numpy as np
import pytest
from scipy import stats

from experiments.calibration import Case, coverage, relative_width, run_case
from wayward_jax.analysis.statistics import (
    BEYOND,
    CANNOT_TELL,
    OF_NARROWER,
    WITHIN,
    Compared,
    Interval,
    accuracy,
    adjusted,
    difference,
    gap,
    mean_drop,
    mean_of,
)


def correct(pattern):
    return np.array([[mark == "+" for mark in line] for line in pattern.split()])


def runs(*accuracies, examples=1000):
    """Runs that predict the first examples right."""
    return np.arange(examples) < examples * np.array(accuracies)[:, None]


def drop_of(p_star, wayward):
    return mean_drop([Compared(p_star, wayward)])


def test_the_drop_is_relative_to_p_star():
    assert drop_of(correct("++++-"), correct("+++--")).value == pytest.approx(25)


def test_correctness_is_averaged_over_seeds():
    drop = drop_of(correct("++++ ++--"), correct("+--- ++++ +---"))
    assert drop.value == pytest.approx(100 * (6 / 8 - 6 / 12) / (6 / 8))


def test_equal_predictions_differ_by_exactly_nothing():
    same = np.repeat(np.random.default_rng(0).random((1, 200)) < 0.8, 2, axis=0)
    drop = drop_of(same, same)
    assert (drop.value, drop.low, drop.high) == pytest.approx((0, 0, 0), abs=1e-6)
    assert drop.verdict(2) == WITHIN
    assert drop.p_value == 1


@pytest.mark.parametrize("seeds", [3, 5])
def test_what_runs_and_their_twins_have_in_common_does_not_widen_the_interval(seeds):
    """Twins that predict the same, seeds that are points apart."""
    same = runs(*np.linspace(0.7, 0.8, seeds))
    cost = mean_drop([Compared(same, same, twins=True)])
    assert (cost.value, cost.low, cost.high) == pytest.approx((0, 0, 0), abs=1e-6)
    assert drop_of(same, same).high > 5


@pytest.mark.parametrize("seeds", [3, 5])
def test_twins_with_nothing_in_common_widen_it_hardly(seeds):
    """The noise of a seed is that of its twin with the other sign."""
    noise = np.linspace(-0.05, 0.05, seeds)
    p_star, wayward = runs(*(0.8 + noise)), runs(*(0.8 - noise))
    cost, drop = mean_drop([Compared(p_star, wayward, twins=True)]), drop_of(p_star, wayward)
    assert cost.value == drop.value
    assert cost.high - cost.low == pytest.approx(OF_NARROWER * (drop.high - drop.low))


def test_two_pairs_of_twins_are_compared_as_other_runs_are():
    same = runs(0.7, 0.8)
    assert mean_drop([Compared(same, same, twins=True)]) == drop_of(same, same)


def test_the_interval_beside_twins_is_that_of_paired_differences():
    """Over so many examples the seeds' noise is all of the error: a paired t-test of accuracies."""
    twin, own = np.array([0.70, 0.75, 0.80, 0.83]), np.array([0.71, 0.74, 0.80, 0.81])
    many = 10**6
    cost = mean_drop([Compared(runs(*twin, examples=many), runs(*own, examples=many), twins=True)])
    # The drop 1 - own / twin, linearized in both means.
    linear = own.mean() / twin.mean() ** 2 * twin - own / twin.mean()
    half = stats.t.ppf(0.975, 3) * stats.sem(100 * linear)
    assert cost.high - cost.value == pytest.approx(OF_NARROWER * half, rel=0.02)


def test_pairing_examples_makes_the_interval_narrower():
    rng = np.random.default_rng(0)
    best = rng.random(400) < 0.8
    wayward = best ^ (rng.random(400) < 0.02)  # the two disagree on few examples
    paired = drop_of(best[None], wayward[None])
    shuffled = drop_of(best[None], rng.permutation(wayward)[None])
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_with_one_seed_the_interval_is_that_of_a_paired_bootstrap_over_examples():
    rng = np.random.default_rng(0)
    best, wayward = rng.random((2, 400)) < [[0.8], [0.7]]
    drop = drop_of(best[None], wayward[None])
    found = stats.bootstrap(
        (best, wayward),
        lambda a, b, axis: 100 * (1 - b.mean(axis=axis) / a.mean(axis=axis)),
        paired=True,
        vectorized=True,
        rng=rng,
    ).confidence_interval
    assert (drop.low, drop.high) == pytest.approx((found.low, found.high), abs=1)
    assert not drop.of_seeds


def test_with_one_seed_there_is_no_verdict():
    drop = drop_of(runs(0.9), runs(0.1))
    assert drop.low > 50
    assert (drop.verdict(2), drop.needed(2)) == (CANNOT_TELL, (None, None))
    assert np.isnan(drop.p_value)


def test_the_interval_of_a_target_is_students_if_runs_differ_and_examples_hardly():
    """p_star is at 0.8; one variance is pooled, as in Student's test of two samples."""
    p_star, wayward = (0.78, 0.82, 0.80), (0.70, 0.74, 0.69)
    drop = drop_of(*(runs(*own, examples=10**5) for own in (p_star, wayward)))
    found = stats.ttest_ind(p_star, np.array(wayward)).confidence_interval()
    assert drop.value == pytest.approx(100 * (0.8 - 0.71) / 0.8)
    assert drop.high - drop.low == pytest.approx(100 * (found.high - found.low) / 0.8, rel=0.1)


def test_the_interval_of_a_group_is_students_over_targets_if_runs_do_not_differ():
    levels = (0.70, 0.75, 0.72, 0.79)
    p_star = runs(0.8, 0.8, examples=10**6)
    group = [
        Compared(p_star, runs(level, level, examples=10**6), text=i)
        for i, level in enumerate(levels)
    ]
    drop = mean_drop(group)
    found = stats.ttest_1samp(100 * (1 - np.array(levels) / 0.8), 0).confidence_interval()
    assert (drop.low, drop.high) == pytest.approx((found.low, found.high), rel=0.01)


def test_own_p_stars_of_targets_are_not_counted_twice():
    """Where each target has its own p_star, drops alone say how certain their mean is."""
    rng = np.random.default_rng(0)
    accuracies = rng.normal(0.8, 0.03, (6, 2, 2))
    group = [
        Compared(runs(*own[0], examples=10**5), runs(*own[1], examples=10**5), i, text=i)
        for i, own in enumerate(accuracies)
    ]
    drops = [100 * (1 - own[1].mean() / own[0].mean()) for own in accuracies]
    found = stats.ttest_1samp(drops, 0).confidence_interval()
    drop = mean_drop(group)
    assert (drop.low, drop.high) == pytest.approx((found.low, found.high), rel=0.05)


def test_a_p_star_that_groups_share_does_not_make_their_difference_uncertain():
    rng = np.random.default_rng(0)
    first, second = (
        [runs(*rng.normal(0.7, 0.01, 2)) for _ in range(5)],
        [runs(*rng.normal(0.7, 0.01, 2)) for _ in range(5)],
    )
    shared, other = runs(0.75, 0.85), runs(0.7, 0.9)
    narrow, wide = (
        difference(
            [Compared(shared, each, "a", i) for i, each in enumerate(first)],
            [Compared(p_star, each, group, i) for i, each in enumerate(second)],
            paired=False,
            same_examples=True,
        )
        for p_star, group in ((shared, "a"), (other, "b"))
    )
    assert narrow.value == pytest.approx(wide.value)
    assert narrow.error < 0.3 * wide.error


def test_the_interval_of_a_target_is_students_over_choices_of_examples_if_all_else_is_certain():
    """Each choice has a p_star of its own, and its runs do not differ between seeds."""
    pairs = ((0.80, 0.70), (0.84, 0.78), (0.82, 0.71), (0.78, 0.75), (0.83, 0.80))
    drop = mean_drop(
        [
            Compared(runs(p, p, examples=10**6), runs(w, w, examples=10**6), c, choice=c)
            for c, (p, w) in enumerate(pairs)
        ]
    )
    drops = [100 * (1 - w / p) for p, w in pairs]
    found = stats.ttest_1samp(drops, 0).confidence_interval()
    assert drop.value == pytest.approx(np.mean(drops))
    assert (drop.low, drop.high) == pytest.approx((found.low, found.high), rel=0.01)


@pytest.mark.slow
def test_the_variance_of_crossed_targets_and_choices_is_that_of_their_mean_squares():
    """As of a two-way table without replication: (MS_rows + MS_columns - MS_rest) / cells."""
    rng = np.random.default_rng(3)
    rows, columns = rng.normal(0, 0.03, (8, 1)), rng.normal(0, 0.02, 6)
    levels = 0.6 + rows + columns + rng.normal(0, 0.01, (8, 6))
    table = [
        Compared(runs(0.8, 0.8, examples=10**5), runs(w, w, examples=10**5), c, text=t, choice=c)
        for (t, c), w in np.ndenumerate(levels)
    ]
    rest = levels - levels.mean(axis=0) - levels.mean(axis=1, keepdims=True) + levels.mean()
    squares = 6 * levels.mean(axis=1).var(ddof=1) + 8 * levels.mean(axis=0).var(ddof=1)
    variance = (squares - (rest**2).sum() / 35) / 48
    assert mean_drop(table).error == pytest.approx(100 / 0.8 * variance**0.5, rel=0.1)


def test_choices_that_both_groups_share_do_not_make_their_difference_uncertain():
    rng = np.random.default_rng(0)
    of_choice = rng.normal(0, 0.05, 5)

    def group(level, choices):
        return [
            Compared(
                *(runs(0.8, 0.8), runs(*[level + of_choice[c]] * 2)),
                *(("p", c), 0, names),
            )
            for c, names in enumerate(choices)
        ]

    same = difference(group(0.6, range(5)), group(0.5, range(5)), paired=True, same_examples=True)
    others = difference(
        group(0.6, range(5)), group(0.5, range(5, 10)), paired=False, same_examples=True
    )
    assert same.value == pytest.approx(others.value) == pytest.approx(-12.5)
    assert same.error < 0.5 * others.error


@pytest.mark.parametrize("twins", [False, True])
@pytest.mark.filterwarnings("error")
def test_a_p_star_that_is_never_right_has_no_drop(twins):
    drop = mean_drop([Compared(correct("---- " * 3), correct("++-- " * 3), twins=twins)])
    assert np.isnan([drop.value, drop.low, drop.high]).all()
    assert drop.verdict(2) == CANNOT_TELL


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (0.0, 0.5, WITHIN),
        (1.9, 0.5, CANNOT_TELL),
        (0.0, 2.0, CANNOT_TELL),
        (5.0, 1.0, BEYOND),
        (-5.0, 1.0, BEYOND),
        (2.5, 1.0, CANNOT_TELL),
    ],
)
def test_a_verdict_is_about_the_whole_interval(value, error, verdict):
    assert Interval(value, error, of_seeds=True).verdict(2) == verdict


def test_the_numbers_that_are_needed_give_a_verdict():
    """Half of the squared error falls with the seeds, and half with the examples."""
    found = Interval(
        0.0, 2**0.5, df=1e9, of_seeds=True, by_seeds=1, by_examples=1, seeds=3, examples=500
    )
    assert found.needed(1.9) == (None, None)  # the other half alone is too much, 1.96
    seeds, examples = found.needed(2.5)
    error = (2.5 / 1.96) ** 2 - 1
    assert seeds == pytest.approx(3 / error, abs=1)
    assert examples == pytest.approx(500 / error, rel=0.03)


def test_the_interval_of_an_accuracy_is_wilsons_for_one_seed_of_many_examples():
    rng = np.random.default_rng(0)
    right = rng.random((1, 1000)) < 0.7
    found = accuracy(right)
    wilson = stats.binomtest(int(right.sum()), 1000).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=0.002)
    assert accuracy(runs(0.6, 0.8)).high - 0.7 > 0.5  # two seeds that far apart tell little


def test_what_runs_gain_over_other_predictions_is_compared_example_by_example():
    rng = np.random.default_rng(0)
    right, beside = rng.random((1, 500)) < 0.7, rng.random(500) < 0.6
    found = accuracy(right, beside)
    differences = right[0] * 1.0 - beside
    expected = stats.norm.interval(0.95, differences.mean(), stats.sem(differences))
    assert (found.low, found.high) == pytest.approx(expected)


def test_p_values_are_adjusted_as_benjamini_and_hochberg_have_it():
    # Sorted p times m / rank, never less than a later one: 0.01*3/1, 0.02*3/2, 0.5*3/3.
    found = adjusted([0.5, np.nan, 0.01, 0.02])
    np.testing.assert_allclose(found, [0.5, np.nan, 0.03, 0.03])


def test_the_interval_over_prompts_is_students():
    values = np.array([0.1, 0.5, 0.6, 0.9, 0.2])
    found = stats.ttest_1samp(values, 0)
    interval = found.confidence_interval()
    mean = mean_of(values)
    assert mean.value == pytest.approx(0.46)
    assert (mean.low, mean.high) == pytest.approx((interval.low, interval.high))
    assert mean.p_value == pytest.approx(found.pvalue)


def test_one_prompt_has_no_interval():
    assert np.isnan(mean_of(np.array([0.5])).low)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [Case(2, 256, 0.0, 0.0), Case(2, 256, 0.03, 0.02), Case(5, 256, 0.02, 0.0)],
    ids=str,
)
def test_95_percent_of_intervals_hold_the_truth_and_they_are_not_much_too_wide(case, monkeypatch):
    """The small form of `experiments.calibration`; three standard errors of 200 are 0.046.

    Its 30 targets take most of the time, and intervals of 9 are made as those of 30 are.
    """
    monkeypatch.setattr("experiments.calibration.TARGETS", (1, 3, 9))
    for key, outcomes in run_case(case, trials=200, seed=0).items():
        assert coverage(outcomes) >= 0.90, key
        assert relative_width(outcomes) < 1.5, key


def test_an_interval_of_gaps_holds_for_other_examples_where_all_prompts_read_as_one_text():
    """Simulated: the text is right in 65 % of 200 examples, prompts in about 80 %."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        accuracies = 0.8 + 0.01 * rng.normal(size=(3, 1))
        text = np.tile(rng.random(200) < 0.65, (3, 1))
        found = gap(rng.random((3, 200)) < accuracies, text)
        held.append(found.low <= 15 <= found.high)
    assert 0.92 < np.mean(held) < 0.99
