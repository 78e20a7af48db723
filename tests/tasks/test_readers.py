"""Readers of files of examples, and the one line that they give for a bad file."""

import gzip

import pytest

from wayward_jax.errors import InputError
from wayward_jax.tasks.readers import read_examples

LABELS = ("negative", "positive")
JSONL = '{"text": "bad \\u00e9", "label": 0, "more": null}\n{"text": "good", "label": 1}\n'


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.tsv", "sentence\tlabel\nbad .\t0\ngood .\t1\n", ("bad .", "good .")),
        ("a.tsv", "bad .\t0\r\ngood .\t1", ("bad .", "good .")),
        ("a.tsv", 'a "quoted\t0\nline\\nbreak\t1\n', ('a "quoted', "line\nbreak")),
        ("a.csv", '0,bad .\n1,"good , ""fine"""\n', ("bad .", 'good , "fine"')),
        ("a.csv", '0,"two\nlines"\n1,good\n', ("two\nlines", "good")),
        ("a.csv", "negative,bad\npositive,good\n", ("bad", "good")),
        ("a.jsonl", JSONL, ("bad é", "good")),
        ("a.jsonl", JSONL.replace("\n", "\r\n"), ("bad é", "good")),
        ("a.jsonl", JSONL.replace("1", '"positive"'), ("bad é", "good")),
        ("a.jsonl", JSONL.replace("1", '"1"'), ("bad é", "good")),
        ("a.jsonl.gz", gzip.compress(JSONL.encode(), mtime=0), ("bad é", "good")),
        ("a.tsv", "\ufeffsentence\tlabel\nbad\t0\ngood\t1\n", ("bad", "good")),
    ],
)  # fmt: skip
def test_every_format_is_read(tmp_path, name, content, texts):
    examples, unlabeled = read_examples(write(tmp_path, name, content), LABELS, paper=True)
    assert unlabeled == 0
    assert examples.texts == texts
    assert examples.labels.tolist() == [0, 1]
    assert examples.labels.dtype == "int32"


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_only_newlines_end_a_row(tmp_path, separator):
    text = f"one{separator}row"

    def read(name, content):
        return read_examples(write(tmp_path, name, content), LABELS)[0].texts

    assert read("a.tsv", f"{text}\t1\n") == (text,)
    assert read("a.csv", f'1,"{text}"\n') == (text,)
    if separator in "\u2028\u2029\x85":  # JSON itself forbids raw control characters
        assert read("a.jsonl", f'{{"text": "{text}", "label": 1}}\n') == (text,)


def test_ag_news_columns_are_joined_and_counted_from_one(tmp_path):
    path = write(tmp_path, "train.csv", '"2","A title","tab\there, a\\new line"\n"1","B","c"\n')
    examples, _ = read_examples(path, LABELS, ag_news_csv=True)
    assert examples.texts == ("A title tab here, a\new line", "B c")
    assert examples.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("a.tsv", "good\t1\nbad\n", ":2:", "1 column(s) where 2 are expected"),
        ("a.tsv", "good\t1\tmore\n", ":1:", "3 column(s) where 2 are expected"),
        ("a.tsv", "good\t1\n\nbad\n", ":3:", "1 column(s)"),
        ("a.csv", "1,good\n0,bad , sad\n", ":2:", "3 column(s) where 2 are expected"),
        ("a.csv", '1,"two\nlines"\n0\n', ":3:", "1 column(s)"),
        ("a.csv", '1,good\n0,"open\n1,fine\n', ":2:", "malformed CSV"),
        ("a.tsv", "good\t1\nbad\t2\n", ":2:", "unknown label '2'"),
        ("a.csv", "1,good\n-2,bad\n", ":2:", "unknown label '-2'"),
        ("a.jsonl", '{"text": "good", "label": "fine"}\n', ":1:", "unknown label 'fine'"),
        ("a.jsonl", '{"text": "good", "label": true}\n', ":1:", "unknown label True"),
        ("a.jsonl", '{"text": "good", "label": 1.0}\n', ":1:", "unknown label 1.0"),
        ("a.tsv", "good\t1\n \t0\n", ":2:", "the text is empty"),
        ("a.csv", '1,good\n0,""\n', ":2:", "the text is empty"),
        ("a.jsonl", '{"text": "", "label": 1}\n', ":1:", "the text is empty"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", \n', ":2:", "not JSON"),
        ("a.jsonl", '{"text": "a", "label": 1}\n\n{"text": "b", "label" 1}\n', ":3:", "not JSON"),
        ("a.jsonl", "[1, 2]\n", ":1:", 'expected an object like {"text": ..., "label": ...}'),
        ("a.jsonl", '{"label": 1}\n', ":1:", '"text" is missing or not a string'),
        ("a.jsonl", '{"text": 7, "label": 1}\n', ":1:", '"text" is missing or not a string'),
        ("a.jsonl", '{"text": "a\\ud800", "label": 1}\n', ":1:", "lone surrogate"),
        ("a.tsv", "sentence\tlabel\n", ":", "holds no examples"),
        ("a.csv", "", ":", "holds no examples"),
        ("a.jsonl", "\n", ":", "holds no examples"),
        ("a.tsv", b"good\t1\ncaf\xe9\t0\n", ":2:", "not UTF-8"),
        ("a.jsonl.gz", b"not gzip", ":", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(JSONL.encode(), mtime=0)[:-9], ":", "cannot be read"),
    ],
)  # fmt: skip
def test_a_bad_file_gives_one_line_with_the_place(tmp_path, name, content, where, what):
    path = write(tmp_path, name, content)
    with pytest.raises(InputError) as caught:
        read_examples(path, LABELS)
    message = str(caught.value)
    assert message.startswith(f"{path}{where} ")
    assert what in message
    assert "\n" not in message


@pytest.mark.parametrize("row", ["0,title,text", "x,title,text", "3,title,text", "1,text"])
def test_bad_ag_news_rows_name_the_line(tmp_path, row):
    path = write(tmp_path, "train.csv", f"1,title,text\n{row}\n")
    with pytest.raises(InputError, match=r"train\.csv:2: (unknown label|2 column)"):
        read_examples(path, LABELS, ag_news_csv=True)
