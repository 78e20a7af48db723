"""Tasks from the Hugging Face hub, through the optional `datasets` package.

`hf:<dataset>`, `hf:<dataset>:<configuration>`, and either with `@<revision>` at the end, names a
dataset with a column of texts (`text` or `sentence`, or the one that is given) and a column of
labels (`label`, or the one that is given). Labels are class ids with names, or strings. The names
are the label words.
"""

from typing import Any

import numpy as np

from wayward_jax.errors import InputError
from wayward_jax.tasks.readers import Columns
from wayward_jax.tasks.task import Examples, Task

PREFIX = "hf:"
SPLITS = {
    "train": "train",
    "test": "test",
    **dict.fromkeys(("validation", "valid", "val", "dev"), "dev"),
}

# The revision with the hub's conversion of data sets that are scripts.
CONVERTED = "refs/convert/parquet"

# The task is unknown, so these suit label words of any kind.
TEMPLATES = ("%s . ", "Answer: %s . ", "Label: %s . ", "Category: %s . ")


def read(name: str, columns: Columns) -> tuple[Task, dict[str, Examples], list[str]]:
    """Reads the task `name` and its splits.

    Rows whose labels are withheld (-1 or none) are left out.

    Returns:
        The task, the splits that have examples, and notes about what was left out.

    Raises:
        InputError: the `datasets` package or the dataset is not available, the columns are others,
            or a text is empty.
    """
    try:
        import datasets
    except ImportError as error:
        remedy = "this needs the datasets package: pip install wayward_jax[datasets]"
        raise InputError("task", name, remedy) from error
    address, _, revision = name.removeprefix(PREFIX).partition("@")
    options = {"revision": revision} if revision else {}
    try:
        loaded = datasets.load_dataset(*address.split(":"), **options)
    except Exception as error:  # datasets raises exceptions of many kinds, also of its own
        first_line = str(error).partition("\n")[0]
        remedy = (
            f"give it as hf:{address}@{CONVERTED}, which is the hub's own conversion to Parquet"
            if "scripts are no longer supported" in first_line and not revision
            else "check the name and the network"
        )
        remedy = f"datasets cannot load it ({first_line}): {remedy}"
        raise InputError("task", name, remedy) from error
    text, names = _columns(name, loaded, columns)
    splits, notes = {}, []
    for theirs, ours in SPLITS.items():
        if theirs in loaded and ours not in splits:
            examples = _examples(name, theirs, loaded[theirs], text, columns.labels, names)
            if left_out := len(loaded[theirs][text]) - len(examples):
                notes.append(
                    f"{name}: {left_out} row(s) of {theirs} have no label and are left out"
                )
            if len(examples):
                splits[ours] = examples
    if unread := [split for split in loaded if split not in SPLITS]:
        notes.append(f"{name}: not read: {', '.join(unread)}")
    return Task(name, names, TEMPLATES, names), splits, notes


def _columns(name: str, loaded: Any, columns: Columns) -> tuple[str, tuple[str, ...]]:
    """Returns the name of the column of texts, and the names of the classes."""
    features = loaded["train"].features if "train" in loaded else {}
    text = next((column for column in columns.texts if column in features), None)
    names = getattr(features.get(columns.labels), "names", None)
    if not names and columns.labels in features:
        values = {each for each in loaded["train"][columns.labels] if each not in (None, "")}
        names = sorted(values) if all(isinstance(value, str) for value in values) else None
    if not names or len(names) < 2 or text is None:
        raise InputError(
            "task",
            name,
            f"needs a train split with a column {' or '.join(columns.texts)} and a column "
            f"{columns.labels} of named classes, and has {', '.join(features) or 'none'}: save it "
            "as JSONL instead, or name other columns with --text_column and --label_column",
        )
    return text, tuple(names)


def _examples(
    name: str, split: str, loaded: Any, text: str, label: str, names: tuple[str, ...]
) -> Examples:
    texts, ids = [], []
    for row, (sentence, value) in enumerate(zip(loaded[text], loaded[label], strict=True)):
        if value in (None, "", -1):
            continue
        if not (sentence and sentence.strip()):
            remedy = f"the text of row {row} of split {split} is empty: remove it"
            raise InputError("task", name, remedy)
        if isinstance(value, str) and value not in names:
            remedy = f"label {value!r} of row {row} of split {split} is not in train: remove it"
            raise InputError("task", name, remedy)
        texts.append(sentence)
        ids.append(names.index(value) if isinstance(value, str) else value)
    return Examples(tuple(texts), np.array(ids, dtype=np.int32))
