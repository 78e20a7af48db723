"""A classification task, and its examples."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Task:
    """A classification task without its examples.

    Attributes:
        name: the name that `--task` gives.
        labels: the C label names, in the order of the label ids.
        templates: texts with one `%s` each, which stands for the label word, and perhaps with
            `{text}` and `{text_b}`, see `encoding.encode`. Index 1 is the paper's default. A user's
            own task may have fewer templates.
        label_words: the C words that stand for the labels in a template. Several words for a label
            are a tuple; the probability of the label is the sum over them.
        max_length: the most tokens of an input. A text may have 16 fewer.
    """

    name: str
    labels: tuple[str, ...]
    templates: tuple[str, ...]
    label_words: tuple[str | tuple[str, ...], ...]
    max_length: int = 128

    @property
    def words(self) -> tuple[str, ...]:
        """The W words of all labels, in the order of the labels."""
        return tuple(word for own in self._words_by_label for word in own)

    @property
    def word_labels(self) -> tuple[int, ...]:
        """The label id of each of the W words."""
        return tuple(label for label, own in enumerate(self._words_by_label) for _ in own)

    @property
    def _words_by_label(self) -> list[tuple[str, ...]]:
        return [(own,) if isinstance(own, str) else own for own in self.label_words]

    @property
    def default_template(self) -> int:
        """The index of the paper's default template; 0 where there is only one."""
        return min(1, len(self.templates) - 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """N labeled texts, or pairs of texts.

    Attributes:
        texts: the texts, `[N]`.
        labels: the label ids, int32 `[N]`.
        texts_b: the second texts of pairs, `[N]`; empty if there are none.
    """

    texts: tuple[str, ...]
    labels: np.ndarray
    texts_b: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> "Examples":
        """Returns the examples at `indices`, in that order."""
        rows = np.asarray(indices, dtype=np.int64)
        texts_b = tuple(self.texts_b[i] for i in rows) if self.texts_b else ()
        return Examples(tuple(self.texts[i] for i in rows), self.labels[rows], texts_b)


@dataclasses.dataclass(frozen=True, eq=False)
class TaskData:
    """A task and its examples.

    Attributes:
        task: the task.
        train: examples that prompts are tuned on.
        dev: examples by which prompts and settings are chosen.
        test: examples on which results are reported.
        k_shot: training examples a class; -1 means all of them.
        data_seed: seed of the choice of training examples.
        notes: sentences about the data that a user should know, such as the number of rows that
            were left out.
    """

    task: Task
    train: Examples
    dev: Examples
    test: Examples
    k_shot: int = -1
    data_seed: int = 100
    notes: tuple[str, ...] = ()
