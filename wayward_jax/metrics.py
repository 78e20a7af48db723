"""How well a prompt does its task, and how well it reads as its target (NumPy, on the host)."""

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def prompt_f1(projected: str, target: str) -> float:
    """F1 of the words of the projected text against the target's, as for SQuAD answers (paper).

    Words are lower-cased, without punctuation and articles. A target that vanishes under that,
    such as `*` or `// `, is compared by its white-space separated pieces as they stand, so that
    the F1 of two different such texts is not 1.
    """
    words = _words(target)
    if words:
        return _f1(_words(projected), words)
    return _f1(projected.split(), target.split())


def token_f1(projected_ids: Sequence[int], target_ids: Sequence[int]) -> float:
    """F1 of two multisets of token ids: `[L]`, `[L]`, or of different lengths."""
    return _f1(projected_ids, target_ids)


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The share of examples that are predicted right: `[N]`, `[N]`."""
    return float(np.mean(np.asarray(predictions) == np.asarray(labels)))


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 averaged over the C classes that occur in `labels`: `[N]`, `[N]`.

    The paper's code gives a class that is never predicted a precision of 1. Its recall and so its
    F1 are 0 all the same, as `2 right / (predicted + actual)` has it.
    """
    labels = np.asarray(labels)
    classes = np.unique(labels)[:, None]
    predicted, actual = np.asarray(predictions) == classes, labels == classes  # [C, N]
    right = np.sum(predicted & actual, axis=1)
    return float(np.mean(2 * right / (predicted.sum(axis=1) + actual.sum(axis=1))))


def accuracy_drop(best: float, accuracy: float) -> float:
    """`(best - accuracy) / best`, in percent; NaN where the best is 0."""
    return 100 * (best - accuracy) / best if best else float("nan")


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _f1(found: Sequence[Hashable], wanted: Sequence[Hashable]) -> float:
    """F1 of two multisets; two empty ones are equal."""
    if not found and not wanted:
        return 1.0
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))
