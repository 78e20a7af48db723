"""Verdicts of audits without a task, on divergences made by hand."""

import json

import numpy as np
import pytest
from scipy import stats

from wayward_jax.analysis import audit, audit_page, outputs
from wayward_jax.analysis.anatomy import Anatomy
from wayward_jax.analysis.statistics import BEYOND, CANNOT_TELL, WITHIN, judge
from wayward_jax.readings import Reading
from wayward_jax.runs import NEAREST_TOKENS, Run
from wayward_jax.training.imitation import Imitation, Outputs

N = 40
RNG = np.random.default_rng(0)
OF_NOTHING = RNG.lognormal(0, 0.5, N)


def diverging(share, kept=0.5):
    """Outputs whose divergence is this share of that of no prompt on each text."""
    return Outputs(share * OF_NOTHING, np.full(N, kept))


def imitation(share, name="own/1", prompt_f1=1.0, tuned=0.0, reading=NEAREST_TOKENS, **run):
    settings = {"constraint": "cell", "margin": 0.01, "steps": 60, "batch_size": 4, **run}
    run = Run(
        "gpt2", "texts", 2, target_name=name, target_text="w1 w2", target_ids=(1, 2), **settings
    )
    prompt = np.zeros((2, 4), np.float32)
    return Imitation(run, reading, "w1 <b>", prompt_f1, prompt, diverging(tuned), diverging(share))


def on_texts(*imitations, nothing=1.0, reading=0.6):
    return outputs.on_texts(diverging(reading), diverging(nothing, 0.3), imitations)


def audited(found, to_token=(1.0, 3.0)):
    reading = Reading(np.array([[3, 4], [5, 6]]), np.float32([[1, 2], [1, 2]]), "a b", None, None)
    ones = np.ones(2, np.float32)
    anatomy = Anatomy(np.float32(to_token), np.linspace(1, 2, 100), ones, np.ones(50), (), ())
    return audit.Audit(
        "prompt.npy",
        "gpt2",
        dict.fromkeys(("euclidean", "cosine", "dot"), reading),
        {3: "a", 4: "c", 5: "b", 6: "d"},
        ("a", "b"),
        (),
        anatomy,
        None,
        found,
        2.0,
    )


def test_the_share_of_a_divergence_is_a_ratio_of_means_with_an_interval_as_of_the_delta_method():
    own, whole = RNG.lognormal(-2, 0.2, 400), RNG.lognormal(0, 0.2, 400)
    share = outputs.share_of(own, whole)
    assert share.value == pytest.approx(100 * own.mean() / whole.mean())
    influence = own / own.mean() - whole / whole.mean()  # of the logarithm
    half = stats.t.ppf(0.975, 399) * influence.std(ddof=1) / 20
    assert np.log(share.high / share.value) == pytest.approx(half, rel=0.01)
    assert np.log(share.value / share.low) == pytest.approx(half, rel=0.01)
    assert outputs.share_of(0 * whole, whole).high < 1e-3


@pytest.mark.parametrize(("texts", "spread"), [(20, 0.3), (40, 0.3), (40, 0.6)])
def test_how_often_a_double_that_diverges_as_much_as_the_margin_is_said_to_keep_predictions(
    texts, spread
):
    """With a true share at the margin, in about one case in twenty-five, and rarely the reverse."""
    rng = np.random.default_rng(1)
    trials = 2000
    verdicts = []
    for _ in range(trials):
        whole = rng.lognormal(0, spread, texts)
        own = outputs.MARGIN / 100 * whole * rng.lognormal(-(spread**2) / 2, spread, texts)
        verdicts.append(judge(outputs.share_of(own, whole), outputs.MARGIN))
    assert verdicts.count(WITHIN) / trials < 0.06
    assert verdicts.count(BEYOND) / trials < 0.035


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, WITHIN), (0.09, WITHIN), (0.11, BEYOND), (1.0, BEYOND)]
)
def test_a_double_keeps_predictions_if_its_share_of_the_divergence_is_below_the_margin(
    share, expected
):
    (double,) = on_texts(imitation(share)).doubles
    assert double.verdict(outputs.MARGIN) == expected


def test_of_several_tries_the_one_that_diverges_least_where_it_was_tuned_counts_if_it_reads_so():
    tries = [
        imitation(0.01, prompt_f1=0.5, tuned=0.0),
        imitation(0.5, tuned=0.02),
        imitation(0.05, tuned=0.03, seed=2),
    ]
    (double,) = on_texts(*tries).doubles
    assert double.best is tries[1]
    assert double.verdict(outputs.MARGIN) == BEYOND
    (never,) = on_texts(tries[0]).doubles
    assert never.best is None
    assert never.verdict(outputs.MARGIN) == CANNOT_TELL


@pytest.mark.parametrize(
    ("found", "to_token", "said"),
    [
        (
            on_texts(imitation(0.05), imitation(0.08, "own/2"), imitation(0.5, "own/3")),
            (1.0, 3.0),
            "2 of 3 other texts are read off prompts with which the model predicts nearly the same "
            "as with this one (divergence at most 10 % of that without a prompt): what this prompt "
            "reads as does not tell what it does.",
        ),
        (
            on_texts(imitation(0.5), imitation(0.3, "own/2")),
            (1.0, 3.0),
            "No double was found: with all prompts that read as another text (2)",
        ),
        (
            on_texts(imitation(0.5), imitation(0.01, "own/2", prompt_f1=0.5)),
            (1.0, 3.0),
            "It cannot be told whether this prompt's reading means anything: of the prompts for 2 "
            "other texts, none is shown to keep what the model predicts, 1 to change it, and for ",
        ),
        (on_texts(imitation(0.5)), (0.0, 0.0), "This prompt is a text: its vectors are embeddings"),
        (
            on_texts(imitation(0.05), nothing=0.005),
            (1.0, 3.0),
            "This prompt is not shown to change what the model predicts on these texts (without "
            "it, predictions diverge by",
        ),
    ],
    ids=["kept", "none", "unknown", "text", "no effect"],
)
def test_the_verdict_without_a_task(found, to_token, said):
    made = audited(found, to_token)
    assert audit.verdict(made).startswith(said)
    assert audit.verdict(made) in audit_page.markdown(made).replace("\\", "")


def test_doubles_of_other_readings_are_judged_apart():
    lens = imitation(0.5, reading="lens:1", constraint="lens:1", gamma=1.0)
    made = audited(on_texts(lens, imitation(0.05)))
    assert audit.verdict(made).startswith("1 of 1 other texts is read off")
    said = audit.findings(made)
    assert any(each.startswith("By the reading lens:1: No double was found") for each in said)
    assert said[-1].startswith("How hard was tried: for each of 1 texts and 2 readings, 1 prompt")
    assert "60 steps of 4 texts" in said[-1]


def test_the_page_shows_the_yardsticks(tmp_path):
    double = imitation(0.05)
    made = audited(on_texts(double, imitation(0.01, "own/2", prompt_f1=0.5)))
    audit_page.write(made, tmp_path)
    content = json.loads((tmp_path / "audit.json").read_text())["texts"]
    assert content["none"]["divergence"] == pytest.approx(OF_NOTHING.mean())
    assert content["reading"]["divergence"] == pytest.approx(0.6 * OF_NOTHING.mean())
    found, never = content["doubles"]
    assert found["share"] == pytest.approx([5, 5, 5])
    assert found["verdict"] == "within"
    assert (never["best"], never["divergence"], never["share"][0]) == (None, None, None)
    page = (tmp_path / "audit.html").read_text()
    assert "<b>" not in page
    assert "same likeliest token" in page
    assert "accuracies are of test examples" not in page
