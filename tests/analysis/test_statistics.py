"""Intervals and tests against cases worked by hand, enumerations, and simulated truths."""

from itertools import combinations, product

import numpy as np
import pytest

from wayward_jax.analysis.statistics import (
    Interval,
    adjusted,
    difference,
    drop_over_all,
    drop_over_examples,
    mean_over_prompts,
)


def correct(pattern):
    return np.array([[mark == "+" for mark in line] for line in pattern.split()])


def test_the_drop_is_relative_to_p_star():
    drop = drop_over_examples(correct("++++-"), correct("+++--"))
    assert drop.value == pytest.approx(25)


def test_correctness_is_averaged_over_seeds():
    drop = drop_over_examples(correct("++++ ++--"), correct("+--- ++++ +---"))
    assert drop.value == pytest.approx(100 * (6 / 8 - 6 / 12) / (6 / 8))


def test_equal_predictions_differ_by_exactly_nothing():
    same = np.random.default_rng(0).random((1, 200)) < 0.8
    drop = drop_over_examples(same, same)
    assert (drop.value, drop.low, drop.high) == (0, 0, 0)
    assert drop.within_noise


def test_pairing_examples_makes_the_interval_narrower():
    rng = np.random.default_rng(0)
    best = rng.random(400) < 0.8
    wayward = best ^ (rng.random(400) < 0.02)  # the two disagree on few examples
    paired = drop_over_examples(best[None], wayward[None])
    shuffled = drop_over_examples(best[None], rng.permutation(wayward)[None])
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_the_interval_over_examples_is_that_of_all_resamples():
    best, wayward = np.array([1, 1, 1, 0, 1, 1]), np.array([1, 0, 1, 0, 0, 1])
    drawn = np.array(list(product(range(6), repeat=6)))
    means = best[drawn].mean(1), wayward[drawn].mean(1)
    exact = 100 * (means[0] - means[1])[means[0] > 0] / means[0][means[0] > 0]
    drop = drop_over_examples(best[None].astype(bool), wayward[None].astype(bool))
    low, high = np.quantile(exact, [0.025, 0.975])
    assert drop.low == pytest.approx(low, abs=3)
    assert drop.high == pytest.approx(high, abs=3)


def test_95_percent_of_intervals_over_examples_hold_the_true_drop():
    rng = np.random.default_rng(0)
    truth, trials, held = 100 * (0.85 - 0.80) / 0.85, 200, 0
    for _ in range(trials):
        best = rng.random(300) < 0.85
        wayward = np.where(best, rng.random(300) < 0.9, rng.random(300) < 0.035 / 0.15)
        drop = drop_over_examples(best[None], wayward[None])
        held += drop.low <= truth <= drop.high
    assert 0.90 <= held / trials <= 0.985  # two standard errors of a share of 200 are 0.03


@pytest.mark.slow
def test_intervals_over_all_hold_the_true_drop_and_are_not_much_too_wide():
    """Right is what is above 0: easy examples, good prompts, and chance. The truth is no drop."""
    rng = np.random.default_rng(0)
    drops = []
    for _ in range(100):
        examples, seeds = rng.normal(1.5, 1.5, 200), rng.normal(0, 0.1, (3, 1))
        p_star = examples + seeds + rng.normal(0, 0.2, (3, 1)) + rng.normal(0, 1, (3, 200))
        targets = rng.normal(0, 0.1, (8, 1, 1)) + rng.normal(0, 0.2, (8, 3, 1))
        wayward = examples + seeds + targets + rng.normal(0, 1, (8, 3, 200))
        drops.append(drop_over_all(np.tile(p_star > 0, (8, 1, 1)), wayward > 0))
    assert np.mean([drop.low <= 0 <= drop.high for drop in drops]) >= 0.88
    widths = [drop.high - drop.low for drop in drops]
    assert np.mean(widths) < 1.5 * 2 * 1.96 * np.std([drop.value for drop in drops])


def only_accuracies(values):
    """The correctness of a single example, which is right so often."""
    return np.asarray(values)[..., None]


def test_seeds_that_go_all_one_way_widen_the_interval():
    best, wayward = np.ones((20, 2)), np.tile([0.9, 1.0], (20, 1))
    drop = drop_over_all(only_accuracies(best), only_accuracies(wayward))
    assert drop.value == pytest.approx(5)
    assert (drop.low, drop.high) == (pytest.approx(0), pytest.approx(10))


def test_with_one_seed_the_interval_is_over_targets():
    drops = np.array([[0.0], [4.0]])
    drop = drop_over_all(only_accuracies(np.ones((2, 1))), only_accuracies(1 - drops / 100))
    assert drop.value == pytest.approx(2)
    assert (drop.low, drop.high) == (pytest.approx(0, abs=1e-5), pytest.approx(4))


def test_with_one_target_and_seed_the_interval_is_that_over_examples():
    rng = np.random.default_rng(0)
    best, wayward = rng.random((2, 400)) < [[0.8], [0.7]]
    drop, other = (
        drop_over_all(best[None, None], wayward[None, None]),
        drop_over_examples(best[None], wayward[None]),
    )
    assert drop.value == pytest.approx(other.value)
    assert (drop.low, drop.high) == pytest.approx((other.low, other.high), abs=1)


def test_equal_predictions_have_no_drop_in_any_resample():
    same = np.tile(np.random.default_rng(0).random((2, 50)) < 0.8, (3, 1, 1))
    drop = drop_over_all(same, same)
    assert (drop.value, drop.low, drop.high) == (0, 0, 0)


def test_a_p_star_that_is_never_right_has_no_drop():
    assert np.isnan(drop_over_examples(correct("----"), correct("++--")).value)


@pytest.mark.parametrize(
    ("low", "high", "noise"), [(-1, 1, True), (0, 2, True), (0.1, 2, False), (-3, -0.1, False)]
)
def test_an_interval_is_within_noise_if_it_holds_0(low, high, noise):
    assert Interval((low + high) / 2, low, high).within_noise == noise


def test_the_p_value_counts_the_regroupings_that_differ_as_much():
    first, second = np.array([5.0, 6.0, 9.0]), np.array([1.0, 2.0, 3.0, 4.5])
    pooled = np.concatenate([first, second])
    means = [
        pooled[list(chosen)].mean() - np.delete(pooled, chosen).mean()
        for chosen in combinations(range(7), 3)
    ]
    found = difference(first, second, paired=False)
    # Two-sided as SciPy has it: twice the smaller tail.
    tail = np.mean(np.array(means) >= found.value - 1e-12)
    assert found.value == pytest.approx(20 / 3 - 10.5 / 4)
    assert found.p_value == pytest.approx(2 * tail)


def test_the_paired_p_value_counts_the_signs_that_differ_as_much():
    first, second = np.array([3.0, 5.0, 2.0, 6.0]), np.array([1.0, 2.0, 3.0, 2.0])
    gaps = first - second
    means = [np.mean(gaps * signs) for signs in product([1, -1], repeat=4)]
    found = difference(first, second, paired=True)
    tail = np.mean(np.array(means) >= found.value - 1e-12)
    assert found.p_value == pytest.approx(2 * tail)


def test_groups_from_one_distribution_are_seldom_found_to_differ():
    rng = np.random.default_rng(0)
    p_values = [difference(*rng.normal(size=(2, 5)), paired=False).p_value for _ in range(100)]
    assert np.mean(np.array(p_values) < 0.05) <= 0.1


def test_a_single_value_has_no_p_value():
    found = difference(np.array([1.0]), np.array([2.0, 3.0]), paired=False)
    assert found.value == -1.5
    assert np.isnan(found.p_value)


def test_p_values_are_adjusted_as_benjamini_and_hochberg_have_it():
    # Sorted p times m / rank, never less than a later one: 0.01*3/1, 0.02*3/2, 0.5*3/3.
    found = adjusted([0.5, np.nan, 0.01, 0.02])
    np.testing.assert_allclose(found, [0.5, np.nan, 0.03, 0.03])


def test_the_interval_over_prompts_is_that_of_all_resamples():
    values = np.array([0.1, 0.5, 0.6, 0.9, 0.2])
    low, high = np.quantile(
        values[np.array(list(product(range(5), repeat=5)))].mean(1), [0.025, 0.975]
    )
    found = mean_over_prompts(values)
    assert found.value == pytest.approx(0.46)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)


def test_one_prompt_has_no_interval():
    assert np.isnan(mean_over_prompts(np.array([0.5])).low)
