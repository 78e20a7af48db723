"""Sets of target texts in files: name to text."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wayward_jax.errors import InputError

LARGEST = 64 * 2**20


def read(path: Path) -> dict[str, str]:
    """The texts of a file, by name.

    A `.json` file is one object of name to text, as the paper's code has them. A `.jsonl` file has
    an object a line, with `name` and `text` or `definition`; a `kind`, which tells several texts of
    one name apart, is added to it: `name/kind`. Of any other file each line that is not blank is a
    text, named by its line number.

    Raises:
        InputError: the file is missing, too large or malformed, or a text is blank or named twice.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} is larger than {LARGEST >> 20} MiB: give a smaller file")
        content = path.read_text(encoding="utf-8-sig")  # without the mark that some editors put
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}): convert it") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check --targets") from error
    if path.suffix == ".json":
        return _named(path, _object(path, content))
    lines = [(n, line) for n, line in enumerate(content.split("\n"), 1) if line.strip()]
    if path.suffix == ".jsonl":
        return _named(path, (_entry(path, n, line) for n, line in lines))
    return _named(path, ((str(n), line) for n, line in lines))


def _object(path: Path, content: str) -> Iterable[tuple[str, Any]]:
    """The pairs of a JSON object, also of names that it repeats."""
    pairs = _parse(path, 1, content, object_pairs_hook=lambda pairs: pairs)
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise InputError(f"{path} is no JSON object: write {{name: text, ...}}")
    return pairs


def _entry(path: Path, number: int, line: str) -> tuple[str, Any]:
    entry = _parse(path, number, line)
    if not isinstance(entry, Mapping) or "name" not in entry:
        raise InputError(f'{path}:{number}: write {{"name": ..., "text": ...}}')
    name = "/".join(str(entry[key]) for key in ("name", "kind") if key in entry)
    return name, entry.get("text", entry.get("definition"))


def _parse(path: Path, first_line: int, text: str, **options: Any) -> Any:
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(f"{path}:{line}: not JSON ({error.msg}): mend the line") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or too long a number
        raise InputError(f"{path}:{first_line}: too large a value: write texts only") from error


def _named(path: Path, pairs: Iterable[tuple[str, Any]]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for name, text in pairs:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{path}: target {name!r} has no text: write one or remove it")
        if name in texts:
            raise InputError(f"{path}: two targets are called {name!r}: rename one")
        texts[name] = text
    if not texts:
        raise InputError(f"{path} has no targets: write at least one")
    return texts
