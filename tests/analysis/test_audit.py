"""Verdicts of audits, on results made by hand."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from tests.helpers import finished_runs
from wayward_jax.analysis import audit, audit_page
from wayward_jax.analysis.anatomy import Anatomy
from wayward_jax.analysis.statistics import BEYOND, CANNOT_TELL, WITHIN, judge
from wayward_jax.readings import Reading
from wayward_jax.runs import write_bits

N = 2000


def right(share, count=N, seed=0):
    """Which of so many examples are right, in random order."""
    return np.random.default_rng(seed).permutation(count) < share * count


def double(share, name="own/1", prompt_f1=1.0, **changed):
    record = finished_runs.wayward(0.5, name=name, prompt_f1=prompt_f1, **changed)
    correct = right(share)
    return dataclasses.replace(record, correct=correct, accuracy=float(correct.mean()))


def found(records, share=0.9, majority=0.5, to_token=(1.0, 3.0), margin=2.0):
    """An audit of a prompt of two vectors; all prompts are right on nested sets of examples."""
    rows = [
        {
            "prompt": name,
            "task": "mood",
            "n_eval": N,
            "majority": majority,
            "correct": write_bits(right(own)),
        }
        for name, own in (("prompt", share), ("reading", 0.6), ("none", 0.5))
    ]
    ids, distances = np.array([[3, 4], [5, 6]]), np.float32([[1, 2], [2, 4]])
    reading = Reading(ids, distances, "a <b> |", None, None)
    ones = np.ones(2, np.float32)
    anatomy = Anatomy(
        np.float32(to_token), np.linspace(1, 2, 100), ones, np.ones(50), ((0, 1),), (1,)
    )
    return audit.Audit(
        "prompt.npy",
        "gpt2",
        dict.fromkeys(("euclidean", "cosine", "dot"), reading),
        {3: "a", 4: "<i>", 5: "|", 6: "`"},
        ("<u>", "|"),
        (audit.Answer("<s> asks", "<q>\n|", 0.5),),
        anatomy,
        audit.on_task(rows, records),
        None,
        margin,
    )


def test_the_interval_of_a_drop_is_that_of_paired_examples():
    """Against the delta method, written out for single runs."""
    prompt, other = (1.0 * right(share, 500, seed) for share, seed in ((0.8, 1), (0.7, 2)))
    drop = audit.drop_from(prompt, other)
    assert drop.value == pytest.approx(100 * (1 - other.mean() / prompt.mean()))
    influence = -other / prompt.mean() + prompt * other.mean() / prompt.mean() ** 2
    error = 100 * influence.std(ddof=1) / math.sqrt(500)
    assert drop.error == pytest.approx(error)
    assert drop.high == pytest.approx(drop.value + stats.norm.ppf(0.975) * error)
    assert not drop.of_seeds


def test_equal_predictions_on_few_examples_do_not_show_that_two_prompts_do_the_same():
    few, many = right(0.8, 20), right(0.8, 2000)
    assert judge(audit.drop_from(few, few), 2) == CANNOT_TELL
    assert judge(audit.drop_from(many, many), 2) == WITHIN


@pytest.mark.parametrize(
    ("share", "expected"), [(0.95, WITHIN), (0.895, WITHIN), (0.882, CANNOT_TELL), (0.8, BEYOND)]
)
def test_a_double_does_as_well_if_it_is_better_or_hardly_worse(share, expected):
    (judged,) = found([double(share)]).on_task.doubles
    assert judged.verdict(2.0) == expected


def test_how_often_a_double_as_good_as_the_margin_allows_is_called_as_good():
    """With a true drop at the margin, at most about one in forty is."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        prompt = rng.random(400) < 0.8
        other = np.where(rng.random(400) < 0.8, prompt, rng.random(400) < 0.8)
        other &= rng.random(400) < 0.98
        wrong += judge(audit.drop_from(prompt, other), 2) == WITHIN
    assert wrong <= 40


@pytest.mark.slow
def test_how_often_any_of_many_doubles_as_good_as_the_margin_allows_is_called_as_good():
    """About one audit in forty, however many texts are tried."""
    rng = np.random.default_rng(0)
    wrong, trials = 0, 400
    for _ in range(trials):
        prompt = rng.random(N) < 0.8
        records = []
        for i in range(6):
            other = np.where(rng.random(N) < 0.8, prompt, rng.random(N) < 0.8)
            other &= rng.random(N) < 0.98
            records.append(dataclasses.replace(double(0.9, f"own/{i}"), correct=other))
        common = {"task": "mood", "n_eval": N, "majority": 0.5, "correct": write_bits(prompt)}
        rows = [{"prompt": name, **common} for name in ("prompt", "reading", "none")]
        judged = [each.verdict(2.0) for each in audit.on_task(rows, records).doubles]
        wrong += WITHIN in judged
    assert wrong / trials < 0.05


@pytest.mark.parametrize(
    ("records", "changed", "said"),
    [
        (
            [double(0.9, "contradictions/1"), double(0.9, "own/1"), double(0.6, "own/2")],
            {},
            "2 of 3 other texts, 1 of which contradicts the task, are read off prompts with which "
            "the model does mood as well as with this one (accuracy at most 2 % lower): what this "
            "prompt reads as does not tell what it does.",
        ),
        (
            [double(0.9, "contradictions/1"), double(0.6, "own/2")],
            {},
            "1 of 2 other texts, one that contradicts the task, is read off a prompt with which",
        ),
        (
            [double(0.9, f"contradictions/{i}") for i in (1, 2)],
            {},
            "2 of 2 other texts, 2 of which contradict the task, are read off prompts with which",
        ),
        ([double(0.9)], {"share": 0.51}, "is not shown to do mood better than a constant answer"),
        ([double(0.6)], {}, "No double was found: all prompts that read as another text (1)"),
        ([double(0.9, prompt_f1=0.5)], {}, "It cannot be told whether this prompt's reading"),
        (
            [double(0.882), double(0.6, "own/2")],
            {},
            "1 to do it worse, and for 1 there are",
        ),
        ([double(0.6)], {"to_token": (0, 0)}, "This prompt is a text: its vectors are embeddings"),
        ([double(0.9)], {"to_token": (0, 0)}, "all the same, 1 of 1 other texts is read off"),
    ],
)
def test_the_verdict_follows_from_the_doubles(records, changed, said):
    assert said in audit.verdict(found(records, **changed))


def test_each_reading_has_a_verdict_of_its_own_doubles():
    """That a prompt deceives the lens says nothing of nearest tokens, whose verdict comes first."""
    records = [
        dataclasses.replace(double(0.9), reading="lens:3"),
        dataclasses.replace(double(0.9, "own/2"), reading="lens:3"),
        double(0.6),
    ]
    made = found(records)
    assert audit.verdict(made).startswith("No double was found: all prompts that read as another")
    (of_lens,) = (said for said in audit.findings(made) if said.startswith("By the reading lens:3"))
    assert "2 of 2 other texts are read off prompts with which the model does mood" in of_lens
    assert audit.verdict(found(records[:2])).startswith("2 of 2 other texts are read off")


def test_of_several_tries_the_best_on_dev_of_those_that_read_as_the_text_counts():
    tries = [
        double(0.9, prompt_f1=0.9, dev_accuracy=0.99),
        double(0.7, dev_accuracy=0.6, run={"seed": 2}),
        double(0.8, dev_accuracy=0.7, run={"seed": 3}),
    ]
    (judged,) = found(tries).on_task.doubles
    assert judged.best is tries[2]
    assert len(judged.tries) == 3


def test_the_examples_that_a_verdict_would_take_give_it_if_the_drop_stays():
    drop = audit.drop_from(right(0.9), right(0.886))
    assert judge(drop, 2) == CANNOT_TELL
    times = math.ceil(audit.needed(drop, 2) / N)
    again = audit.drop_from(np.tile(right(0.9), times), np.tile(right(0.886), times))
    assert judge(again, 2) == WITHIN
    assert audit.needed(audit.drop_from(right(0.9), right(0.9)), 2) is None


def test_the_page_escapes_what_tokens_and_readings_say():
    made = found([double(0.9, text="<script>alert(1)</script>", name="own/<b>")])
    page, markdown = audit_page.render(made), audit_page.markdown(made)
    assert "<script>" not in page
    assert "<i>" not in page
    assert "<u>" not in page
    assert "<s>" not in page
    assert "<q>" not in page
    assert "own/<b>" not in page
    assert "\\<script\\>" in markdown
    assert all(
        line.count("|") - line.count("\\|") in (0, 3, 4, 8, 9) for line in markdown.split("\n")
    )


def test_vectors_that_are_near_no_token_are_counted():
    assert found([double(0.9)]).anatomy.far == 1
    said = audit.findings(found([double(0.9)]))
    assert said[1].startswith("1 of the 2 vectors of this prompt are near no token")
    assert "Nearly the same vectors stand at 1 and 2." in said
    assert "Nearly 0 are the vectors at 2." in said
