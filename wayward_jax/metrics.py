"""Metrics of a prompt: how well it solves its task, and how well it reads as its target.

All of them are computed by NumPy on the host.
"""

import difflib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")

# ASCII punctuation, and the same characters in full width.
_NO_PUNCTUATION = str.maketrans(
    "", "", string.punctuation + "".join(chr(ord(c) + 0xFEE0) for c in string.punctuation)
)

# Punctuation of these characters is left as it is, because it occurs in Latin text, where the
# paper's F1 keeps it: all before Greek, and from General to Supplemental Punctuation.
_LATIN = (range(0x0370), range(0x2000, 0x2E80))

# Scripts that are written without spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, Han
# characters, Kana and Bopomofo. Their marks belong to the character before.
_WITHOUT_SPACES = (
    *(range(0x0E00, 0x10A0), range(0x1780, 0x1800), range(0x2E80, 0x3000), range(0x3005, 0x3008)),
    *(range(0x3021, 0x3100), range(0x3105, 0x3130), range(0x31F0, 0x3200), range(0x3400, 0x4DC0)),
    *(range(0x4E00, 0xA000), range(0xF900, 0xFB00), range(0xFF66, 0xFFA0)),
    range(0x20000, 0x32400),
)
_MARKS = "".join(
    chr(code) for code in range(0x0300, 0x3100) if unicodedata.category(chr(code))[0] == "M"
)
_CHARACTERS = re.compile(
    f"[{''.join(f'{chr(each[0])}-{chr(each[-1])}' for each in _WITHOUT_SPACES)}][{_MARKS}]*"
)


def prompt_f1(text: str, target: str) -> float:
    """Computes the F1 of the words of a reading and of its target, as for SQuAD answers (paper).

    Words are lower-cased, and punctuation and articles are removed. Words end at spaces, as in the
    paper; in scripts that are written without spaces, such as Chinese or Thai, each character with
    its marks is a word. Punctuation is that of ASCII, as in the paper, the same in full width, and
    that of other scripts. If that leaves nothing of the target, as of `*` or `// `, then both texts
    are split at white space and nothing is removed, so that two different such texts do not have an
    F1 of 1.
    """
    words = _words(target)
    if words:
        return _f1(_words(text), words)
    return _f1(text.split(), target.split())


def similarity(text: str, other: str) -> float:
    """Computes how similar two texts are, letter by letter, from 0 to 1.

    It is twice the letters in common blocks, by the letters of both (Ratcliff and Metzener, 1988;
    `difflib.SequenceMatcher`), in lower case. Texts without letters are alike.
    """
    return difflib.SequenceMatcher(None, text.lower(), other.lower(), autojunk=False).ratio()


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
    text = text.lower().translate(_NO_PUNCTUATION)
    if not text.isascii():
        text = "".join(character for character in text if not _is_punctuation(character))
        text = _CHARACTERS.sub(r" \g<0> ", text)
    return _ARTICLES.sub(" ", text).split()


def _is_punctuation(character: str) -> bool:
    """True for punctuation of scripts other than Latin."""
    if any(ord(character) in each for each in _LATIN):
        return False
    return unicodedata.category(character)[0] == "P"


def _f1(found: Sequence[Hashable], wanted: Sequence[Hashable]) -> float:
    """Computes the F1 of two multisets, which is 1 if both are empty."""
    if not found and not wanted:
        return 1.0
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))
