"""Areas under ROC curves, against counts of pairs, simulations with known truth, and by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from wayward_jax.analysis import detection
from wayward_jax.analysis.detection import area, left_out, with_interval

RNG = np.random.default_rng(0)


def test_the_area_is_the_share_of_pairs_and_that_of_the_rank_test():
    wayward, honest = RNG.integers(0, 5, 12), RNG.integers(1, 7, 9)
    pairs = [(w > h) + (w == h) / 2 for w in wayward for h in honest]
    assert area(wayward, honest) == pytest.approx(np.mean(pairs))
    statistic = stats.mannwhitneyu(wayward, honest).statistic
    assert area(wayward, honest) == pytest.approx(statistic / (12 * 9))


@pytest.mark.parametrize(("shift", "sizes"), [(0.0, (12, 12)), (1.0, (8, 20)), (2.0, (15, 15))])
def test_intervals_hold_the_true_area_about_as_often_as_they_say(shift, sizes):
    """The scores of both tasks are normal, so the area is known."""
    true = stats.norm.cdf(shift / np.sqrt(2))
    held = 0
    for _ in range(400):
        areas = [area(RNG.normal(shift, 1, sizes[0]), RNG.normal(0, 1, sizes[1])) for _ in range(2)]
        found = with_interval(float(np.mean(areas)), [sizes] * 2)
        assert found.low <= found.value <= found.high
        held += found.low <= true <= found.high
    assert 0.92 <= held / 400 <= 0.99


def test_an_interval_is_wide_where_few_prompts_are_all_told_apart():
    few, many = (with_interval(1.0, [(n, n)] * 2) for n in (3, 300))
    assert few.low < 0.8 < many.low
    assert few.high == many.high == 1


def test_a_direction_that_is_turned_around_in_the_other_task_gives_an_area_below_a_half():
    is_wayward = np.array([True, True, False, False] * 2)
    tasks = np.repeat(["a", "b"], 4)
    same = np.array([3.0, 4, 1, 2, 30, 40, 10, 20])[:, None]
    assert left_out(same, is_wayward, tasks).value == 1
    assert left_out(-same, is_wayward, tasks).value == 1
    turned = np.array([3.0, 4, 1, 2, 10, 20, 30, 40])[:, None]
    assert left_out(turned, is_wayward, tasks).value == 0


def test_scores_together_tell_apart_what_none_does_alone():
    """Two scores that share their noise: only their difference says anything."""
    count = 60
    is_wayward, tasks = np.arange(count) % 2 == 0, np.repeat(["a", "b", "c"], count // 3)
    noise = RNG.normal(0, 2, count)
    values = np.stack([noise + is_wayward, noise], axis=1)
    assert left_out(values, is_wayward, tasks).value > 0.95
    assert left_out(values[:, :1], is_wayward, tasks).low < 0.6


def test_the_table_has_both_kinds_of_honest_prompts_and_needs_two_tasks():
    kinds = ["wayward", "true description", "p_star"] * 4
    frame = pd.DataFrame(
        {
            "model": "m",
            "task": np.repeat(["a", "b"], 6),
            "prompt": kinds,
            **{name: RNG.normal(size=12) for name in detection.SCORES},
        }
    )
    frame["norm"] = [{"wayward": 3.0, "p_star": 2.0}.get(kind, 1.0) for kind in kinds]
    made = detection.table(frame).set_index(["honest", "score"])
    assert len(made) == 2 * (len(detection.SCORES) + 1)
    for honest in ("true description", "p_star"):
        assert made.loc[(honest, "norm"), "area"] == 1
        assert made.loc[(honest, "norm"), "prompts"] == 8
    assert detection.table(frame[frame["task"] == "a"]).empty
