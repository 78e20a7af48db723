"""Readers of files of labeled texts. Errors name the file and the line.

A file is TSV, CSV, JSON Lines, JSON or Parquet. All but Parquet may be compressed (`.gz`, `.zst`).
"""

import csv
import dataclasses
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wayward_jax.errors import InputError, reason
from wayward_jax.tasks.task import Examples

PACKED = (".gz", ".zst")
FORMATS = (".tsv", ".csv", ".jsonl", ".json")
SUFFIXES = (*(kind + packed for kind in FORMATS for packed in ("", *PACKED)), ".parquet")

# Columns of these names are read where no others are given.
TEXT_COLUMNS = ("text", "sentence")
LABEL_COLUMN = "label"

# The order of the columns of files without a header.
COLUMN_ORDER = {".tsv": ("text", "label"), ".csv": ("label", "text")}

MAX_BYTES = 2**30  # unpacked

# `json` raises these for values that are nested too deeply and for numbers of too many digits.
TOO_LARGE = (RecursionError, ValueError)

# JSON can hold half a character ("\\ud800"), which tokenizers refuse.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

# Labels that public test sets have in place of labels that are withheld.
WITHHELD = (None, "", -1, "-1")

Row = tuple[str, Mapping[str, Any]]  # the place, for messages, and the values by column


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns that are read. None means the usual names, `TEXT_COLUMNS` and `LABEL_COLUMN`.

    Attributes:
        text: the column of the texts.
        label: the column of the labels.
        text_b: the column of the second texts of pairs. None means that there are none.
    """

    text: str | None = None
    label: str | None = None
    text_b: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The names that the column of texts may have."""
        return TEXT_COLUMNS if self.text is None else (self.text,)

    @property
    def labels(self) -> str:
        """The name of the column of labels."""
        return self.label or LABEL_COLUMN


USUAL_COLUMNS = Columns()


def read_examples(
    path: Path,
    labels: Sequence[str],
    *,
    columns: Columns = USUAL_COLUMNS,
    paper: bool = False,
    ag_news_csv: bool = False,
) -> tuple[Examples, int]:
    """Reads a file. The suffix of `path` (one of `SUFFIXES`) tells the format.

    TSV and CSV files may have a header. Without one, the columns of TSV files are text and label,
    and those of CSV files label and text. Blank lines, and how lines end, do not matter.

    Args:
        path: the file.
        labels: label names by id. A file may give a label by its name or by its id, see
            `label_ids`.
        columns: the columns that are read.
        paper: TSV files are read as the paper's code reads them: nothing is quoted, and a `\\n` in
            a text stands for a line break.
        ag_news_csv: CSV files have AG News's own columns, see `_ag_news_rows`.

    Returns:
        The examples, and the number of rows without a label, which are left out.

    Raises:
        InputError: a column is missing, a row has too many or too few, an unknown label or an empty
            text, the encoding, CSV, JSON or compression is malformed, or there are no rows.
    """
    names = label_ids(labels)
    texts: list[str] = []
    texts_b: list[str] = []
    ids: list[int] = []
    unlabeled = 0
    for place, values in _rows(path, columns, paper, ag_news_csv):
        label = values.get(columns.labels)
        if not any(name in names for name in _label_texts(label)) and _is_withheld(label):
            unlabeled += 1
            continue
        name = next((name for name in columns.texts if name in values), columns.texts[0])
        texts.append(_checked_text(values.get(name), name, place))
        if columns.text_b is not None:
            texts_b.append(_checked_text(values.get(columns.text_b), columns.text_b, place))
        ids.append(_label_id(label, names, labels, place))
    if not texts and not unlabeled:
        raise InputError(None, path, "holds no examples: give every split at least one")
    return Examples(tuple(texts), np.array(ids, dtype=np.int32), tuple(texts_b)), unlabeled


def label_ids(labels: Sequence[str]) -> dict[str, int]:
    """Maps what a file may give as a label to the label's id: its name, or the digits of its id.

    Ids count only if no name could be taken for another label's id. If the names are 1, 2 and 3,
    then the labels of a file are names.
    """
    names = {label: id_ for id_, label in enumerate(labels)}
    if any(re.fullmatch(r"[+-]?\d+", name) and name != str(id_) for name, id_ in names.items()):
        return names
    return {str(id_): id_ for id_ in names.values()} | names


def read_text(path: Path) -> str:
    """Reads a UTF-8 file (`.gz`, `.zst`: unpacks it), and keeps its newlines as they are.

    Raises:
        InputError: the file cannot be read or unpacked, is too large, or is not UTF-8.
    """
    try:
        with _open(path) as file:
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
    return _load(read_text(path), path, 1)


def _open(path: Path) -> Any:
    """Opens a file of bytes, unpacked."""
    if path.suffix == ".zst":
        import pyarrow  # imported here because few files need it

        return pyarrow.input_stream(str(path), compression="zstd")
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _rows(path: Path, columns: Columns, paper: bool, ag_news_csv: bool) -> Iterator[Row]:
    kind = next(suffix for suffix in path.suffixes[::-1] if suffix not in PACKED)
    match kind:
        case ".parquet":
            return _parquet_rows(path, columns)
        case ".jsonl":
            return _jsonl_rows(path, read_text(path))
        case ".json":
            return _json_rows(path, read_text(path))
        case ".csv" if ag_news_csv:
            return _ag_news_rows(path, read_text(path))
        case ".csv":
            return _table_rows(path, _csv_records(path, read_text(path)), columns, kind)
    records = _tsv_records(path, read_text(path), paper)
    return _table_rows(path, records, columns, kind)


def _tsv_records(path: Path, content: str, paper: bool) -> Iterator[tuple[int, list[str]]]:
    """Reads the rows of a TSV file, in the dialect in which it was written."""
    if not paper and _is_quoted(content):
        yield from _csv_records(path, content, delimiter="\t")
        return
    for line, row in _lines(content):
        yield line, (row.replace("\\n", "\n") if paper else row).split("\t")


def _is_quoted(content: str) -> bool:
    """Tells whether a TSV file was written with quotes around fields.

    A quote may also be a part of a text. So the file is written again in each dialect that puts
    quotes: around all fields, all but numbers, or those that need them. It was written with quotes
    if one of the dialects gives the same file.
    """
    if not re.search(r'(?:^|\t)"', content, re.MULTILINE):
        return False
    try:
        records = list(csv.reader(io.StringIO(content, newline=""), delimiter="\t", strict=True))
    except csv.Error:
        return False
    number, special = re.compile(r"[+-]?\d+(\.\d+)?"), re.compile(r'["\t\r\n]')

    def written(row: list[str], quotes: Any) -> str:
        fields = ('"%s"' % f.replace('"', '""') if quotes(f) else f for f in row)  # noqa: UP031
        return "\t".join(fields)

    def normalized(text: str) -> str:
        return re.sub(r"[\r\n]+", "\n", text).strip("\n")

    dialects = (special.search, lambda field: True, lambda field: not number.fullmatch(field))
    wanted = normalized(content)
    return any(
        normalized("\n".join(written(row, quotes) for row in records)) == wanted
        for quotes in dialects
    )


def _table_rows(
    path: Path, records: Iterator[tuple[int, list[str]]], columns: Columns, kind: str
) -> Iterator[Row]:
    """Names the fields of records by their header, or by their usual order if there is none."""
    first = next(records, None)
    if first is None:
        return
    line, header = first
    given = [name for name in (columns.text, columns.label, columns.text_b) if name is not None]
    if given or set(columns.texts) & set(header):
        missing = [name for name in given if name not in header]
        if missing or not set(columns.texts) & set(header):
            raise _missing(f"{path}:{line}", (missing or columns.texts)[0], header)
        names: Sequence[str] = header
    else:
        names = [{"text": TEXT_COLUMNS[0], "label": columns.labels}[n] for n in COLUMN_ORDER[kind]]
        records = itertools.chain([first], records)
    for line, fields in records:
        if len(fields) != len(names):
            expected = f"{len(names)} are expected: {', '.join(names)}"
            remedy = f"{len(fields)} column(s) where {expected}"
            raise InputError(None, f"{path}:{line}", remedy)
        yield f"{path}:{line}", dict(zip(names, fields, strict=True))


def _missing(place: str, column: str, found: Sequence[str]) -> InputError:
    remedy = (
        f"there is no column {column!r} among {', '.join(found)}: name the columns with "
        "--text_column and --label_column"
    )
    return InputError(None, place, remedy)


def _ag_news_rows(path: Path, content: str) -> Iterator[Row]:
    """Reads `label,title,description`, labels from 1: AG News as Zhang et al. (2015) publish it.

    Title and description are joined as in the paper's code, which writes them to a TSV file
    (`prepro_for_zhang`) and reads that.
    """
    for line, fields in _csv_records(path, content):
        if len(fields) != 3:
            remedy = f"{len(fields)} column(s) where 3 are expected: label, title, description"
            raise InputError(None, f"{path}:{line}", remedy)
        label, title, description = fields
        if label and not re.fullmatch("[1-9][0-9]{0,8}", label):
            remedy = f"unknown label {label!r}: AG News counts from 1"
            raise InputError(None, f"{path}:{line}", remedy)
        text = f"{title} {description}".replace("\t", " ").replace("\\n", "\n")
        yield f"{path}:{line}", {"text": text, "label": label and int(label) - 1}


def _jsonl_rows(path: Path, content: str) -> Iterator[Row]:
    """Reads one object a line."""
    for line, row in _lines(content):
        yield f"{path}:{line}", _object(_load(row, path, line), f"{path}:{line}")


def _json_rows(path: Path, content: str) -> Iterator[Row]:
    """Reads a list of objects. Files of this suffix may also be JSON Lines."""
    if not content.lstrip().startswith("["):
        yield from _jsonl_rows(path, content)
        return
    for number, value in enumerate(_load(content, path, 1), start=1):
        yield f"{path} row {number}", _object(value, f"{path} row {number}")


def _load(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{first_line + error.lineno - 1}"
        raise InputError(None, place, f"not JSON ({error.msg}): fix the line") from error
    except TOO_LARGE as error:
        raise InputError(None, f"{path}:{first_line}", "too large a value: fix the line") from error


def _object(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(None, place, 'expected an object like {"text": ..., "label": ...}')
    return value


def _parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Reads the columns of a Parquet file that are needed."""
    import pyarrow  # imported here because few files need it
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        found = file.schema_arrow.names
        text = next((name for name in columns.texts if name in found), None)
        needed = [text or columns.texts[0], columns.label, columns.text_b]
        if missing := [name for name in needed if name is not None and name not in found]:
            raise _missing(str(path), missing[0], found)
        names = [name for name in (text, columns.labels, columns.text_b) if name in found]
        rows = file.read(columns=names).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        remedy = f"cannot be read ({reason(error)}): fetch or copy it again"
        raise InputError(None, path, remedy) from error
    for number, row in enumerate(rows, start=1):
        yield f"{path} row {number}", row


def _lines(content: str) -> Iterator[tuple[int, str]]:
    """Splits a text into the lines that are not blank, counted from 1.

    Only LF ends a line, with any number of CRs before it. `str.splitlines` also splits at ten
    characters that texts contain.
    """
    for line, row in enumerate(content.split("\n"), start=1):
        if row := row.rstrip("\r"):
            yield line, row


def _csv_records(path: Path, content: str, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Reads CSV records that are not blank, each with the number of its first line.

    Parsing is strict: a quote that is never closed is an error, and not a row that takes in the
    rest of the file.
    """
    lines = io.StringIO(content, newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            remedy = f"malformed CSV ({error}): fix the row"
            raise InputError(None, f"{path}:{line}", remedy) from error
        if fields:
            yield line, fields


def _checked_text(text: Any, column: str, place: str) -> str:
    if not isinstance(text, str):
        remedy = f'"{column}" is missing or not a string: give one'
        raise InputError(None, place, remedy)
    if not text.strip():
        raise InputError(None, place, "the text is empty: remove the row or fill it in")
    if _LONE_SURROGATE.search(text):
        remedy = "the text holds half a character (a lone surrogate): remove it"
        raise InputError(None, place, remedy)
    return text


def _is_withheld(label: Any) -> bool:
    return label != label or (type(label) is not bool and label in WITHHELD)  # NaN is unlike itself


def _label_texts(label: Any) -> tuple[str, ...]:
    """Lists the texts that a label may stand for: `true` and `True` for a JSON true."""
    match label:
        case bool():
            return json.dumps(label), str(label)
        case str() | int() | float():
            return (str(label),)
    return ()


def _label_id(label: Any, ids: Mapping[str, int], labels: Sequence[str], place: str) -> int:
    """Returns the id of a label as a file gives it."""
    for text in _label_texts(label):
        if text in ids:
            return ids[text]
    numbers = f"0 to {len(labels) - 1} or " if "0" in ids and "0" not in labels else ""
    header = ", or name the columns of this header with --text_column and --label_column"
    remedy = f"expected {numbers}one of {', '.join(labels)}{header if place.endswith(':1') else ''}"
    raise InputError(None, place, f"unknown label {label!r}: {remedy}")
