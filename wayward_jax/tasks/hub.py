"""Tasks from the Hugging Face hub, through the optional `datasets` package.

`hf:<dataset>` or `hf:<dataset>:<configuration>` works for a dataset with a column `text` or
`sentence` and a column `label` of class ids with names. The class names are the label words.
"""

from typing import Any

import numpy as np

from wayward_jax.errors import InputError
from wayward_jax.tasks.task import Examples, Task

PREFIX = "hf:"
TEXT_COLUMNS = ("text", "sentence")
SPLITS = {"train": "train", "validation": "dev", "dev": "dev", "test": "test"}

# Nothing is known of the task, so these suit a label word of any kind.
TEMPLATES = ("%s . ", "Answer: %s . ", "Label: %s . ", "Category: %s . ")


def read(name: str) -> tuple[Task, dict[str, Examples]]:
    """The task `name` and its splits. A split whose labels are withheld (-1) does not count.

    Raises:
      InputError: the `datasets` package or the dataset is not to be had, the columns are others, or
        a text is empty.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"--task={name} needs the datasets package: pip install wayward_jax[datasets]"
        ) from error
    try:
        loaded = datasets.load_dataset(*name.removeprefix(PREFIX).split(":"))
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"--task={name}: datasets cannot load it ({reason})") from error
    labels = _class_names(name, loaded)
    splits = {
        ours: _examples(f"--task={name}: split {theirs}", loaded[theirs])
        for theirs, ours in SPLITS.items()
        if theirs in loaded and set(loaded[theirs]["label"]) != {-1}
    }
    return Task(name, labels, TEMPLATES, labels), splits


def _class_names(name: str, loaded: Any) -> tuple[str, ...]:
    features = loaded["train"].features if "train" in loaded else {}
    labels = getattr(features.get("label"), "names", None)
    if not labels or not set(TEXT_COLUMNS) & set(features):
        raise InputError(
            f"--task={name}: needs a train split with a column text or sentence and a column label "
            f"of named classes, and has {', '.join(features) or 'none'}; save it as JSONL instead"
        )
    return tuple(labels)


def _examples(where: str, split: Any) -> Examples:
    column = next(column for column in TEXT_COLUMNS if column in split.features)
    texts = tuple(split[column])
    for row, text in enumerate(texts):
        if not (text and text.strip()):
            raise InputError(f"{where}: the text of row {row} is empty; remove it")
    return Examples(texts, np.array(split["label"], dtype=np.int32))
