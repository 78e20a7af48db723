"""Loading of tasks from the layouts under `--data_dir`, of users' own tasks, and of bad ones."""

import gzip
import json

import pytest

from wayward_jax.errors import InputError
from wayward_jax.tasks import TASKS, load


def no_fetch(name):
    raise AssertionError(f"{name} was fetched for a task that needs no asset")


def load_from(data_dir, name, **options):
    return load(name, data_dir=data_dir, fetch=no_fetch, **options)


def write_tsv(path, tag, n=20, labels=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{tag} {i}\t{i % labels}\n" for i in range(n))
    path.write_text("sentence\tlabel\n" + rows)


def write_csv(path, tag, n=20, labels=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{i % labels},{tag} {i}\n" for i in range(n)))


def write_jsonl(path, tag, n=20, labels=(0, 1)):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": f"{tag} {i}", "label": labels[i % len(labels)]} for i in range(n)]
    content = "\n".join(map(json.dumps, rows)).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def tags(data):
    """Tells from which file the examples of each split come."""
    return [
        {text.rpartition(" ")[0] for text in examples.texts}
        for examples in (data.train, data.dev, data.test)
    ]


@pytest.mark.parametrize("folder", ["SST-2", "original/SST-2", "lmbff/SST-2", "sst2", "lmbff/sst2"])
def test_dev_is_the_test_split_of_sst2_and_a_new_dev_is_cut_from_train(tmp_path, folder):
    for split in ("train", "dev", "test"):
        write_tsv(tmp_path / folder / f"{split}.tsv", split)
    data = load_from(tmp_path, "sst2")
    assert tags(data) == [{"train"}, {"train"}, {"dev"}]
    assert (len(data.train), len(data.dev), len(data.test)) == (18, 2, 20)
    assert not set(data.train.texts) & set(data.dev.texts)


@pytest.mark.parametrize("folder", ["trec", "original/trec", "lmbff/trec"])
def test_lmbff_csv_tasks_keep_their_test_set(tmp_path, folder):
    for split in ("train", "test"):
        write_csv(tmp_path / folder / f"{split}.csv", split, n=60, labels=6)
    data = load_from(tmp_path, "trec")
    assert tags(data) == [{"train"}, {"train"}, {"test"}]
    assert (len(data.train), len(data.dev), len(data.test)) == (54, 6, 60)


@pytest.mark.parametrize("train", ["train.tsv", "train_20k.tsv"])
def test_agnews_is_cut_class_by_class(tmp_path, train):
    write_tsv(tmp_path / "agnews" / train, "train", n=40, labels=4)
    write_tsv(tmp_path / "agnews" / "test.tsv", "test", n=8, labels=4)
    data = load_from(tmp_path, "agnews")
    assert data.train.labels.tolist() == [0] * 9 + [1] * 9 + [2] * 9 + [3] * 9
    assert data.dev.labels.tolist() == [0, 1, 2, 3]


def test_agnews_is_read_from_its_own_csv(tmp_path):
    (tmp_path / "agnews").mkdir()
    for split in ("train", "test"):
        rows = "".join(f'"{i % 4 + 1}","{split}","{i}"\n' for i in range(40))
        (tmp_path / "agnews" / f"{split}.csv").write_text(rows)
    data = load_from(tmp_path, "agnews")
    assert data.test.texts[:2] == ("test 0", "test 1")
    assert data.test.labels[:5].tolist() == [0, 1, 2, 3, 0]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize("folder", ["sst5", "jsonl/sst5"])
def test_jsonl_with_a_dev_split_is_taken_as_it_is(tmp_path, suffix, folder):
    for split in ("train", "dev", "test"):
        write_jsonl(tmp_path / folder / f"{split}.{suffix}", split)
    data = load_from(tmp_path, "sst5")
    assert tags(data) == [{"train"}, {"dev"}, {"test"}]
    assert len(data.train) == 20


def test_dev_is_the_test_split_of_sst2_in_jsonl(tmp_path):
    for split in ("train", "dev"):
        write_jsonl(tmp_path / "jsonl" / "sst2" / f"{split}.jsonl.gz", split)
    data = load_from(tmp_path, "sst2")
    assert tags(data) == [{"train"}, {"train"}, {"dev"}]


def test_preprocessed_data_of_the_given_k_and_seed_come_first(tmp_path):
    write_tsv(tmp_path / "SST-2" / "train.tsv", "raw train", n=80)
    write_tsv(tmp_path / "SST-2" / "dev.tsv", "raw dev")
    for split in ("train", "dev", "test"):
        write_tsv(tmp_path / "k-shot" / "SST-2" / "16-100" / f"{split}.tsv", split)
    assert tags(load_from(tmp_path, "sst2", k_shot=16)) == [{"train"}, {"dev"}, {"test"}]
    raw = [{"raw train"}, {"raw train"}, {"raw dev"}]
    assert tags(load_from(tmp_path, "sst2", k_shot=16, data_seed=13)) == raw
    assert tags(load_from(tmp_path, "sst2", k_shot=8)) == raw
    assert tags(load_from(tmp_path, "sst2")) == raw


def test_preprocessed_whole_data_are_read_from_csv(tmp_path):
    for split in ("train", "dev", "test"):
        write_csv(tmp_path / "k-shot" / "subj" / "-1-100" / f"{split}.csv", split)
    assert tags(load_from(tmp_path, "subj")) == [{"train"}, {"dev"}, {"test"}]


def test_lmbff_comes_before_jsonl(tmp_path):
    for split in ("train", "test"):
        write_jsonl(tmp_path / "jsonl" / "subj" / f"{split}.jsonl", "jsonl")
        write_csv(tmp_path / "lmbff" / "subj" / f"{split}.csv", "lmbff")
    assert tags(load_from(tmp_path, "subj")) == [{"lmbff"}] * 3


def test_labels_json_maps_ids_to_the_tasks_order(tmp_path):
    for split in ("train", "dev"):
        write_jsonl(tmp_path / "sst2" / f"{split}.jsonl", split, labels=(0, 1, "positive"))
    (tmp_path / "sst2" / "labels.json").write_text('["positive", "negative"]')
    data = load_from(tmp_path, "sst2")
    assert data.test.labels[:3].tolist() == [1, 0, 1]


def test_k_shot_is_disjoint_and_leaves_the_test_set_whole(tmp_path):
    for split in ("train", "test"):
        write_csv(tmp_path / "subj" / f"{split}.csv", split, n=40)
    data = load_from(tmp_path, "subj", k_shot=10)
    assert (len(data.train), len(data.dev), len(data.test)) == (20, 20, 40)
    assert not set(data.train.texts) & set(data.dev.texts)


OWN = {"templates": ["Spam? %s . "], "label_words": ["no", "yes"], "labels": ["ham", "spam"]}


def write_own(folder, description=OWN, splits=("train", "test")):
    for split in splits:
        write_jsonl(folder / f"{split}.jsonl", split, labels=("ham", "spam"))
    (folder / "task.json").write_text(json.dumps(description))
    return folder


def test_an_own_task_is_found_by_name_and_by_path(tmp_path):
    folder = write_own(tmp_path / "spam")
    for data in (load_from(tmp_path, "spam"), load_from(None, str(folder))):
        assert data.task.name == "spam"
        assert data.task.labels == ("ham", "spam")
        assert data.task.templates == ("Spam? %s . ",)
        assert data.task.label_words == ("no", "yes")
        assert data.task.max_length == 128
        assert data.test.labels[:2].tolist() == [0, 1]
        assert tags(data) == [{"train"}, {"train"}, {"test"}]


def test_an_own_task_may_name_its_labels_in_labels_json(tmp_path):
    description = {key: OWN[key] for key in ("templates", "label_words")}
    write_own(tmp_path / "spam", {**description, "max_length": 64}, ("train", "dev"))
    (tmp_path / "spam" / "labels.json").write_text('["ham", "spam"]')
    data = load_from(tmp_path, "spam")
    assert data.task.labels == ("ham", "spam")
    assert data.task.max_length == 64
    assert tags(data) == [{"train"}, {"train"}, {"dev"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["ham", "ham"]}, "label name 'ham' occurs twice"),
        ({"labels": ["ham"], "label_words": ["no"]}, "at least two labels"),
        ({"labels": "ham, spam"}, "the label names must be a list of non-empty strings"),
        ({"label_words": ["no"]}, "1 label_words for 2 labels"),
        ({"label_words": [["no"], []]}, 'each of "label_words" must be a list'),
        ({"label_words": [["no", ""], "yes"]}, 'each of "label_words" must be a list'),
        ({"label_words": [["no"], 3]}, 'each of "label_words" must be a list'),
        ({"label_words": ["no", ""]}, '"label_words" must be a list'),
        ({"templates": ["It was so . "]}, "needs one %s"),
        ({"templates": ["%s is %s . "]}, "needs one %s"),
        ({"templates": []}, '"templates" must be a list'),
        ({"template": ["%s"]}, "expected an object with keys among"),
        ({"max_length": 16}, "max_length must be a whole number above 16"),
        ({"max_length": "64"}, "max_length must be a whole number above 16"),
    ],
)
def test_a_bad_task_file_is_named_with_the_fault(tmp_path, change, message):
    write_own(tmp_path / "spam", {**OWN, **change})
    with pytest.raises(InputError) as caught:
        load_from(tmp_path, "spam")
    assert str(caught.value).startswith(f"{tmp_path / 'spam' / 'task.json'}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_file_that_is_not_json_names_the_line(tmp_path):
    write_own(tmp_path / "spam")
    (tmp_path / "spam" / "task.json").write_text('{\n "templates": [,]\n}')
    with pytest.raises(InputError, match=r"task\.json:2: not JSON"):
        load_from(tmp_path, "spam")


def test_an_own_task_without_label_names_is_refused(tmp_path):
    write_own(tmp_path / "spam", {key: OWN[key] for key in ("templates", "label_words")})
    with pytest.raises(
        InputError, match=r"name the labels, here under \"labels\" or in labels\.json"
    ):
        load_from(tmp_path, "spam")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ('["negative", "negative"]', "label name 'negative' occurs twice"),
        ('["bad", "good"]', r"names bad, good; task sst2 has negative, positive"),
        ('{"negative": 0}', "must be a list"),
    ],
)
def test_a_bad_label_file_is_named_with_the_fault(tmp_path, labels, message):
    write_jsonl(tmp_path / "sst2" / "train.jsonl", "train")
    (tmp_path / "sst2" / "labels.json").write_text(labels)
    with pytest.raises(InputError, match=rf"labels\.json: .*{message}"):
        load_from(tmp_path, "sst2")


def test_an_error_for_missing_data_lists_the_places_that_were_searched(tmp_path):
    with pytest.raises(InputError) as caught:
        load_from(tmp_path, "sst2")
    message = str(caught.value)
    for place in (str(tmp_path), "k-shot/SST-2/", "original/SST-2", "lmbff/SST-2", "jsonl/sst2"):
        assert place in message
    assert "\n" not in message


def test_missing_splits_are_named(tmp_path):
    write_csv(tmp_path / "subj" / "train.csv", "train")
    with pytest.raises(InputError, match="subj: has train, and needs train and at least one of"):
        load_from(tmp_path, "subj")
    write_csv(tmp_path / "k-shot" / "subj" / "16-100" / "train.csv", "train")
    with pytest.raises(InputError, match=r"16-100: no dev and no test file"):
        load_from(tmp_path, "subj", k_shot=16)


def test_one_row_is_too_few_to_split(tmp_path):
    write_csv(tmp_path / "subj" / "train.csv", "train", n=1)
    write_csv(tmp_path / "subj" / "test.csv", "test")
    with pytest.raises(InputError, match="too few examples in train"):
        load_from(tmp_path, "subj")


@pytest.mark.parametrize(
    ("labels", "k", "message"),
    [
        (5, 11, r"k_shot=11: .* 20 example\(s\) of 'very negative' and needs 22: lower it"),
        (2, 1, r"k_shot=1: .* 0 example\(s\) of 'neutral' and needs 2: lower it"),
    ],
)
def test_a_class_with_too_few_examples_for_k_is_named(tmp_path, labels, k, message):
    write_csv(tmp_path / "sst-5" / "train.csv", "train", n=100, labels=labels)
    write_csv(tmp_path / "sst-5" / "test.csv", "test")
    with pytest.raises(InputError, match=message):
        load_from(tmp_path, "sst5", k_shot=k)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sst2", {"k_shot": 0}, r"k_shot=0: .*-1 for all"),
        ("sst2", {"k_shot": -2}, r"k_shot=-2"),
        ("sst2", {"data_seed": -1}, r"data_seed=-1"),
        ("sst2", {"data_seed": 2**32}, r"data_seed=4294967296"),
        ("sst2", {}, r"task='sst2': set data_dir"),
        ("mnli", {}, r"task='mnli': not one of reviews, plots, sst2, .* task\.json"),
    ],
)
def test_a_bad_argument_is_named(name, options, message):
    with pytest.raises(InputError, match=message) as caught:
        load_from(None, name, **options)
    assert "\n" not in str(caught.value)


def test_tasks_are_listed_in_order():
    assert list(TASKS) == ["reviews", "plots", "sst2", "sst5", "agnews", "trec", "subj"]


def test_take_selects_examples_in_order(tmp_path):
    write_csv(tmp_path / "subj" / "train.csv", "train")
    write_csv(tmp_path / "subj" / "test.csv", "test")
    test = load_from(tmp_path, "subj").test
    taken = test.take([3, 0, 3])
    assert taken.texts == ("test 3", "test 0", "test 3")
    assert taken.labels.tolist() == [1, 0, 1]
    assert len(taken) == 3
    assert len(test.take([])) == 0
