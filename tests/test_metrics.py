"""Metrics against cases worked out by hand, and their properties."""

import re
import string
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wayward_jax.metrics import (
    accuracy,
    accuracy_drop,
    macro_f1,
    prompt_f1,
    token_f1,
)

TOKENS = st.lists(st.integers(0, 5), max_size=8)


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("write a story", "write a story", 1.0),
        ("Write the story!", "write a story", 1.0),  # case, articles and punctuation do not count
        ("write", "write a story", 2 / 3),  # precision 1, recall 1/2
        ("story story write", "story write", 0.8),  # precision 2/3, recall 1
        ("poem", "write a story", 0.0),
        ("", "write", 0.0),
        ("don't", "dont", 1.0),
        ("the", "story", 0.0),
    ],
)
def test_prompt_f1_is_squads(text, target, expected):
    assert prompt_f1(text, target) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("*", "*", 1.0),
        ("// ", "//", 1.0),
        ("//", "*", 0.0),
        ("* *", "*", 2 / 3),
        ("the", "a", 0.0),
        ("", " ", 1.0),
        ("word", "*", 0.0),
    ],
)
def test_a_target_of_only_punctuation_or_articles_is_compared_unchanged(text, target, expected):
    assert prompt_f1(text, target) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("写一个故事", "写一个故事。", 1.0),
        ("写一首诗", "写一个故事", 4 / 9),  # two of four and of five characters
        ("物語を書いて!", "物語を書いて!", 1.0),
        ("詩を書いて", "物語を書いて", 8 / 11),
        ("写 story", "写 a story", 1.0),
        ("이야기를 써", "시를 써", 0.5),  # Korean has spaces
        ("напиши рассказ", "напиши стих", 0.5),
        ("เขียนที่", "เขียน", 8 / 9),  # of four and five characters with their marks
        ("कहानी लिखो।", "कहानी लिखो", 1.0),
        ("اكتب قصة؟", "اكتب قصة", 1.0),
        ("¿Qué?", "Qué", 0.0),  # as the paper's code has it
        ("“story” — poem", "story poem", 2 / 5),
    ],
)
def test_words_of_every_script_are_told_apart(text, target, expected):
    assert prompt_f1(text, target) == pytest.approx(expected)


def squad_words(text):
    """`normalize_answer` of the paper's code."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


LATIN = st.text(st.characters(max_codepoint=0x24F), max_size=30) | st.just("The naïve—“œuvre”")


@given(LATIN, LATIN)
def test_the_words_of_latin_text_are_those_of_the_papers_code(text, target):
    words, wanted = squad_words(text), squad_words(target)
    if wanted:
        common = sum((Counter(words) & Counter(wanted)).values())
        assert prompt_f1(text, target) == 2 * common / (len(words) + len(wanted))


@given(TOKENS, TOKENS)
def test_token_f1_is_the_harmonic_mean_of_precision_and_recall(found, wanted):
    common = sum(min(found.count(i), wanted.count(i)) for i in set(found))
    if common == 0:
        assert token_f1(found, wanted) == float(found == wanted)
    else:
        precision, recall = common / len(found), common / len(wanted)
        assert token_f1(found, wanted) == pytest.approx(2 / (1 / precision + 1 / recall))


@given(TOKENS, TOKENS)
def test_token_f1_is_1_only_for_the_same_tokens_in_any_order(found, wanted):
    assert (token_f1(found, wanted) == 1) == (sorted(found) == sorted(wanted))


@given(TOKENS, TOKENS)
def test_token_f1_is_symmetric(found, wanted):
    assert token_f1(found, wanted) == token_f1(wanted, found)


@given(st.text(max_size=20), st.text(max_size=20))
def test_prompt_f1_is_between_0_and_1_and_1_for_the_text_itself(text, target):
    assert 0 <= prompt_f1(text, target) <= 1
    assert prompt_f1(target, target) == 1


def test_accuracy_is_the_fraction_of_right_predictions():
    assert accuracy(np.array([0, 1, 2, 1]), np.array([0, 1, 1, 0])) == 0.5


def test_macro_f1_averages_over_the_classes_that_occur():
    labels = np.array([0, 0, 0, 1, 1, 2])
    predictions = np.array([0, 0, 1, 1, 3, 3])
    # class 0: precision 1, recall 2/3, F1 0.8; class 1: 1/2 and 1/2, F1 0.5; class 2 is never
    # predicted: precision 1, recall 0, F1 0; class 3 does not occur.
    assert macro_f1(predictions, labels) == pytest.approx((0.8 + 0.5 + 0.0) / 3)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_macro_f1_is_that_of_the_papers_code(pairs):
    predictions, labels = map(np.array, zip(*pairs, strict=True))
    scores = []
    for label in {answer for _, answer in pairs}:
        hits = [p == a for p, a in pairs if p == label]
        found = [p == a for p, a in pairs if a == label]
        precision, recall = sum(hits) / len(hits) if hits else 1.0, sum(found) / len(found)
        both = precision + recall
        scores.append(2 * precision * recall / both if both else 0.0)
    assert macro_f1(predictions, labels) == pytest.approx(sum(scores) / len(scores))


def test_accuracy_drop_is_relative_and_in_percent():
    assert accuracy_drop(0.8, 0.6) == pytest.approx(25)
    assert accuracy_drop(0.8, 0.9) == pytest.approx(-12.5)
    assert np.isnan(accuracy_drop(0.0, 0.5))
