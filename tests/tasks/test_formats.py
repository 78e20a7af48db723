"""Files as people have them: formats, compressions, columns, dialects, labels, names of splits."""

import csv
import gzip
import json

import pandas as pd
import pyarrow
import pytest

from wayward_jax.errors import InputError
from wayward_jax.tasks import load
from wayward_jax.tasks.folders import find_split
from wayward_jax.tasks.readers import Columns, read_examples

LABELS = ("negative", "positive")
TEXTS = (
    'say "hi"',
    r"C:\new \nabla",
    "a\ttab",
    "two\nlines",
    '"all quoted"',
    "é 日本 \u2028",
    "a, b",
)
ROWS = [{"text": text, "label": i % 2, "other": None} for i, text in enumerate(TEXTS)]
OWN = {"templates": ["It was %s . "], "label_words": ["bad", "good"], "labels": list(LABELS)}


def zst(content):
    return pyarrow.compress(content, codec="zstd", asbytes=True)


PACK = {"": bytes, ".gz": gzip.compress, ".zst": zst}


def content_of(kind, rows):
    """The rows as pandas and json write them, with all columns named."""
    frame = pd.DataFrame(rows)
    match kind:
        case ".jsonl":
            return "".join(json.dumps(row) + "\n" for row in rows).encode()
        case ".json":
            return json.dumps(rows, indent=1).encode()
        case ".csv":
            return frame.to_csv(index=False).encode()
        case ".tsv":
            return frame.to_csv(index=False, sep="\t").encode()
    return frame.to_parquet(index=False)


def write(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, labels=LABELS, **options):
    examples, unlabeled = read_examples(path, labels, **options)
    return examples.texts, examples.labels.tolist(), unlabeled


def load_own(folder, description=OWN, **options):
    (folder / "task.json").write_text(json.dumps(description))
    return load(str(folder), data_dir=None, fetch=pytest.fail, **options)


# Formats and compressions


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv"])
def test_every_format_and_compression_brings_every_text_back(kind, packed, tmp_path):
    path = write(tmp_path, f"train{kind}{packed}", PACK[packed](content_of(kind, ROWS)))
    assert read(path) == (TEXTS, [i % 2 for i in range(len(TEXTS))], 0)


def test_parquet_brings_every_text_back(tmp_path):
    path = write(tmp_path, "train.parquet", content_of(".parquet", ROWS))
    assert read(path) == (TEXTS, [i % 2 for i in range(len(TEXTS))], 0)


def test_a_json_file_may_hold_json_lines(tmp_path):
    path = write(tmp_path, "train.json", content_of(".jsonl", ROWS))
    assert read(path)[0] == TEXTS


@pytest.mark.parametrize("name", ["a.tsv.zst", "a.jsonl.zst", "a.jsonl.gz", "a.parquet"])
def test_a_packed_file_that_is_broken_gives_one_line(name, tmp_path):
    whole = {
        "parquet": content_of(".parquet", ROWS * 50),
        "zst": zst(content_of(".jsonl", ROWS * 50)),
        "gz": gzip.compress(content_of(".jsonl", ROWS * 50)),
    }[name.rpartition(".")[2]]
    for content in (b"", b"junk", whole[: len(whole) // 2]):
        with pytest.raises(InputError, match=rf"{name}: (cannot be read|holds no)") as caught:
            read_examples(write(tmp_path, name, content), LABELS)
        assert "\n" not in str(caught.value)


# The ends of lines

LINES = {
    ".jsonl": ['{"text": "bad", "label": 0}', '{"text": "good", "label": 1}'],
    ".json": ['{"text": "bad", "label": 0}', '{"text": "good", "label": 1}'],
    ".tsv": ["text\tlabel", "bad\t0", "good\t1"],
    ".csv": ["text,label", "bad,0", "good,1"],
}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\r\n", "\n\n", "\r\n\r\n", "\r\r\n\r\r\n"])
@pytest.mark.parametrize("kind", LINES)
def test_blank_lines_line_ends_and_byte_order_marks_are_nothing(kind, end, mark, tmp_path):
    for start, last in (("", ""), ("", end), (end, end)):
        path = write(tmp_path, f"a{kind}", mark + start + end.join(LINES[kind]) + last)
        assert read(path) == (("bad", "good"), [0, 1], 0)


def test_a_line_is_counted_with_the_blank_ones(tmp_path):
    path = write(tmp_path, "a.tsv", "\n\nbad\t0\r\n\r\ngood\t7\n")
    with pytest.raises(InputError, match=r"a\.tsv:5: unknown label '7'"):
        read_examples(path, LABELS)


# Dialects of TSV


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_a_tsv_file_is_read_in_the_dialect_that_wrote_it(quoting, tmp_path):
    content = pd.DataFrame(ROWS)[["text", "label"]].to_csv(index=False, sep="\t", quoting=quoting)
    assert read(write(tmp_path, "a.tsv", content))[0] == TEXTS


@pytest.mark.parametrize(
    "text", ['"open', '"hello" he said', '"all of it"', 'a "b" c', '"', '""', "\\t \\n", "'q'"]
)
def test_quotes_are_text_where_the_file_has_no_quoting(text, tmp_path):
    path = write(tmp_path, "a.tsv", f"text\tlabel\n{text}\t0\nplain\t1\n")
    assert read(path)[0] == (text, "plain")


def test_a_tsv_file_of_no_dialect_is_refused(tmp_path):
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"with\ta tab" and more\t0\n')
    with pytest.raises(InputError, match=r"a\.tsv:2: 3 column\(s\) where 2 are expected"):
        read_examples(path, LABELS)


@pytest.mark.parametrize("text", [r"\nabla f", r"C:\new", r"a\\nb", r"\n"])
def test_a_backslash_stays_a_backslash_but_in_the_papers_tsv_files(text, tmp_path):
    for kind in (".tsv", ".csv"):
        row = {".tsv": f"{text}\t1\n", ".csv": f"1,{text}\n"}[kind]
        assert read(write(tmp_path, f"a{kind}", row))[0] == (text,)
        assert read(write(tmp_path, f"h{kind}", content_of(kind, [{"text": text, "label": 1}])))[
            0
        ] == (text,)
    papers = read(write(tmp_path, "a.tsv", f"x{text}\t1\n"), paper=True)[0]
    assert papers == (f"x{text}".replace(r"\n", "\n"),)


def test_own_tasks_keep_backslashes_and_the_papers_tasks_do_not(tmp_path):
    rows = "".join(f"C:\\new {i}\t{i % 2}\n" for i in range(20))
    for name in ("own", "SST-2"):
        for split in ("train", "dev"):
            write(tmp_path, f"{name}/{split}.tsv", rows)
    own = load_own(tmp_path / "own")
    papers = load("sst2", data_dir=tmp_path, fetch=pytest.fail)
    assert own.test.texts[0] == "C:\\new 0"
    assert papers.test.texts[0] == "C:\new 0"


# Columns

REVIEWS = [{"id": i, "review": f"text {i}", "stars": i % 2} for i in range(20)]
NAMED = Columns("review", "stars")


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_columns_are_named_by_the_user(kind, tmp_path):
    path = write(tmp_path, f"a{kind}", content_of(kind, REVIEWS))
    assert read(path, columns=NAMED)[:2] == (
        tuple(row["review"] for row in REVIEWS),
        [row["stars"] for row in REVIEWS],
    )


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("column", ["text", "label"])
def test_a_column_that_is_not_there_is_named(kind, column, tmp_path):
    path = write(tmp_path, f"a{kind}", content_of(kind, REVIEWS))
    columns = Columns(**{"text": "review", "label": "stars", column: "missing"})
    if column == "label" and kind.startswith(".json"):
        assert read(path, columns=columns)[2] == len(REVIEWS)
        return
    with pytest.raises(InputError, match=r"a\.(json|csv|tsv|parquet).*'?missing") as caught:
        read_examples(path, LABELS, columns=columns)
    assert "\n" not in str(caught.value)


def test_unnamed_columns_of_other_names_are_no_examples(tmp_path):
    path = write(tmp_path, "a.csv", "review,sentiment\nfine,1\n")
    with pytest.raises(InputError, match=r"a\.csv:1: unknown label 'review'.*label_column"):
        read_examples(path, LABELS)
    assert read(path, columns=Columns("review", "sentiment"))[0] == ("fine",)


def test_arguments_come_before_the_columns_of_task_json(tmp_path):
    for split in ("train", "test"):
        write(tmp_path, f"m/{split}.csv", content_of(".csv", REVIEWS))
    described = {**OWN, "text_column": "review", "label_column": "stars"}
    assert load_own(tmp_path / "m", described).test.texts[0] == "text 0"
    assert load_own(tmp_path / "m", described, text_column="id").test.texts[1] == "1"
    options = {"text_column": "review", "label_column": "stars"}
    assert load_own(tmp_path / "m", OWN, **options).test.labels.tolist() == [0, 1] * 10


@pytest.mark.parametrize("name", [7, "", None, ["a"]])
def test_a_column_in_task_json_must_be_a_string(name, tmp_path):
    write(tmp_path, "train.csv", content_of(".csv", REVIEWS))
    with pytest.raises(InputError, match=r"task\.json: the name of a column must be a string"):
        load_own(tmp_path, {**OWN, "text_column": name})


# Labels


@pytest.mark.parametrize(
    ("names", "given", "ids"),
    [
        (["1", "2", "3"], [1, 2, 3], [0, 1, 2]),
        (["1", "2", "3"], ["3", "1", "2"], [2, 0, 1]),
        (["1", "0"], [0, 1], [1, 0]),
        (["0", "1"], [0, 1], [0, 1]),
        (["2", "4"], [4, 2], [1, 0]),
        (["-1", "1"], [-1, 1], [0, 1]),
        (["negative", "positive"], [1, 0], [1, 0]),
        (["negative", "positive"], ["positive", "0"], [1, 0]),
        (["false", "true"], [True, False], [1, 0]),
        (["False", "True"], [True, False], [1, 0]),
        (["0.5", "1.0"], [1.0, 0.5], [1, 0]),
    ],
)
def test_a_label_is_the_name_that_the_task_gives_and_then_the_id(names, given, ids, tmp_path):
    rows = [{"text": "a", "label": label} for label in given]
    assert read(write(tmp_path, "a.jsonl", content_of(".jsonl", rows)), names)[1] == ids
    if not any(isinstance(label, bool | float) for label in given):
        rows = [{"text": "a", "label": str(label)} for label in given]
        for kind in (".csv", ".tsv", ".parquet"):
            assert read(write(tmp_path, f"a{kind}", content_of(kind, rows)), names)[1] == ids


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (["1", "2", "3"], 0),
        (["1", "2", "3"], "0"),
        (["2", "4"], 0),
        (["2", "4"], 1),
        (["1", "0"], 2),
        (["negative", "positive"], True),
        (["negative", "positive"], 2),
        (["negative", "positive"], 1.0),
        (["negative", "positive"], "Positive"),
        (["negative", "positive"], [1]),
        (["negative", "positive"], {"id": 1}),
    ],
)
def test_a_label_that_is_no_name_is_never_shifted_to_another(names, label, tmp_path):
    rows = [{"text": "a", "label": names[0]}, {"text": "b", "label": label}]
    path = write(tmp_path, "a.jsonl", content_of(".jsonl", rows))
    with pytest.raises(InputError, match=r"a\.jsonl:2: unknown label .*expected .*one of"):
        read_examples(path, names)


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("withheld", [None, "", "-1"])
def test_rows_without_a_label_are_left_out_and_counted(kind, withheld, tmp_path):
    rows = [
        {"text": "a", "label": "1"},
        {"text": "", "label": withheld},
        {"text": "c", "label": "0"},
    ]
    path = write(tmp_path, f"a{kind}", content_of(kind, rows))
    assert read(path) == (("a", "c"), [1, 0], 1)


def test_rows_without_a_label_key_are_left_out(tmp_path):
    path = write(
        tmp_path,
        "a.jsonl",
        '{"text": "a"}\n{"text": "b", "label": -1}\n{"text": "c", "label": NaN}\n',
    )
    assert read(path) == ((), [], 3)


def test_ag_news_rows_without_a_label_are_left_out(tmp_path):
    path = write(tmp_path, "a.csv", '1,a,b\n"",c,d\n')
    assert read(path, ag_news_csv=True) == (("a b",), [0], 1)


def test_a_test_split_without_labels_is_left_out_and_said(tmp_path):
    write(tmp_path, "train.jsonl", content_of(".jsonl", ROWS * 3))
    write(tmp_path, "validation.jsonl", content_of(".jsonl", [{"text": "v", "label": 1}]))
    write(tmp_path, "test.jsonl", '{"text": "t"}\n{"text": "u", "label": -1}\n')
    data = load_own(tmp_path)
    assert data.test.texts == ("v",)
    assert data.notes == (f"{tmp_path}/test.jsonl: 2 row(s) have no label and are left out",)


def test_a_train_split_without_labels_asks_for_the_column(tmp_path):
    for split in ("train", "test"):
        write(tmp_path, f"{split}.jsonl", content_of(".jsonl", REVIEWS))
    with pytest.raises(InputError, match=r"train\.jsonl: no row has a label in 'label': name .*"):
        load_own(tmp_path, text_column="review")


# Names of splits


@pytest.mark.parametrize("stem", ["dev", "validation", "valid", "val"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json.gz", ".csv", ".tsv.zst", ".parquet"])
def test_dev_is_read_under_every_name_of_the_ecosystem(stem, suffix, tmp_path):
    kind, dot, packed = suffix[1:].partition(".")
    for name in ("train", stem, "test"):
        rows = [{"text": f"{name} {i}", "label": i % 2} for i in range(10)]
        content = PACK[dot + packed](content_of("." + kind, rows))
        write(tmp_path, name + suffix, content)
    data = load_own(tmp_path)
    assert [part.texts[0] for part in (data.train, data.dev, data.test)] == [
        *("train 0", f"{stem} 0", "test 0")
    ]
    assert data.notes == ()


def test_files_that_are_not_read_are_named_in_one_line(tmp_path):
    for name in (
        "train.jsonl",
        "dev.jsonl",
        "validation.jsonl",
        "test.txt",
        "train.parquet",
        "README",
    ):
        write(tmp_path, name, content_of(".jsonl", ROWS))
    write(tmp_path, ".hidden", "x")
    notes = load_own(tmp_path).notes
    assert f"{tmp_path}: not read: README, test.txt, train.parquet, validation.jsonl" in notes
    assert not any("\n" in note for note in notes)


def test_parts_of_a_split_are_read_in_order(tmp_path):
    for number in range(3):
        rows = [{"text": f"part {number}", "label": 1}]
        name = f"train-{number:05}-of-00003.parquet"
        write(tmp_path, name, content_of(".parquet", rows))
    write(tmp_path, "test.jsonl", content_of(".jsonl", ROWS))
    data = load_own(tmp_path, k_shot=-1)
    assert sorted(data.train.texts + data.dev.texts) == ["part 0", "part 1", "part 2"]
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(InputError, match=r"one of 3 parts, and 2 are here: bring all"):
        find_split(tmp_path, "train")


def test_examples_that_are_in_train_and_test_are_counted(tmp_path):
    for split, start in (("train", 0), ("dev", 100), ("test", 15)):
        rows = [{"text": f"text {i}", "label": i % 2} for i in range(start, start + 20)]
        write(tmp_path, f"{split}.jsonl", content_of(".jsonl", rows))
    name = tmp_path.name
    assert load_own(tmp_path).notes == (f"{name}: 5 of 20 test examples are also in train",)


# Pairs


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_pairs_are_read_where_a_template_has_two_texts(kind, tmp_path):
    rows = [{"text": f"a {i}", "second": f"b {i}", "label": i % 2} for i in range(20)]
    for split in ("train", "test"):
        write(tmp_path, f"{split}{kind}", content_of(kind, rows))
    described = {**OWN, "templates": ["{text} | {text_b} %s"], "text_b_column": "second"}
    data = load_own(tmp_path, described)
    assert data.test.texts_b == tuple(f"b {i}" for i in range(20))
    assert [b.replace("b", "a") for b in data.train.texts_b] == list(data.train.texts)
    with pytest.raises(InputError, match="text_b"):
        load_own(tmp_path, {**described, "text_b_column": "text_b"})
    assert load_own(tmp_path, {**OWN, "templates": ["%s"]}).test.texts_b == ()
