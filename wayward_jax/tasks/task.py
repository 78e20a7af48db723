"""What a task is, and what its data are."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Task:
    """A classification task without its data.

    Attributes:
      name: what `--task` calls it.
      labels: the C label names, in the order of the label ids.
      templates: each with one `%s` for the label word. Index 1 is the paper's default; a user's own
        task may have fewer templates.
      label_words: the C words that stand for the labels in a template.
      max_length: an input's length in tokens. The text is cut to 16 fewer.
    """

    name: str
    labels: tuple[str, ...]
    templates: tuple[str, ...]
    label_words: tuple[str, ...]
    max_length: int = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """N texts and their label ids (int32 `[N]`)."""

    texts: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> "Examples":
        """The examples at `indices`, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        return Examples(tuple(self.texts[i] for i in indices), self.labels[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class TaskData:
    """A task with the examples to tune on, to choose on (dev) and to report on (test)."""

    task: Task
    train: Examples
    dev: Examples
    test: Examples
