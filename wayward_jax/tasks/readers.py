"""Readers of files of labeled texts: TSV, CSV and JSON Lines. Errors name the file and the line."""

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

from wayward_jax.errors import InputError, reason
from wayward_jax.tasks.task import Examples

SUFFIXES = (".tsv", ".csv", ".jsonl", ".jsonl.gz")

MAX_BYTES = 2**30  # unpacked

# `json` raises these for values that are nested too deeply and for numbers of too many digits.
TOO_LARGE = (RecursionError, ValueError)

# JSON can hold half a character ("\\ud800"), which tokenizers refuse.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

Row = tuple[int, str, Any]  # line number (from 1), text, label as in the file


def read_examples(path: Path, labels: Sequence[str], *, ag_news_csv: bool = False) -> Examples:
    """Reads one split. The suffix of `path` (one of `SUFFIXES`) tells the format.

    Args:
        path: the file.
        labels: label names by id. A file may give a label by its name or by its id.
        ag_news_csv: CSV files have AG News's own columns, see `_ag_news_rows`.

    Raises:
        InputError: a row has the wrong columns, an unknown label or an empty text, the encoding,
            CSV, JSON or gzip is malformed, or there are no rows.
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
            remedy = "the text is empty: remove the row or fill it in"
            raise InputError(None, f"{path}:{line}", remedy)
        if _LONE_SURROGATE.search(text):
            remedy = "the text holds half a character (a lone surrogate): remove it"
            raise InputError(None, f"{path}:{line}", remedy)
        texts.append(text)
        ids.append(_label_id(label, labels, f"{path}:{line}"))
    if not texts:
        raise InputError(None, path, "holds no examples: give every split at least one")
    return Examples(tuple(texts), np.array(ids, dtype=np.int32))


def read_text(path: Path) -> str:
    """Reads a UTF-8 file (`.gz`: unpacks it), and keeps its newlines as they are.

    Raises:
        InputError: the file cannot be read or unpacked, is too large, or is not UTF-8.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        remedy = f"cannot be read ({reason(error)}): fetch or copy it again"
        raise InputError(None, path, remedy) from error
    if len(content) > MAX_BYTES:
        raise InputError(None, path, f"larger than {MAX_BYTES >> 20} MiB: give a part of it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        remedy = "not UTF-8: convert the file to UTF-8"
        raise InputError(None, f"{path}:{line}", remedy) from error


def read_json(path: Path) -> Any:
    """Reads the value of a JSON file. Raises `InputError` if it is not JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        remedy = f"not JSON ({error.msg}): fix it"
        raise InputError(None, f"{path}:{error.lineno}", remedy) from error
    except TOO_LARGE as error:
        raise InputError(None, path, "too large a value: fix it") from error


def _tsv_rows(path: Path, content: str) -> Iterator[Row]:
    """Reads `sentence<TAB>label` as the paper's code reads LM-BFF's SST-2 and its own AG News.

    There may be a header. Nothing is quoted. A `\\n` in a sentence stands for a newline.
    """
    for line, row in _lines(content):
        columns = row.replace("\\n", "\n").split("\t")
        if line == 1 and columns == ["sentence", "label"]:
            continue
        _check_columns(columns, ("sentence", "label"), f"{path}:{line}")
        yield line, columns[0], columns[1]


def _csv_rows(path: Path, content: str) -> Iterator[Row]:
    """Reads `label,text` without a header: LM-BFF's sst-5, trec and subj."""
    for line, columns in _csv_records(path, content):
        _check_columns(columns, ("label", "text"), f"{path}:{line}")
        yield line, columns[1], columns[0]


def _ag_news_rows(path: Path, content: str) -> Iterator[Row]:
    """Reads `label,title,description`, labels from 1: AG News as Zhang et al. (2015) publish it.

    Title and description are joined as in the paper's code, which writes them to a TSV file
    (`prepro_for_zhang`) and reads that.
    """
    for line, columns in _csv_records(path, content):
        _check_columns(columns, ("label", "title", "description"), f"{path}:{line}")
        label, title, description = columns
        if not re.fullmatch("[1-9][0-9]{0,8}", label):
            remedy = f"unknown label {label!r}: AG News counts from 1"
            raise InputError(None, f"{path}:{line}", remedy)
        text = f"{title} {description}".replace("\t", " ").replace("\\n", "\n")
        yield line, text, int(label) - 1


def _jsonl_rows(path: Path, content: str) -> Iterator[Row]:
    """Reads one `{"text": ..., "label": ...}` a line, and ignores other keys."""
    for line, row in _lines(content):
        try:
            value = json.loads(row)
        except json.JSONDecodeError as error:
            remedy = f"not JSON ({error.msg}): fix the line"
            raise InputError(None, f"{path}:{line}", remedy) from error
        except TOO_LARGE as error:
            remedy = "too large a value: fix the line"
            raise InputError(None, f"{path}:{line}", remedy) from error
        if not isinstance(value, dict) or "label" not in value:
            raise InputError(None, f"{path}:{line}", 'expected {"text": ..., "label": ...}')
        if not isinstance(value.get("text"), str):
            raise InputError(None, f"{path}:{line}", '"text" is missing or not a string: give one')
        yield line, value["text"], value["label"]


def _lines(content: str) -> Iterator[tuple[int, str]]:
    """Splits a text into lines, counted from 1.

    Only LF and CRLF end a line. `str.splitlines` also splits at ten characters that texts contain.
    """
    content = content.rstrip("\r\n")
    for line, row in enumerate(content.split("\n") if content else (), start=1):
        yield line, row.removesuffix("\r")


def _csv_records(path: Path, content: str) -> Iterator[tuple[int, list[str]]]:
    """Reads CSV records, each with the number of its first line.

    Parsing is strict: a quote that is never closed is an error, and not a row that takes in the
    rest of the file.
    """
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            columns = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            remedy = f"malformed CSV ({error}): fix the row"
            raise InputError(None, f"{path}:{line}", remedy) from error
        yield line, columns


def _check_columns(columns: Sequence[str], names: Sequence[str], where: str) -> None:
    if len(columns) != len(names):
        remedy = f"{len(columns)} column(s) where {len(names)} are expected: {', '.join(names)}"
        raise InputError(None, where, remedy)


def _label_id(label: Any, labels: Sequence[str], where: str) -> int:
    """Returns the id of a label that is given as its name, its id, or the digits of its id."""
    if isinstance(label, str) and label in labels:
        return labels.index(label)
    for label_id in range(len(labels)):
        if label == str(label_id) or (type(label) is int and label == label_id):  # True is no id
            return label_id
    remedy = f"expected 0 to {len(labels) - 1} or one of {', '.join(labels)}"
    raise InputError(None, where, f"unknown label {label!r}: {remedy}")
