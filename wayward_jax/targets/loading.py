"""Target texts, by the list of sets that `--targets` takes."""

import difflib
import os
import re
from importlib import resources
from itertools import islice, zip_longest
from pathlib import Path

from wayward_jax.errors import InputError
from wayward_jax.targets.files import read_texts

# Each of these sets is a JSON file beside this module.
BUILT_IN = ("instructions", "sentences", "code", "passages", "definitions", "contradictions")

# The paper's sets and their files. Sets such as `pile_n=7` are in files of that name.
PAPER_FILES = {"ni": "natural_prompts.json", "pile": "pile.json", "true": "good_prompts.json"}
PAPER_LENGTH = re.compile(r"pile_n=[0-9]+")

# Sets whose texts differ by task. Names of their texts are the task's name, this separator, and a
# name within the task.
SEPARATORS = {"definitions": "/", "contradictions": "/", "true": "_"}

# The paper's file has these names for our tasks. Tasks of the same kind share their definitions.
PAPER_TASKS = {"sst2": "SST-2", "reviews": "SST-2", "sst5": "sst-5", "plots": "subj"}

# With this prefix, a set whose texts differ by task gives its texts for tasks of other kinds.
OTHER = "other_"
KINDS = (
    {"reviews", "sst2", "sst5", "SST-2", "sst-5"},
    {"plots", "subj"},
)

# `auto` is a text that asks for the opposite of the task, where one is built in, and some code.
CONTRADICTION, CODE = "contradictions/1", "code/01"

LITERAL = re.compile(r"(?:^|,)\s*text=")
COUNT = re.compile("[1-9][0-9]{0,8}")


class _UnusableError(Exception):
    """A value that cannot be used, and what to do; an `InputError` that lacks its argument."""

    def __init__(self, value: str, remedy: str) -> None:
        super().__init__(value, remedy)
        self.value, self.remedy = value, remedy


def load_texts(
    spec: str,
    *,
    task: str | None = None,
    data_dir: Path | None = None,
    argument: str = "targets",
) -> dict[str, str]:
    """Loads the texts of a comma-separated list of sets, in order.

    A set is one of these:

    * one of `BUILT_IN`;
    * a set of the paper: `ni`, `pile`, `true`, or `pile_n=7` and its like. Its file is looked for
      in `data_dir` and in `data_dir/prompts`;
    * the path of a file, see `files.read_texts`. A `./` before it tells a file from a set of the
      same name;
    * `text=...`, a single text. It extends to the end of `spec`, commas included.

    `auto`, alone, is a text that asks for the opposite of `task`, where one is built in, and a line
    of code.

    `SET:3` selects the first three texts of a set (all, if it has fewer), and `SET/NAME` selects
    the text of that name. The sets `definitions`, `contradictions` and `true` give their texts for
    `task`. With the prefix `other_` they give their texts for tasks of other kinds: the texts of
    `other_definitions` say what to do in other tasks. A text that is asked for twice is given once.

    Args:
        spec: the list of sets.
        task: name of the task. It may be None if none of the sets differs by task.
        data_dir: folder with the paper's files.
        argument: what `spec` is the value of, for messages.

    Returns:
        The texts by their names `SET/NAME`; the name of `text=...` is `text`.

    Raises:
        InputError: there is no such set, name or file, a file is malformed, two different texts
            have one name, or a set differs by task and `task` is None.
    """
    if spec == "auto":
        spec = f"{CONTRADICTION},{CODE}" if _is_contradicted(task) else CODE
    try:
        return _load(spec, task, data_dir)
    except _UnusableError as error:
        raise InputError(argument, error.value, error.remedy) from None


def _load(spec: str, task: str | None, data_dir: Path | None) -> dict[str, str]:
    sets, *literal = LITERAL.split(spec, maxsplit=1)
    texts: dict[str, str] = {}
    for item in sets.split(",") if sets or not literal else []:
        for name, text in _select(item.strip(), task, data_dir).items():
            if texts.setdefault(name, text) != text:
                raise _UnusableError(spec, f"two texts are called {name!r}: rename a file")
    if literal:
        texts["text"] = literal[0]
    return texts


def _is_contradicted(task: str | None) -> bool:
    kind, _, name = CONTRADICTION.partition("/")
    return f"{task}{SEPARATORS[kind]}{name}" in _read_named(kind, None)


def _select(item: str, task: str | None, data_dir: Path | None) -> dict[str, str]:
    """Returns the texts of `SET`, `SET:COUNT` or `SET/NAME`, by `SET/NAME`."""
    kind, selector = _split(item)
    texts = _read_set(kind, task, data_dir)
    chosen = selector[1:]
    if selector.startswith(":"):
        if not COUNT.fullmatch(chosen):
            raise _UnusableError(item, "write a number from 1 on after the colon")
        texts = dict(islice(texts.items(), int(chosen)))
    elif selector:
        if chosen not in texts:
            close = _closest(item, [f"{kind}/{name}" for name in texts])
            raise _UnusableError(item, f"no such text: {close}")
        texts = {chosen: texts[chosen]}
    return {f"{Path(kind).stem}/{name}": text for name, text in texts.items()}


def _split(item: str) -> tuple[str, str]:
    """Splits an item into the set and the selector, which begins with `:` or `/` or is empty."""
    if "\0" in item:
        raise _UnusableError(item, "remove the null character")
    for end in [*(match.start() for match in re.finditer("[:/]", item)), len(item)]:
        if _is_named(item[:end]) or os.path.isfile(os.path.expanduser(item[:end])):
            return item[:end], item[end:]
    close = _closest(item, [*BUILT_IN, *PAPER_FILES, *(OTHER + kind for kind in SEPARATORS)])
    raise _UnusableError(item, f"no such set or file: {close}, or write text=...")


def _is_named(kind: str) -> bool:
    named = kind in BUILT_IN or kind in PAPER_FILES or bool(PAPER_LENGTH.fullmatch(kind))
    return named or kind.removeprefix(OTHER) in SEPARATORS


def _read_set(kind: str, task: str | None, data_dir: Path | None) -> dict[str, str]:
    """Reads the texts of a set by name; if the set differs by task, the texts for `task`."""
    if not _is_named(kind):
        return read_texts(Path(os.path.expanduser(kind)))
    own_kind = kind.removeprefix(OTHER)
    texts = _read_named(own_kind, data_dir)
    if own_kind not in SEPARATORS:
        return texts
    if task is None:
        raise _UnusableError(kind, "the texts of this set differ by task: give --task")
    select = _select_own if kind == own_kind else _select_other
    return select(own_kind, texts, task)


def _read_named(kind: str, data_dir: Path | None) -> dict[str, str]:
    if kind not in BUILT_IN:
        return read_texts(_find_paper_file(kind, data_dir))
    with resources.as_file(resources.files(__package__) / f"{kind}.json") as path:
        return read_texts(path)


def _select_own(kind: str, texts: dict[str, str], task: str) -> dict[str, str]:
    """Selects the texts for `task`, by their names within the task."""
    separator = SEPARATORS[kind]
    prefix = (PAPER_TASKS.get(task, task) if kind in PAPER_FILES else task) + separator
    chosen = {
        name.removeprefix(prefix): text for name, text in texts.items() if name.startswith(prefix)
    }
    if not chosen:
        tasks = ", ".join(dict.fromkeys(name.rpartition(separator)[0] for name in texts))
        raise _UnusableError(
            kind,
            f"this set has no texts for task {task!r}, only for {tasks}: write your own to a file "
            "and give its path, or text=...",
        )
    return chosen


def _select_other(kind: str, texts: dict[str, str], task: str) -> dict[str, str]:
    """Selects the texts for tasks of other kinds, by `<task>_<name>`.

    The first text of every task comes first, then the second of every task, and so on.
    """
    same_kind = next((tasks for tasks in KINDS if task in tasks), {task})
    by_task: dict[str, list[tuple[str, str]]] = {}
    for name, text in texts.items():
        other, _, own_name = name.rpartition(SEPARATORS[kind])
        if other not in same_kind:
            by_task.setdefault(other, []).append((f"{other}_{own_name}", text))
    if not by_task:
        remedy = f"this set has no texts for tasks of another kind than {task!r}: choose another"
        raise _UnusableError(OTHER + kind, remedy)
    return dict(pair for pairs in zip_longest(*by_task.values()) for pair in pairs if pair)


def _find_paper_file(kind: str, data_dir: Path | None) -> Path:
    name = PAPER_FILES.get(kind, f"{kind}.json")
    if data_dir is None:
        raise _UnusableError(kind, f"give the folder that holds {name} with --data_dir")
    for path in (data_dir / name, data_dir / "prompts" / name):
        if path.is_file():
            return path
    raise _UnusableError(
        kind,
        f"{data_dir} holds neither {name} nor prompts/{name}: put it there or change --data_dir",
    )


def _closest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3) or known[:5]
    return f"choose for instance {', '.join(close)}"
