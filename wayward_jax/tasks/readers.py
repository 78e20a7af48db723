"""Files of labelled texts (TSV, CSV, JSON Lines) to `Examples`; errors name file and line."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wayward_jax.errors import InputError
from wayward_jax.tasks.task import Examples

SUFFIXES = (".tsv", ".csv", ".jsonl", ".jsonl.gz")

LARGEST = 2**30  # bytes, unpacked

# What `json` raises of values nested too deeply, and of numbers of too many digits.
TOO_LARGE = (RecursionError, ValueError)

# JSON can spell one ("\\ud800"); no tokenizer takes it.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

Row = tuple[int, str, Any]  # line number (from 1), text, label as the file has it


def read_examples(path: Path, labels: Sequence[str], *, ag_news_csv: bool = False) -> Examples:
    """Reads one split; the suffix of `path` (one of `SUFFIXES`) tells the format.

    Args:
      path: the file.
      labels: label names by id. A file may give a label by its name or by its id.
      ag_news_csv: a CSV file has AG News's own columns, see `_ag_news_rows`.

    Raises:
      InputError: a row with the wrong columns, an unknown label or an empty text, bad encoding,
        malformed CSV, JSON or gzip, or no rows at all.
    """
    content = read_text(path)
    if path.suffix == ".tsv":
        rows = _tsv_rows(path, content)
    elif path.suffix == ".csv":
        rows = _ag_news_rows(path, content) if ag_news_csv else _csv_rows(path, content)
    else:
        rows = _jsonl_rows(path, content)
    texts, ids = [], []
    for line, text, label in rows:
        if not text.strip():
            raise InputError(f"{path}:{line}: the text is empty; remove the row or fill it in")
        if _LONE_SURROGATE.search(text):
            raise InputError(f"{path}:{line}: the text holds half a character (a lone surrogate)")
        texts.append(text)
        ids.append(_label_id(label, labels, f"{path}:{line}"))
    if not texts:
        raise InputError(f"{path}: holds no examples; give every split at least one")
    return Examples(tuple(texts), np.array(ids, dtype=np.int32))


def read_text(path: Path) -> str:
    """The content of a UTF-8 file (`.gz`: unpacked), with its newlines as they are.

    Raises:
      InputError: the file cannot be read or unpacked, or is not UTF-8.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); fetch or copy it again") from error
    if len(content) > LARGEST:
        raise InputError(f"{path}: larger than {LARGEST >> 20} MiB; give a part of it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8; convert the file to UTF-8") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises `InputError` where it is not JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg}); mend it") from error
    except TOO_LARGE as error:
        raise InputError(f"{path}: too large a value; mend it") from error


def _tsv_rows(path: Path, content: str) -> Iterator[Row]:
    """`sentence<TAB>label`, a header or none, no quoting; `\\n` in a sentence stands for a newline.

    That is how the paper's code reads both LM-BFF's SST-2 and its own AG News files.
    """
    for line, row in _lines(content):
        columns = row.replace("\\n", "\n").split("\t")
        if line == 1 and columns == ["sentence", "label"]:
            continue
        _check_columns(columns, ("sentence", "label"), f"{path}:{line}")
        yield line, columns[0], columns[1]


def _csv_rows(path: Path, content: str) -> Iterator[Row]:
    """`label,text` without a header: LM-BFF's sst-5, trec and subj."""
    for line, columns in _csv_records(path, content):
        _check_columns(columns, ("label", "text"), f"{path}:{line}")
        yield line, columns[1], columns[0]


def _ag_news_rows(path: Path, content: str) -> Iterator[Row]:
    """`label,title,description` with labels from 1: AG News as Zhang et al. (2015) distribute it.

    Title and description are joined as `prepro_for_zhang` of the paper's code joins them, and read
    back as it reads its TSV.
    """
    for line, columns in _csv_records(path, content):
        _check_columns(columns, ("label", "title", "description"), f"{path}:{line}")
        label, title, description = columns
        if not re.fullmatch("[1-9][0-9]{0,8}", label):
            raise InputError(f"{path}:{line}: unknown label {label!r}; AG News counts from 1")
        text = f"{title} {description}".replace("\t", " ").replace("\\n", "\n")
        yield line, text, int(label) - 1


def _jsonl_rows(path: Path, content: str) -> Iterator[Row]:
    """One `{"text": ..., "label": ...}` a line; other keys are left alone."""
    for line, row in _lines(content):
        try:
            value = json.loads(row)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{line}: not JSON ({error.msg}); mend the line") from error
        except TOO_LARGE as error:
            raise InputError(f"{path}:{line}: too large a value; mend the line") from error
        if not isinstance(value, dict) or "label" not in value:
            raise InputError(f'{path}:{line}: expected {{"text": ..., "label": ...}}')
        if not isinstance(value.get("text"), str):
            raise InputError(f'{path}:{line}: "text" is missing or not a string')
        yield line, value["text"], value["label"]


def _lines(content: str) -> Iterator[tuple[int, str]]:
    """Lines counted from 1. Only LF and CRLF end one: `str.splitlines` knows ten more that texts
    contain."""
    content = content.rstrip("\r\n")
    for line, row in enumerate(content.split("\n") if content else (), start=1):
        yield line, row.removesuffix("\r")


def _csv_records(path: Path, content: str) -> Iterator[tuple[int, list[str]]]:
    """Records with the line on which each begins. Strict: a quote left open is an error, not a row
    that swallows the rest of the file."""
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            columns = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path}:{line}: malformed CSV ({error}); mend the row") from error
        yield line, columns


def _check_columns(columns: Sequence[str], names: Sequence[str], where: str) -> None:
    if len(columns) != len(names):
        raise InputError(
            f"{where}: {len(columns)} column(s) where {len(names)} are expected: {', '.join(names)}"
        )


def _label_id(label: Any, labels: Sequence[str], where: str) -> int:
    """The id of a label given as its name, as its id, or as the digits of its id."""
    if isinstance(label, str) and label in labels:
        return labels.index(label)
    for label_id in range(len(labels)):
        if label == str(label_id) or (type(label) is int and label == label_id):  # True is no id
            return label_id
    raise InputError(
        f"{where}: unknown label {label!r}; expected 0 to {len(labels) - 1} or one of "
        f"{', '.join(labels)}"
    )
