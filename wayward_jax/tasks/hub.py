"""Tasks from the Hugging Face hub, through the optional `datasets` package.

`hf:<dataset>` or `hf:<dataset>:<configuration>` names a dataset with a column `text` or `sentence`
and a column `label` of class ids with names. The class names are the label words.
"""

from typing import Any

import numpy as np

from wayward_jax.errors import InputError
from wayward_jax.tasks.task import Examples, Task

PREFIX = "hf:"
TEXT_COLUMNS = ("text", "sentence")
SPLITS = {"train": "train", "validation": "dev", "dev": "dev", "test": "test"}

# The task is unknown, so these suit label words of any kind.
TEMPLATES = ("%s . ", "Answer: %s . ", "Label: %s . ", "Category: %s . ")


def read(name: str) -> tuple[Task, dict[str, Examples]]:
    """Reads the task `name` and its splits. Splits whose labels are withheld (-1) are left out.

    Raises:
        InputError: the `datasets` package or the dataset is not available, the columns are others,
            or a text is empty.
    """
    try:
        import datasets
    except ImportError as error:
        remedy = "this needs the datasets package: pip install wayward_jax[datasets]"
        raise InputError("task", name, remedy) from error
    try:
        loaded = datasets.load_dataset(*name.removeprefix(PREFIX).split(":"))
    except (OSError, ValueError) as error:
        first_line = str(error).partition("\n")[0]
        remedy = f"datasets cannot load it ({first_line}): check the name and the network"
        raise InputError("task", name, remedy) from error
    labels = _class_names(name, loaded)
    splits = {
        ours: _examples(name, theirs, loaded[theirs])
        for theirs, ours in SPLITS.items()
        if theirs in loaded and set(loaded[theirs]["label"]) != {-1}
    }
    return Task(name, labels, TEMPLATES, labels), splits


def _class_names(name: str, loaded: Any) -> tuple[str, ...]:
    features = loaded["train"].features if "train" in loaded else {}
    labels = getattr(features.get("label"), "names", None)
    if not labels or not set(TEXT_COLUMNS) & set(features):
        raise InputError(
            "task",
            name,
            "needs a train split with a column text or sentence and a column label of named "
            f"classes, and has {', '.join(features) or 'none'}: save it as JSONL instead",
        )
    return tuple(labels)


def _examples(name: str, split: str, loaded: Any) -> Examples:
    column = next(column for column in TEXT_COLUMNS if column in loaded.features)
    texts = tuple(loaded[column])
    for row, text in enumerate(texts):
        if not (text and text.strip()):
            remedy = f"the text of row {row} of split {split} is empty: remove it"
            raise InputError("task", name, remedy)
    return Examples(texts, np.array(loaded["label"], dtype=np.int32))
