"""Tasks of the Hugging Face hub, with a stand-in for the `datasets` package."""

import sys
import types

import pytest

from wayward_jax.errors import InputError
from wayward_jax.tasks import load


class Split(dict):
    """Columns by name and their features, as in `datasets.Dataset`."""

    def __init__(self, names, **columns):
        super().__init__(columns)
        self.features = dict.fromkeys(columns)
        if "label" in columns:
            self.features["label"] = types.SimpleNamespace(names=names)


def split(tag, n=20, *, names=("ham", "spam"), column="text", withheld=False):
    labels = [-1 if withheld else i % 2 for i in range(n)]
    return Split(names, **{column: [f"{tag} {i}" for i in range(n)], "label": labels})


@pytest.fixture
def hub(monkeypatch):
    """Maps arguments of `load_dataset` to the value that it returns or raises."""
    content = {}

    def load_dataset(*args, **options):
        args += tuple(options.items())
        if isinstance(content[args], Exception):
            raise content[args]
        return content[args]

    module = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return content


def load_hub(name, **options):
    return load(name, data_dir=None, fetch=lambda asset: pytest.fail(asset), **options)


def test_names_of_classes_are_labels_and_label_words(hub):
    hub["me/spam",] = {"train": split("train"), "test": split("test")}
    data = load_hub("hf:me/spam")
    assert data.task.name == "hf:me/spam"
    assert data.task.labels == data.task.label_words == ("ham", "spam")
    assert all(template.count("%s") == 1 for template in data.task.templates)
    assert (len(data.train), len(data.dev), len(data.test)) == (18, 2, 20)
    assert data.test.texts[1] == "test 1"
    assert data.test.labels.tolist() == [0, 1] * 10


def test_validation_replaces_a_test_split_whose_labels_are_withheld(hub):
    hub["glue", "sst2"] = {
        "train": split("train", column="sentence"),
        "validation": split("validation", column="sentence"),
        "test": split("test", column="sentence", withheld=True),
    }
    data = load_hub("hf:glue:sst2", k_shot=3)
    assert data.test.texts[0] == "validation 0"
    assert (len(data.train), len(data.dev)) == (6, 6)


@pytest.mark.parametrize("name", ["me/spam@abc123", "me/spam:de@abc123"])
def test_a_revision_may_be_named(hub, name):
    address = name.partition("@")[0].split(":")
    hub[*address, ("revision", "abc123")] = {"train": split("train"), "test": split("test")}
    data = load_hub(f"hf:{name}")
    assert data.task.name == f"hf:{name}"
    assert data.test.texts[0] == "test 0"


def test_columns_of_other_names_and_labels_that_are_strings_are_read(hub):
    def rows(tag):
        texts = [f"{tag} {i}" for i in range(20)]
        return Split(None, review=texts, verdict=["good", "bad"] * 10)

    hub["me/films",] = {"train": rows("train"), "valid": rows("valid"), "extra": rows("extra")}
    data = load_hub("hf:me/films", text_column="review", label_column="verdict")
    assert data.task.labels == data.task.label_words == ("bad", "good")
    assert data.test.texts[0] == "valid 0"
    assert data.test.labels[:2].tolist() == [1, 0]
    assert data.notes == ("hf:me/films: not read: extra",)


def test_rows_without_a_label_are_left_out_and_counted(hub):
    test = Split(("ham", "spam"), text=["a", "b", "c"], label=[1, -1, None])
    hub["me/spam",] = {"train": split("train"), "test": test}
    data = load_hub("hf:me/spam")
    assert data.test.texts == ("a",)
    assert data.notes == ("hf:me/spam: 2 row(s) of test have no label and are left out",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": split("train", column="premise")}, "has premise, label: save it as JSONL"),
        ({"train": split("train", names=None)}, "a column label of named classes"),
        ({"train": Split((), text=["a"])}, "a column label of named classes"),
        ({"test": split("test")}, "needs a train split"),
        ({"train": split("train")}, "has train, and needs train and at least one of dev, test"),
        (
            {"train": Split(("a", "b"), text=["x", " "], label=[0, 1])},
            "row 1 of split train is empty",
        ),
        (
            RuntimeError("Dataset scripts are no longer supported, but found odd.py"),
            r"it \(Dataset scripts are no longer supported.*\): give it as hf:me/odd@refs/",
        ),
        (
            {
                "train": Split(None, text=["a", "b"], label=["x", "y"]),
                "test": Split(None, text=["a"], label=["z"]),
            },
            "label 'z' of row 0 of split test is not in train",
        ),
        (
            FileNotFoundError("no such dataset\nand more"),
            r"it \(no such dataset\): check",
        ),
    ],
)
def test_a_dataset_that_does_not_fit_is_named_with_the_fault(hub, content, message):
    hub["me/odd",] = content
    with pytest.raises(InputError, match=message) as caught:
        load_hub("hf:me/odd")
    assert "hf:me/odd" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_names_the_extra_where_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # makes the import fail
    with pytest.raises(InputError, match=r"pip install wayward_jax\[datasets\]"):
        load_hub("hf:me/spam")
