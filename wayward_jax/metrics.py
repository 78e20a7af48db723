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


def token_f1(projected: Sequence[int], target: Sequence[int]) -> float:
    """F1 of two multisets of token ids."""
    return _f1(projected, target)


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The share of examples that are predicted right: `[N]`, `[N]`."""
    return float(np.mean(np.asarray(predictions) == np.asarray(labels)))


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 averaged over the classes that occur in `labels`: `[N]`, `[N]`.

    As in the paper's code, a class that is never predicted has a precision of 1.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    scores = []
    for label in np.unique(labels):
        predicted, actual = predictions == label, labels == label
        right = np.sum(predicted & actual)
        precision = right / predicted.sum() if predicted.any() else 1.0
        recall = right / actual.sum()
        scores.append(2 * precision * recall / (precision + recall) if right else 0.0)
    return float(np.mean(scores))


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
