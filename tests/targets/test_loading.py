"""Built-in sets, files of texts, and the list of sets that `--targets` takes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wayward_jax.errors import InputError
from wayward_jax.targets import load_texts, require_readable, tokenize
from wayward_jax.targets.files import MAX_BYTES
from wayward_jax.targets.loading import BUILT_IN

TASKS = ("reviews", "plots", "sst2", "sst5", "agnews", "trec", "subj")


class Letters:
    """A tokenizer whose tokens are letters."""

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def texts(spec, **options):
    return load_texts(spec, **{"task": "reviews", **options})


def found(spec, prompt_length=None, **options):
    return tokenize(texts(spec, **options), Letters(), prompt_length)


@pytest.mark.parametrize("kind", ["instructions", "sentences", "code"])
def test_built_in_sets_have_at_least_thirty_different_texts(kind):
    assert len(set(texts(kind).values())) >= 30


def test_instructions_are_of_moderate_length():
    lengths = [len(re.findall(r"\w+|[^\w\s]", text)) for text in texts("instructions").values()]
    assert min(lengths) >= 5
    assert 28 <= max(lengths) <= 40  # some are long enough for a --prompt_length of 28


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_five_definitions_and_five_that_contradict_them(task):
    true, false = texts("definitions", task=task), texts("contradictions", task=task)
    assert len(true) == len(false) == 5
    assert len({*true.values(), *false.values()}) == 10


def test_no_two_targets_of_all_sets_share_a_name():
    count = len(texts(",".join(BUILT_IN)))
    assert count == sum(len(texts(kind)) for kind in BUILT_IN) >= 30 * 3 + 5 * 2


def test_an_installed_package_has_the_built_in_sets(tmp_path):
    pytest.importorskip("setuptools")
    source = Path(__file__).parents[2]
    shutil.copytree(source / "wayward_jax", tmp_path / "source" / "wayward_jax")
    for name in ("setup.cfg", "README.md", "LICENSE"):
        shutil.copy(source / name, tmp_path / "source")
    build = "import setuptools; setuptools.setup()"
    command = [sys.executable, "-c", build, "--quiet", "build_py", "--build-lib", tmp_path / "lib"]
    subprocess.run(command, cwd=tmp_path / "source", check=True)
    load_all = """
from wayward_jax.targets import load_texts, loading

texts = load_texts(",".join(loading.BUILT_IN), task="trec")
print(loading.__file__, len(texts), sep="\\n")
"""
    command = [sys.executable, "-c", load_all]
    printed = subprocess.run(command, cwd=tmp_path / "lib", check=True, capture_output=True)
    file, count = printed.stdout.decode().split()
    assert Path(file).is_relative_to(tmp_path / "lib")
    assert int(count) == len(texts(",".join(BUILT_IN), task="trec"))


def test_a_target_has_the_tokens_of_its_text():
    (target,) = found("text=a, b")
    assert target.text == "a, b"
    assert target.ids == (97, 44, 32, 98)


def test_a_text_may_hold_control_characters():
    (target,) = found("text=\0\t\x1b")
    assert target.ids == (0, 9, 27)


def test_a_number_selects_the_first_texts_and_a_name_selects_one():
    names = list(texts("instructions"))
    assert list(texts("instructions:2")) == names[:2]
    assert list(texts(names[4])) == [names[4]]


def test_sets_are_joined_in_the_given_order():
    names = list(texts("code:1, sentences:2, text=x,y"))
    assert [name.partition("/")[0] for name in names] == ["code", "sentences", "sentences", "text"]


def test_a_text_that_is_asked_for_twice_is_given_once():
    assert texts("instructions/02,instructions:2") == texts("instructions/02,instructions/01")


def test_a_number_larger_than_the_set_takes_all_of_it():
    assert texts("sentences:999") == texts("sentences")


def test_texts_of_a_file_can_be_selected(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"a": "one", "b:1/c": "two"}')
    assert texts(f"{file}:1") == {"mine/a": "one"}
    assert texts(f"{file}/b:1/c") == {"mine/b:1/c": "two"}


def test_a_file_with_the_name_of_a_set_needs_a_dot(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("code").write_text("mine")
    assert len(texts("code")) >= 30
    assert texts("./code") == {"code/1": "mine"}


def test_a_kind_tells_texts_of_one_name_apart(tmp_path):
    file = tmp_path / "t.jsonl"
    lines = [{"name": "a", "kind": kind, "text": kind} for kind in ("long", "short")]
    file.write_text("\n".join(map(json.dumps, lines)))
    assert texts(str(file)) == {"t/a/long": "long", "t/a/short": "short"}
    assert texts(f"{file}/a/short") == {"t/a/short": "short"}


def test_two_different_texts_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.txt").write_text(folder)
    with pytest.raises(InputError, match="two texts are called 't/1'"):
        found(f"{tmp_path}/a/t.txt,{tmp_path}/b/t.txt")


def test_a_fixed_length_cuts_longer_texts_and_leaves_shorter_ones_out(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("abcdef\nab\n\nabx\n")
    targets = found(str(file), prompt_length=3)
    assert [(t.name, t.text, t.ids) for t in targets] == [
        ("mine/1", "abc", (97, 98, 99)),
        ("mine/4", "abx", (97, 98, 120)),
    ]


@pytest.mark.parametrize(("length", "names"), [(None, ["1", "2", "4"]), (2, ["1", "4"])])
def test_texts_of_the_same_tokens_are_one_target(tmp_path, length, names):
    file = tmp_path / "mine.txt"
    file.write_text("abc\nabx\nabc\nxyz\nabx\n")
    targets = found(str(file), prompt_length=length)
    assert [target.name for target in targets] == [f"mine/{name}" for name in names]


def test_files_of_all_three_kinds_give_the_same_texts(tmp_path):
    named = {"1": "one\ttab", "2": "two\u2028lines"}
    (tmp_path / "t.json").write_text(json.dumps(named))
    lines = [{"name": "1", "text": "one\ttab"}, {"name": "2", "definition": "two\u2028lines"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "t.txt").write_text("\n".join(named.values()), encoding="utf-8")
    wanted = {f"t/{name}": text for name, text in named.items()}
    for kind in ("json", "jsonl", "txt"):
        assert texts(str(tmp_path / f"t.{kind}")) == wanted


@pytest.mark.parametrize(("name", "content"), [("t.json", '{"1": "x"}'), ("t.txt", "x")])
def test_a_byte_order_mark_is_no_part_of_a_text(name, content, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert texts(str(tmp_path / name)) == {"t/1": "x"}


@pytest.mark.parametrize(
    ("spec", "count"),
    [("ni", 32), ("pile", 30), *((f"pile_n={n}", 30) for n in (4, 7, 14, 28, 56))],
)
def test_the_papers_sets_are_whole(spec, count, data_dir):
    assert len(texts(spec, data_dir=data_dir)) == count


def test_every_definition_of_natural_instructions_is_read(data_dir):
    file = data_dir / "prompts" / "ni_definitions.jsonl"
    entries = [json.loads(line) for line in file.read_text("utf-8").split("\n") if line]
    loaded = texts(str(file))
    assert list(loaded.values()) == [entry["definition"] for entry in entries]
    assert all(entry["name"] in name for entry, name in zip(entries, loaded, strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_the_papers_true_definitions_are_those_of_the_task(task, data_dir):
    content = json.loads((data_dir / "prompts" / "good_prompts.json").read_text())
    called = {"sst2": "SST-2", "reviews": "SST-2", "sst5": "sst-5", "plots": "subj"}.get(task, task)
    wanted = [content[f"{called}_{i}"] for i in range(5)]
    assert list(texts("true", task=task, data_dir=data_dir).values()) == wanted


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("instuctions", "instructions"),
        ("instructions:0", "from 1 on"),
        ("instructions:x", "from 1 on"),
        ("instructions:" + "9" * 5000, "from 1 on"),
        ("instructions/none", "choose for instance instructions/"),
        ("ni", "data_dir"),
        ("text=", "no tokens"),
        ("", "no such set"),
        ("code:1,", "no such set"),
        ("missing.json", "no such set or file"),
        ("A text, not a set\nof texts", "text="),
        ("word " * 1000, "text="),
        ("~no_such_user/t.json", "no such set or file"),
        ("text=half \ud83d", "not Unicode"),
    ],
)
def test_an_unknown_set_name_or_text_is_refused_with_a_remedy(spec, said):
    with pytest.raises(InputError, match=said) as refusal:
        found(spec)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", ["definitions", "other_contradictions"])
def test_a_set_that_differs_by_task_asks_for_the_task(kind):
    with pytest.raises(InputError, match=f"targets='{kind}': .* differ by task: give task$"):
        load_texts(kind)


def test_a_set_that_is_the_same_for_all_tasks_needs_none():
    assert load_texts("instructions:3,text=mine") == texts("instructions:3,text=mine")


def test_a_file_without_texts_for_other_kinds_of_tasks_is_refused(tmp_path):
    (tmp_path / "good_prompts.json").write_text('{"SST-2_0": "x", "sst-5_0": "y"}')
    with pytest.raises(InputError, match="another kind than 'reviews'"):
        texts("other_true", data_dir=tmp_path)


def test_a_task_without_definitions_is_refused():
    with pytest.raises(InputError, match=r"task 'mine', only for reviews, .*: write your own"):
        found("definitions", task="mine")


def test_a_length_that_no_target_has_is_refused(tmp_path):
    (tmp_path / "t.txt").write_text("long\nshort")
    said = "prompt_length=99: none of the 2 targets is that long, they have 4 to 5 tokens"
    with pytest.raises(InputError, match=said):
        found(str(tmp_path / "t.txt"), prompt_length=99)


@pytest.mark.parametrize("length", [0, -1])
def test_a_length_below_1_is_refused(length):
    with pytest.raises(InputError, match=f"prompt_length={length}"):
        found("sentences", prompt_length=length)


def test_a_huge_file_is_refused_without_reading_it(tmp_path):
    with (tmp_path / "t.txt").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(InputError, match=r"t\.txt: the file is larger than 64 MiB"):
        found(str(tmp_path / "t.txt"))


def test_a_papers_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match=r"pile\.json"):
        found("pile", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.json", b'{"a": "x",\n"b" "y"}', "t.json:2: not JSON"),
        ("t.json", b'["a"]', "no JSON object"),
        ("t.json", b'"a"', "no JSON object"),
        ("t.json", b'{"a": "x", "a": "y"}', "two targets are called 'a'"),
        ("t.json", b'{"a": " "}', "target 'a' has no text"),
        ("t.json", b'{"a": {"b": "c"}}', "target 'a' has no text"),
        ("t.json", b'{"a\\nb": ""}', "has no text"),
        ("t.json", b"{}", "no targets"),
        ("t.json", b'{"a": %s}' % (b"1" * 5000), "too large a value"),
        ("t.json", b"[" * 100_000, "t.json:1: "),
        ("t.jsonl", b'{"name": "a", "text": "x"}\n{"text": "y"}', "t.jsonl:2: write"),
        ("t.jsonl", b'{"name": "a"}', "target 'a' has no text"),
        ("t.jsonl", b"\n{", "t.jsonl:2: not JSON"),
        ("t.txt", b"\xff\xfe", "not UTF-8"),
        ("t.txt", b"\n", "no targets"),
    ],
)
def test_a_malformed_file_is_named_with_the_fault(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as refusal:
        found(str(tmp_path / name))
    assert "\n" not in str(refusal.value)
    assert name in str(refusal.value)


def test_passages_are_long_enough_for_every_length_of_the_paper():
    assert min(len(text.split()) for text in texts("passages").values()) >= 56


def test_definitions_of_other_tasks_are_of_other_kinds_and_from_each_in_turn():
    own = set(texts("definitions", task="sst2").values())
    own |= set(texts("definitions", task="reviews").values())
    own |= set(texts("definitions", task="sst5").values())
    other = texts("other_definitions:4", task="reviews")
    assert not own & set(texts("other_definitions", task="reviews").values())
    assert len({name.partition("_")[2].partition("_")[0] for name in other}) == 4
    assert {name.rpartition("/")[0] for name in other} == {"other_definitions"}
    assert set(texts("definitions", task="trec").values()) <= set(
        texts("other_definitions", task="own task").values()
    )


def test_a_target_of_tokens_that_no_prompt_is_read_as_is_refused():
    targets = found("text=abc")
    readable = np.ones(128, bool)
    require_readable(targets, Letters(), readable)
    readable[ord("b")] = False
    with pytest.raises(InputError, match=r"targets='text': 'b' is a special .*readable=all"):
        require_readable(targets, Letters(), readable)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("reviews", ["contradictions/1", "code/01"]),
        ("trec", ["contradictions/1", "code/01"]),
        ("a task of one's own", ["code/01"]),
        (None, ["code/01"]),
    ],
)
def test_auto_is_a_text_against_the_task_and_one_of_another_kind(task, names):
    assert list(load_texts("auto", task=task)) == names
