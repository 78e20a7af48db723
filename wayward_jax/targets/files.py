"""Files of target texts."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wayward_jax.errors import InputError

MAX_BYTES = 64 * 2**20


def read_texts(path: Path) -> dict[str, str]:
    """Reads the texts of a file, by name.

    The suffix of the file tells its format:

    * `.json`: one object that maps names to texts, as in the paper's code.
    * `.jsonl`: one object a line, with `name` and either `text` or `definition`. Several texts of
      one name are told apart by `kind`, which is appended to the name: `name/kind`.
    * any other: every line that is not blank is a text, and its name is the number of the line.

    Raises:
        InputError: the file is missing, too large or malformed, or a text is blank or named twice.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            remedy = f"the file is larger than {MAX_BYTES >> 20} MiB: give a smaller one"
            raise InputError(None, path, remedy)
        content = path.read_text(encoding="utf-8-sig")  # without the byte order mark
    except UnicodeDecodeError as error:
        remedy = f"the file is not UTF-8 ({error.reason}): convert it"
        raise InputError(None, path, remedy) from error
    except OSError as error:
        remedy = f"the file cannot be read ({error.strerror}): give another one"
        raise InputError(None, path, remedy) from error
    if path.suffix == ".json":
        return _collect(path, _parse_object(path, content))
    lines = [(n, line) for n, line in enumerate(content.split("\n"), 1) if line.strip()]
    if path.suffix == ".jsonl":
        return _collect(path, (_parse_entry(path, n, line) for n, line in lines))
    return _collect(path, ((str(n), line) for n, line in lines))


def _parse_object(path: Path, content: str) -> Iterable[tuple[str, Any]]:
    """Parses a JSON object into its pairs, among them those whose name it repeats."""
    pairs = _parse_json(path, 1, content, object_pairs_hook=lambda pairs: pairs)
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise InputError(None, path, "the file is no JSON object: write {name: text, ...}")
    return pairs


def _parse_entry(path: Path, number: int, line: str) -> tuple[str, Any]:
    """Parses a line of a `.jsonl` file into a name and a text."""
    entry = _parse_json(path, number, line)
    if not isinstance(entry, Mapping) or "name" not in entry:
        raise InputError(None, f"{path}:{number}", 'write {"name": ..., "text": ...}')
    name = "/".join(str(entry[key]) for key in ("name", "kind") if key in entry)
    return name, entry.get("text", entry.get("definition"))


def _parse_json(path: Path, first_line: int, text: str, **options: Any) -> Any:
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError as error:
        line = f"{path}:{first_line + error.lineno - 1}"
        raise InputError(None, line, f"not JSON ({error.msg}): fix the line") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or too long a number
        line = f"{path}:{first_line}"
        raise InputError(None, line, "too large a value: write only texts") from error


def _collect(path: Path, pairs: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Makes a dictionary of names and texts, and refuses blank texts and repeated names."""
    texts: dict[str, str] = {}
    for name, text in pairs:
        if not isinstance(text, str) or not text.strip():
            raise InputError(None, path, f"target {name!r} has no text: write one or remove it")
        if name in texts:
            raise InputError(None, path, f"two targets are called {name!r}: rename one")
        texts[name] = text
    if not texts:
        raise InputError(None, path, "the file has no targets: write at least one")
    return texts
