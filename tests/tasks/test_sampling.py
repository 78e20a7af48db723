"""LM-BFF's samples and the paper's splits have the same rows in the same order here."""

import collections
import csv
import hashlib
import io

import numpy as np
import pytest

from wayward_jax.tasks import load, sampling

FOLDERS = {"sst2": "SST-2", "sst5": "sst-5", "trec": "trec", "subj": "subj"}


def no_fetch(name):
    raise AssertionError(f"{name} was fetched for a task that needs no asset")


def lmbff_file(name, examples):
    """Writes `examples` as LM-BFF's script does: SST-2 as TSV, others with DataFrame.to_csv."""
    rows = list(zip(examples.labels.tolist(), examples.texts, strict=True))
    if name == "sst2":
        return "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for label, text in rows)
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def test_sixteen_shot_files_equal_those_of_lmbff_byte_for_byte(data_dir):
    digests = {}
    for line in (data_dir / "lmbff" / "k-shot-md5.txt").read_text().splitlines():
        digest, path = line.split()
        digests[path] = digest
    made = {}
    for name, folder in FOLDERS.items():
        for seed in (100, 13, 21, 42, 87):
            data = load(
                name, data_dir=data_dir / "lmbff", k_shot=16, data_seed=seed, fetch=no_fetch
            )
            for split in ("train", "dev", "test"):
                content = lmbff_file(name, getattr(data, split)).encode("utf-8")
                suffix = "tsv" if name == "sst2" else "csv"
                path = f"{folder}/16-{seed}/{split}.{suffix}"
                made[path] = hashlib.md5(content).hexdigest()
    assert len(digests) == 60
    assert made == digests


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("sst2", (6228, 692, 872)),
        ("sst5", (7689, 855, 2210)),
        ("agnews", (18000, 2000, 7600)),
        ("trec", (4906, 546, 500)),
        ("subj", (7200, 800, 2000)),
    ],
)
def test_splits_of_the_real_data_have_the_papers_sizes(data_dir, name, counts):
    data = load(name, data_dir=data_dir, fetch=no_fetch)
    assert (len(data.train), len(data.dev), len(data.test)) == counts
    if name == "agnews":
        assert np.bincount(data.train.labels).tolist() == [4500] * 4


@pytest.mark.parametrize("name", ["sst2", "sst5", "agnews", "trec", "subj"])
def test_jsonl_and_lmbff_files_hold_the_same_test_set(data_dir, name):
    tests = [
        load(name, data_dir=data_dir / layout, fetch=no_fetch).test for layout in ("lmbff", "jsonl")
    ]
    assert tests[0].labels.tolist() == tests[1].labels.tolist()
    # The paper's code reads a backslash and an n in a TSV as a newline.
    assert tests[0].texts == tuple(text.replace("\\n", "\n") for text in tests[1].texts)


# The rows 0 to 19 after `np.random.seed(100); np.random.shuffle(rows)`.
SHUFFLED = [17, 19, 11, 18, 13, 6, 16, 1, 9, 14, 12, 5, 2, 4, 10, 0, 15, 7, 3, 8]


def test_ninety_ten_shuffles_as_numpy_does():
    train, dev = sampling.ninety_ten(np.zeros(20, np.int32), seed=100)
    assert (train, dev) == (SHUFFLED[:18], SHUFFLED[18:])


def test_k_shot_takes_classes_in_order_of_first_appearance():
    labels = (np.arange(20) % 2).astype(np.int32)
    train, dev = sampling.draw_k_shot(labels, k=3, seed=100)
    # The odd rows come first, for row 17 leads SHUFFLED.
    assert train == [17, 19, 11, 18, 6, 16]
    assert dev == [13, 1, 9, 14, 12, 2]


def test_ninety_ten_by_class_shuffles_each_class_from_one_stream():
    labels = np.array([1, 0, 0, 1] * 10, np.int32)
    generator = np.random.RandomState(13)
    classes = collections.defaultdict(list)
    for row, label in enumerate(labels):
        classes[label].append(row)
    for rows in classes.values():
        generator.shuffle(rows)
    train, dev = sampling.ninety_ten_by_class(labels, seed=13)
    assert train == classes[1][:18] + classes[0][:18]
    assert dev == classes[1][18:] + classes[0][18:]


@pytest.mark.parametrize("split", [sampling.ninety_ten, sampling.ninety_ten_by_class])
@pytest.mark.parametrize("n", [1, 7, 10, 101])
def test_splits_are_disjoint_and_lose_nothing(split, n):
    train, dev = split(np.arange(n, dtype=np.int32) % 3, seed=1)
    assert sorted(train + dev) == list(range(n))


def test_another_seed_is_another_split():
    labels = np.zeros(50, np.int32)
    assert sampling.ninety_ten(labels, 1) == sampling.ninety_ten(labels, 1)
    assert sampling.ninety_ten(labels, 1) != sampling.ninety_ten(labels, 2)
