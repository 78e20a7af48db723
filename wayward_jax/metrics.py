"""Metrics of a prompt: how well it solves its task, and how well it reads as its target.

All of them are computed by NumPy on the host.
"""

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def prompt_f1(text: str, target: str) -> float:
    """Computes the F1 of the words of a reading and of its target, as for SQuAD answers (paper).

    Words are lower-cased, and punctuation and articles are removed. If that leaves nothing of the
    target, as of `*` or `// `, then both texts are split at white space and nothing is removed, so
    that two different such texts do not have an F1 of 1.
    """
    words = _words(target)
    if words:
        return _f1(_words(text), words)
    return _f1(text.split(), target.split())


def token_f1(ids: Sequence[int], target_ids: Sequence[int]) -> float:
    """Computes the F1 of two multisets of token ids, which may differ in length."""
    return _f1(ids, target_ids)


def predict(scores: np.ndarray) -> np.ndarray:
    """Returns the label with the lowest of the scores `[..., C]`, the first of equals: `[...]` int.

    A score that is not a number never is the lowest; where there is no other, the label is -1.
    """
    known = np.where(np.isnan(scores), np.inf, scores)
    return np.where(np.isnan(scores).all(axis=-1), -1, known.argmin(axis=-1))


def majority(labels: np.ndarray) -> float:
    """Computes the share of the most frequent of the labels `[N]`."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Computes the fraction of examples that are predicted right: `[N]`, `[N]`."""
    return float(np.mean(np.asarray(predictions) == np.asarray(labels)))


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Averages the F1 over the C classes that occur in `labels`: `[N]`, `[N]`.

    The F1 of a class is `2 right / (predicted + actual)`. The paper's code gives a class that is
    never predicted a precision of 1. This makes no difference, as its recall and F1 are 0.
    """
    labels = np.asarray(labels)
    classes = np.unique(labels)[:, None]
    predicted, actual = np.asarray(predictions) == classes, labels == classes  # [C, N]
    right = np.sum(predicted & actual, axis=1)
    return float(np.mean(2 * right / (predicted.sum(axis=1) + actual.sum(axis=1))))


def accuracy_drop(best: float, accuracy: float) -> float:
    """Computes `(best - accuracy) / best` in percent; NaN if `best` is 0."""
    return 100 * (best - accuracy) / best if best else float("nan")


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _f1(found: Sequence[Hashable], wanted: Sequence[Hashable]) -> float:
    """Computes the F1 of two multisets, which is 1 if both are empty."""
    if not found and not wanted:
        return 1.0
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))
