"""`load`: the targets that `--targets` asks for."""

import difflib
import os
import re
from importlib import resources
from itertools import islice, zip_longest
from pathlib import Path
from typing import Protocol

from wayward_jax.errors import InputError
from wayward_jax.targets import files
from wayward_jax.targets.target import Target

BUILT_IN = ("instructions", "sentences", "code", "passages", "definitions", "contradictions")

# The paper's sets and their files; `pile_n=7` and its like are files of that name.
PAPER_FILES = {"ni": "natural_prompts.json", "pile": "pile.json", "true": "good_prompts.json"}
PAPER_LENGTH = re.compile(r"pile_n=[0-9]+")

# Sets with texts for each task, whose names begin with the task's name and this.
TASK_ENDS = {"definitions": "/", "contradictions": "/", "true": "_"}

# What the paper's files call the tasks; ours of the same kind share their definitions.
PAPER_TASKS = {"sst2": "SST-2", "reviews": "SST-2", "sst5": "sst-5", "plots": "subj"}

# Before the name of a set with texts for each task: those for tasks of other kinds.
OTHER = "other_"
KINDS = (
    {"reviews", "sst2", "sst5", "SST-2", "sst-5"},
    {"plots", "subj"},
)

LITERAL = re.compile(r"(?:^|,)\s*text=")
COUNT = re.compile("[1-9][0-9]{0,8}")


class Tokenizer(Protocol):
    """What targets need of a tokenizer, which adds no special tokens."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


def load(
    spec: str,
    tokenizer: Tokenizer,
    *,
    task: str,
    data_dir: Path | None = None,
    prompt_length: int | None = None,
) -> list[Target]:
    """The targets of a comma separated list of sets, in order.

    A set is one of `BUILT_IN`; one of the paper's, `ni`, `pile`, `true` or `pile_n=7`, whose file
    is looked for in `data_dir` and `data_dir/prompts`; or the path of a file (see `files.read`),
    where `./` tells a file from a set of that name. Of `definitions`, `contradictions` and `true`
    the texts for `task` are taken, and with `other_` before the name those for tasks of another
    kind: `other_definitions` says what to do in other tasks. `SET:3` is the first three of a set
    (all, if it has fewer), `SET/NAME` the one of that name. `text=...` is a text of its own, which
    takes in all that follows it, commas too. A target that is asked for twice is given once.

    A fixed `prompt_length` is one of tokens, so a text may be cut within a word: its first tokens
    are kept as they are, and their decoding becomes the target's text.

    Args:
        spec: as above.
        tokenizer: see `Tokenizer`.
        task: name of the task.
        data_dir: where the paper's files are.
        prompt_length: cuts every target to this many tokens and leaves out those that have fewer;
            None takes them as they are.

    Raises:
        InputError: there is no such set, name or file, a file is malformed, two different texts
            have one name, a text cannot be encoded, or none is as long as `prompt_length`.
    """
    if prompt_length is not None and prompt_length < 1:
        raise InputError(f"--prompt_length={prompt_length}: give 1 or more")
    texts = _texts(spec, task, data_dir)
    targets = [Target(name, text, _encode(name, text, tokenizer)) for name, text in texts.items()]
    return targets if prompt_length is None else _cut(targets, prompt_length, tokenizer)


def _encode(name: str, text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON and command lines can hold half a character
        raise InputError(f"--targets: {name!r} is not Unicode ({error.reason}): mend it") from error
    ids = tuple(tokenizer.encode(text))
    if not ids:
        raise InputError(f"--targets: {name!r} has no tokens: give another text")
    return ids


def _cut(targets: list[Target], length: int, tokenizer: Tokenizer) -> list[Target]:
    cuts = [(target.name, target.ids[:length]) for target in targets if len(target.ids) >= length]
    if not cuts:
        lengths = [len(target.ids) for target in targets]
        raise InputError(
            f"--prompt_length={length}: none of the {len(targets)} targets is that long, they have "
            f"{min(lengths)} to {max(lengths)} tokens: choose a smaller one, or other --targets"
        )
    return [Target(name, tokenizer.decode(list(ids)), ids) for name, ids in cuts]


def _texts(spec: str, task: str, data_dir: Path | None) -> dict[str, str]:
    """All texts that a list of sets asks for, by `SET/NAME`, or `text`."""
    sets, *literal = LITERAL.split(spec, maxsplit=1)
    texts: dict[str, str] = {}
    for item in sets.split(",") if sets or not literal else []:
        for name, text in _select(item.strip(), task, data_dir).items():
            if texts.setdefault(name, text) != text:
                raise InputError(f"--targets: two texts are called {name!r}: rename a file")
    if literal:
        texts["text"] = literal[0]
    return texts


def _select(item: str, task: str, data_dir: Path | None) -> dict[str, str]:
    """The texts of `SET`, `SET:COUNT` or `SET/NAME`, by `SET/NAME`."""
    kind, selector = _split(item)
    texts = _read(kind, task, data_dir)
    chosen = selector[1:]
    if selector.startswith(":"):
        if not COUNT.fullmatch(chosen):
            raise InputError(f"--targets={item!r}: write a number from 1 on after the colon")
        texts = dict(islice(texts.items(), int(chosen)))
    elif selector:
        if chosen not in texts:
            known = [f"{kind}/{name}" for name in texts]
            raise InputError(f"--targets={item!r}: no such target; {_closest(item, known)}")
        texts = {chosen: texts[chosen]}
    return {f"{Path(kind).stem}/{name}": text for name, text in texts.items()}


def _split(item: str) -> tuple[str, str]:
    """The set and its selector, which begins with `:` or `/` or is empty."""
    if "\0" in item:
        raise InputError(f"--targets={item!r} holds a null character: leave it out")
    for end in [*(match.start() for match in re.finditer("[:/]", item)), len(item)]:
        if _is_named(item[:end]) or os.path.isfile(os.path.expanduser(item[:end])):
            return item[:end], item[end:]
    close = _closest(item, [*BUILT_IN, *PAPER_FILES, *(OTHER + kind for kind in TASK_ENDS)])
    raise InputError(f"--targets={item!r}: no such set or file; {close}, or write text=...")


def _is_named(kind: str) -> bool:
    named = kind in BUILT_IN or kind in PAPER_FILES or bool(PAPER_LENGTH.fullmatch(kind))
    return named or kind.removeprefix(OTHER) in TASK_ENDS


def _read(kind: str, task: str, data_dir: Path | None) -> dict[str, str]:
    """The texts of a set by name; of a set with texts for each task, those of this task."""
    if not _is_named(kind):
        return files.read(Path(os.path.expanduser(kind)))
    if kind.startswith(OTHER):
        return _of_other_tasks(kind.removeprefix(OTHER), task, data_dir)
    texts = _read_all(kind, data_dir)
    return _of_task(kind, texts, task) if kind in TASK_ENDS else texts


def _read_all(kind: str, data_dir: Path | None) -> dict[str, str]:
    if kind not in BUILT_IN:
        return files.read(_paper_file(kind, data_dir))
    with resources.as_file(resources.files(__package__) / f"{kind}.json") as path:
        return files.read(path)


def _of_other_tasks(kind: str, task: str, data_dir: Path | None) -> dict[str, str]:
    """The texts of a set for tasks of other kinds by `<task>_<name>`: one a task, then the next."""
    own = next((tasks for tasks in KINDS if task in tasks), {task})
    of_task: dict[str, list[tuple[str, str]]] = {}
    for name, text in _read_all(kind, data_dir).items():
        other, _, own_name = name.rpartition(TASK_ENDS[kind])
        if other not in own:
            of_task.setdefault(other, []).append((f"{other}_{own_name}", text))
    return dict(pair for pairs in zip_longest(*of_task.values()) for pair in pairs if pair)


def _of_task(kind: str, texts: dict[str, str], task: str) -> dict[str, str]:
    end = TASK_ENDS[kind]
    beginning = (PAPER_TASKS.get(task, task) if kind in PAPER_FILES else task) + end
    chosen = {
        name.removeprefix(beginning): text
        for name, text in texts.items()
        if name.startswith(beginning)
    }
    if not chosen:
        tasks = ", ".join(dict.fromkeys(name.rpartition(end)[0] for name in texts))
        raise InputError(
            f"--targets={kind} has no texts for task {task!r}, only for {tasks}: "
            "write your own to a file and give its path, or text=..."
        )
    return chosen


def _paper_file(kind: str, data_dir: Path | None) -> Path:
    name = PAPER_FILES.get(kind, f"{kind}.json")
    if data_dir is None:
        raise InputError(f"--targets={kind}: give the folder of {name} with --data_dir")
    for path in (data_dir / name, data_dir / "prompts" / name):
        if path.is_file():
            return path
    raise InputError(
        f"--targets={kind}: neither {name} nor prompts/{name} is in {data_dir}: "
        "put it there or change --data_dir"
    )


def _closest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3) or known[:5]
    return f"choose for instance {', '.join(close)}"
