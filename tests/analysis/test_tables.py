"""Tables of comparisons, on records made by hand."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from tests.helpers.finished_runs import best, wayward, with_run
from wayward_jax.analysis import shown_tables, tables
from wayward_jax.analysis.selection import compare
from wayward_jax.runs import write_bits

DROPS = {"one/1": 0.7, "one/2": 0.6, "one/3": 0.5, "two/1": 0.8, "two/2": 0.7}


def finished(task="sst2", names=DROPS, **setting):
    """A p_star and the targets of these names."""
    seeds = setting.pop("seeds", (1,))
    made = [best(0.8, seed=seed) for seed in seeds]
    made += [
        wayward(DROPS[name], name=name, text=f"{name} word", run={"seed": seed, "gamma": 0.1})
        for name in names
        for seed in seeds
    ]
    return [with_run(record, task=task, **setting) for record in made]


def test_a_group_has_the_mean_drop_and_counts_what_is_behind_it():
    frame = tables.by_group(compare(finished())).set_index("set")
    assert list(frame.index) == ["one", "two"]
    assert frame.loc["one", "drop"] == pytest.approx(100 * (0.8 - 0.6) / 0.8)
    assert (frame["targets"].tolist(), frame["seeds"].tolist()) == ([3, 2], [1, 1])
    assert frame["runs"].tolist() == [4, 3]
    assert frame.loc["one", "low"] < 25 < frame.loc["one", "high"]


def test_choices_of_training_examples_are_pooled_and_counted():
    sampled = [
        record
        for data_seed in (13, 21, 42)
        for record in finished(names=["one/1", "one/2"], seeds=(1, 2), data_seed=data_seed)
    ]
    (group,) = tables.by_group(compare(sampled)).itertuples()
    assert (group.data_seed, group.samples, group.targets, group.runs) == ("13, 21, 42", 3, 2, 18)
    assert tables.by_target(compare(sampled))["samples"].tolist() == [3, 3]
    assert tables.between_groups(compare(sampled)).empty
    shown = shown_tables.shown(tables.by_group(compare(sampled)))[0]
    assert shown["samples"].tolist() == ["3"]
    assert "samples" not in shown_tables.shown(tables.by_group(compare(finished())))[0]


def test_targets_with_other_choices_of_training_examples_are_groups_of_their_own():
    both = [*finished(names=["one/1"]), *finished(names=["one/2"], data_seed=13)]
    assert tables.by_group(compare(both))["targets"].tolist() == [1, 1]


def test_target_sets_are_compared_unpaired():
    frame = tables.between_groups(compare(finished()))
    (line,) = frame.itertuples()
    assert (line.set, line.paired, line.targets) == ("one - two", False, "3, 2")
    assert line.difference == pytest.approx(25 - 6.25)
    assert line.low < line.difference < line.high
    assert np.isnan(line.p_value)
    assert line.verdict == "one seed: these prompts only"


def test_a_difference_is_beyond_the_margin_only_if_its_adjusted_p_value_is_small():
    frame = tables.between_groups(compare(finished(seeds=(1, 2))))
    (line,) = frame.itertuples()
    assert line.verdict == "cannot be told"
    sure = frame.assign(p_value=0.01, verdict="beyond 2 %")
    unsure = frame.assign(p_value=0.06, verdict="beyond 2 %")
    assert tables._tested(sure, 2.0)["verdict"].tolist() == ["beyond 2 %"]
    assert tables._tested(unsure, 2.0)["verdict"].tolist() == ["cannot be told"]


def test_a_verdict_that_cannot_be_told_says_what_it_would_take():
    frame = tables.by_target(compare(finished(names=["one/1"], seeds=(1, 2))))
    assert frame["verdict"].tolist() == ["cannot be told"]
    assert "examples" in frame["would_take"][0]
    assert tables.by_target(compare(finished(names=["one/1"])))["would_take"].tolist() == [""]


def test_nothing_is_said_of_a_task_that_was_not_learned():
    made = [best(0.5, majority=0.5), wayward(0.5, name="one/1")]
    for frame in (tables.by_target(compare(made)), tables.by_group(compare(made))):
        assert frame["verdict"].tolist() == ["task not learned"]


def test_the_cost_of_the_constraint_is_beside_that_of_p_star():
    made = [
        best(0.8),
        wayward(0.6, run={"gamma": 0.1, "init": "target"}),
        wayward(0.9, run={"gamma": 0.0, "init": "target"}),
    ]
    frame = tables.by_target(compare(made))
    assert frame["gamma"].tolist() == [0.1]
    assert frame["drop"].tolist() == pytest.approx([25])
    assert frame["cost"].tolist() == pytest.approx([100 / 3])
    assert (frame["tries"].tolist(), frame["p_star_tries"].tolist()) == ([1], [1])


def test_tasks_are_compared_target_by_target():
    easy = finished("trec", ["one/1", "one/2", "one/3"])
    hard = [
        dataclasses.replace(record, accuracy=record.accuracy / 2)
        for record in finished("sst2", ["one/1", "one/3"])
    ]
    (line,) = tables.between_groups(compare([*easy, *hard])).itertuples()
    assert (line.task, line.paired, line.targets) == ("trec - sst2", True, "2, 2")


def test_groups_that_differ_in_two_settings_are_not_compared():
    first, second = finished("sst2", ["one/1", "one/2"]), finished("trec", ["two/1", "two/2"])
    assert tables.between_groups(compare([*first, *second])).empty


def test_constraints_are_compared_target_by_target_whatever_their_margins():
    penalty = finished(names=["one/1", "one/2"])
    cells = [
        dataclasses.replace(with_run(record, constraint="cell", margin=0.01), accuracy=0.8)
        for record in penalty
        if record.run.has_target
    ]
    comparisons = compare([*penalty, *cells])
    (line,) = tables.between_groups(comparisons).itertuples()
    assert (line.constraint, line.paired, line.targets) == ("penalty - cell", True, "2, 2")
    groups = tables.by_group(comparisons)
    assert tables.differing(groups) == ["constraint"]
    assert "margin" not in shown_tables.shown(groups)[0]
    margins_too = pd.concat([groups, groups.assign(margin=0.5)])
    assert tables.differing(margins_too) == ["constraint", "margin"]


def test_models_are_compared_though_they_have_other_weights():
    small = finished(names=["one/1", "one/2"], model_digest="a")
    large = finished(names=["one/1", "one/2"], model="gpt2-large", model_digest="b")
    (line,) = tables.between_groups(compare([*small, *large])).itertuples()
    assert (line.model, line.paired, line.targets) == ("gpt2 - gpt2-large", True, "2, 2")
    again = finished(names=["one/1", "one/2"], model_digest="c")
    (line,) = tables.between_groups(compare([*small, *again])).itertuples()
    assert line.model_digest == "a - c"


def test_sets_that_were_tuned_with_other_gammas_are_not_compared_but_models_are():
    """The gammas could explain a difference between sets. Each model needs gammas of its own."""

    def with_gamma(names, gamma, **setting):
        return [
            with_run(each, gamma=gamma) if each.run.has_target else each
            for each in finished(names=names, **setting)
        ]

    one, two = ["one/1", "one/2", "one/3"], ["two/1", "two/2"]
    alike = [*with_gamma(one, 0.1), *with_gamma(two, 0.1)]
    assert tables.between_groups(compare(alike))["set"].tolist() == ["one - two"]
    unlike = [*with_gamma(one, 0.1), *with_gamma(two, 1.0)]
    assert tables.between_groups(compare(unlike)).empty
    tried_more = [*alike, *with_gamma(two, 1.0)]
    assert tables.between_groups(compare(tried_more)).empty
    models = [*with_gamma(one, 0.1), *with_gamma(one, 1.0, model="gpt2-large", model_digest="b")]
    assert tables.between_groups(compare(models))["model"].tolist() == ["gpt2 - gpt2-large"]


def test_a_gamma_that_was_found_is_shown_and_is_not_among_those_given():
    found = {"constraint": "dual", "gamma": 0.01, "margin": 0.01}
    made = [best(0.8), *(wayward(0.7, run={**found, "seed": seed}) for seed in (1, 2))]
    made = [dataclasses.replace(record, final_gamma=0.1 * i) for i, record in enumerate(made)]
    frame = tables.by_target(compare(made))
    assert frame["gamma"].tolist() == [pytest.approx(0.15)]
    assert shown_tables.shown(frame)[0]["this gamma"].tolist() == ["suffices"]
    assert "this gamma" not in shown_tables.shown(tables.by_target(compare(finished())))[0]
    assert tables.by_gamma(made).empty


def test_a_group_has_no_line_at_a_gamma_that_another_group_was_given():
    """Its runs without a constraint would stand there as if they had been held by that gamma."""
    made = []
    for model, gamma in (("gpt2", 0.1), ("gemma", 1.0)):
        own = [best(0.8), *(wayward(0.7, run={"gamma": each}) for each in (0.0, gamma))]
        made += [with_run(record, model=model) for record in own]
    frame = tables.by_gamma(made)
    assert list(zip(frame["model"], frame["gamma"], strict=True)) == [
        ("gpt2", 0.0),
        ("gemma", 0.0),
        ("gpt2", 0.1),
        ("gemma", 1.0),
    ]


@pytest.mark.parametrize(
    ("name", "values", "shown"),
    [
        ("steps", (5, 9), ["5", "5", "9", "9"]),
        ("learning_rate", (0.1, 0.01), ["0.1", "0.1", "0.01", "0.01"]),
        ("optimizer", ("adamw", "sgd"), ["adamw", "adamw", "sgd", "sgd"]),
        ("keep", ("last", "best"), ["last", "last", "best", "best"]),
        ("warmup", (0, 10), ["0", "0", "10", "10"]),
        ("weight_decay", (0.0, 0.1), ["0", "0", "0.1", "0.1"]),
        ("model_digest", ("a", "b"), ["a", "a", "b", "b"]),
    ],
)
def test_readers_see_a_setting_only_where_it_differs(name, values, shown):
    title = name.replace("_", " ")
    once = tables.by_group(compare(finished()))
    assert title not in shown_tables.shown(once)[0]
    both = [record for value in values for record in finished(**{name: value})]
    assert shown_tables.shown(tables.by_group(compare(both)))[0][title].tolist() == shown


def test_differences_in_a_number_are_shown_like_those_in_a_name(tmp_path):
    both = [*finished(learning_rate=0.1), *finished(learning_rate=0.01)]
    frame = tables.between_groups(compare(both))
    assert "0.1 - 0.01" in shown_tables.shown(frame)[0]["learning rate"].tolist()
    shown_tables.write(frame, tmp_path, "differences")
    assert "0.1 - 0.01" in (tmp_path / "differences.md").read_text()


def test_unknown_values_are_left_blank():
    frame = tables.by_group(compare([best(0.0), wayward(0.7, name="one/1")]))
    assert np.isnan([frame["drop"][0], frame["low"][0]]).all()
    assert shown_tables.shown(frame)[0]["from"].tolist() == [""]


def test_gaps_are_between_a_prompt_and_its_own_texts_over_prompts_and_examples():
    """Each prompt is right on 320 of 400 examples, four readings on 240, and one reading on 160."""
    rng = np.random.default_rng(0)
    made = [
        dataclasses.replace(record, n_eval=400)
        for record in (best(0.8), *(wayward(0.7, run={"seed": seed}) for seed in range(5)))
    ]

    def row(record, prompt, right):
        bits = write_bits(rng.permutation(np.arange(400) < right))
        return {"id": record.id, "prompt": prompt, "calibrated": False, "correct": bits}

    lines = {}
    for record in made[1:]:
        own = row(record, "continuous", 320)
        worse = row(record, "projected", 160 if record.run.seed == 0 else 240)
        lines[record.id] = [own, worse, {**own, "prompt": "target"}]
    lines["zero-shot"] = [{"prompt": "zero-shot", "calibrated": False, "accuracy": 0.1}]
    projected, target = tables.gaps(made, {"discrete": lines}).itertuples()
    assert (projected.gap, projected.pairs) == (pytest.approx(24), 5)
    assert projected.low < 24 < projected.high
    assert (target.gap, target.p_value, target.verdict) == (pytest.approx(0), 1, "within 2 %")


def test_intervals_of_ranks_end_at_the_first_and_the_last_rank():
    records = [wayward(0.7, run={"seed": seed}) for seed in (1, 2, 3)]
    rows = [
        {
            "id": record.id,
            "reading": "lens:1",
            "beside": "nothing",
            "rank": rank,
            "first": rank == 1,
        }
        for record, rank in zip(records, (1.0, 20.0, 20.0), strict=True)
    ]
    (line,) = tables.by_measurement(records, {"recover": {"all": rows}}, "recover").itertuples()
    assert (line.rank, line.least, line.most) == (pytest.approx(41 / 3), 1, 20)


def test_intervals_of_accuracies_are_over_test_examples_even_where_all_prompts_are_one_text():
    """By hand: 115 of 200 examples, thrice the same answers, so no spread over prompts."""
    records = [wayward(0.7, run={"seed": seed}) for seed in (1, 2, 3)]
    right = np.random.default_rng(0).permutation(np.arange(200) < 115)
    row = {"prompt": "target", "calibrated": False, "accuracy": 0.575, "n_eval": 200}
    own = {**row, "correct": write_bits(right)}
    lines = {record.id: [{**own, "id": record.id}] for record in records}
    (line,) = tables.by_measurement(records, {"discrete": lines}, "discrete").itertuples()
    half = 1.96 * np.sqrt(0.575 * 0.425 / 199)
    assert line.accuracy == 0.575
    assert (line.least, line.most) == pytest.approx((0.575 - half, 0.575 + half), abs=1e-4)
