"""`load`: the targets that `--targets` asks for."""

import difflib
from importlib import resources
from pathlib import Path
from typing import Protocol

from wayward_jax.errors import InputError
from wayward_jax.targets import files
from wayward_jax.targets.target import Target

BUILT_IN = ("instructions", "sentences", "code", "definitions", "contradictions")

# The paper's sets and their files; `pile_n=7` and its like are files of that name.
PAPER_FILES = {"ni": "natural_prompts.json", "pile": "pile.json", "true": "good_prompts.json"}
LENGTH_PREFIX = "pile_n="

# Sets with texts for each task, which begin with the task's name and this.
TASK_ENDS = {"definitions": "/", "contradictions": "/", "true": "_"}

# What the paper's files call the tasks; ours of the same kind share their definitions.
PAPER_TASKS = {"sst2": "SST-2", "reviews": "SST-2", "sst5": "sst-5", "plots": "subj"}

LITERAL = "text="


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
    is looked for in `data_dir` and `data_dir/prompts`; or the path of a file (see `files.read`).
    Of `definitions`, `contradictions` and `true` the texts for `task` are taken. `SET:3` is the
    first three of a set, `SET/NAME` the one of that name. `text=...` is a text of its own, which
    takes in all that follows it.

    Args:
      spec: as above.
      tokenizer: see `Tokenizer`.
      task: name of the task.
      data_dir: where the paper's files are.
      prompt_length: cuts every target to this many tokens, whose text it then is, and leaves out
        those that have fewer; None takes them as they are.

    Raises:
      InputError: there is no such set, name or file, a file is malformed, or nothing is left.
    """
    listed, literal, text = f",{spec}".partition(f",{LITERAL}")
    texts: dict[str, str] = {}
    for item in listed.split(",")[1:]:
        texts |= _select(item.strip(), task, data_dir)
    if literal:
        texts["text"] = text
    targets = []
    for name, text in texts.items():
        ids = tokenizer.encode(text)
        if not ids:
            raise InputError(f"--targets={spec}: {name} has no tokens: give another text")
        if prompt_length is None:
            targets.append(Target(name, text, tuple(ids)))
        elif len(ids) >= prompt_length:
            cut = ids[:prompt_length]
            targets.append(Target(name, tokenizer.decode(cut), tuple(cut)))
    if not targets:
        raise InputError(
            f"--prompt_length={prompt_length}: none of the {len(texts)} targets is that long: "
            "choose a smaller one, or other --targets"
        )
    return targets


def _select(item: str, task: str, data_dir: Path | None) -> dict[str, str]:
    """The texts of `SET`, `SET:COUNT` or `SET/NAME`, by `SET/NAME`."""
    if Path(item).expanduser().is_file():
        texts = files.read(Path(item).expanduser())
        return {f"{Path(item).stem}/{name}": text for name, text in texts.items()}
    kind, colon, count = item.rpartition(":")
    if colon:
        if not count.isdecimal() or int(count) < 1:
            raise InputError(f"--targets={item}: write a number from 1 on after the colon")
        return dict(list(_select(kind, task, data_dir).items())[: int(count)])
    kind, slash, _ = item.partition("/")
    texts = {f"{kind}/{name}": text for name, text in _set(kind, task, data_dir).items()}
    if not slash:
        return texts
    if item not in texts:
        raise InputError(f"--targets={item}: {_closest(item, list(texts))}")
    return {item: texts[item]}


def _set(kind: str, task: str, data_dir: Path | None) -> dict[str, str]:
    if kind in BUILT_IN:
        with resources.as_file(resources.files(__package__) / f"{kind}.json") as path:
            texts = files.read(path)
    elif kind in PAPER_FILES or kind.startswith(LENGTH_PREFIX):
        texts = files.read(_paper_file(kind, PAPER_FILES.get(kind, f"{kind}.json"), data_dir))
    else:
        known = [*BUILT_IN, *PAPER_FILES]
        raise InputError(f"--targets={kind}: no such set or file; {_closest(kind, known)}")
    if kind not in TASK_ENDS:
        return texts
    called = PAPER_TASKS.get(task, task) if kind in PAPER_FILES else task
    beginning = called + TASK_ENDS[kind]
    chosen = {
        name.removeprefix(beginning): text
        for name, text in texts.items()
        if name.startswith(beginning)
    }
    if not chosen:
        raise InputError(f"--targets={kind}: has no texts for task {task}: give a file of your own")
    return chosen


def _paper_file(kind: str, name: str, data_dir: Path | None) -> Path:
    if data_dir is None:
        raise InputError(f"--targets={kind}: give the folder of {name} with --data_dir")
    for path in (data_dir / name, data_dir / "prompts" / name):
        if path.is_file():
            return path
    raise InputError(f"--targets={kind}: neither {name} nor prompts/{name} is in {data_dir}")


def _closest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3) or known[:5]
    return f"choose for instance {', '.join(close)}"
