"""The built-in tasks on a small corpus that is written here, and on the real one if available."""

import bz2
import csv
import io

import numpy as np
import pytest

from wayward_jax.errors import InputError
from wayward_jax.tasks import load, movies

SENTENCE = "the {} of this one goes on for {} more than ten words in {}"


def write_corpus(path, rows):
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["category", "text", "movie_name", "has_plot_and_reviews"])
    writer.writerows((*row, "True") for row in rows)
    path.write_bytes(bz2.compress(file.getvalue().encode("utf-8")))
    return path


def corpus_rows(n_movies=60):
    rows = []
    for i in range(n_movies):
        movie = f"movie {i}"
        rows += [
            ("fresh", f"Fine, {SENTENCE.format('charm', 'much', movie)}.", movie),
            ("rotten", f"Bad, {SENTENCE.format('noise', 'far', movie)}.", movie),
            ("fresh", f"Short {i}.", movie),
            ("plot", f"A hero, {SENTENCE.format('tale', 'way', movie)}. Then he dies.", movie),
        ]
    return rows


def load_from(path, name="reviews", **options):
    return load(name, data_dir=None, fetch={"rotten_tomatoes": path}.__getitem__, **options)


def splits_of(data):
    return (data.train, data.dev, data.test)


def movies_of(examples):
    return {text.split(" in ")[1].rstrip(".") for text in examples.texts if " in " in text}


@pytest.mark.parametrize("name", ["reviews", "plots"])
def test_a_movie_is_in_one_split_only(tmp_path, name):
    data = load_from(write_corpus(tmp_path / "c.bz2", corpus_rows()), name)
    train, dev, test = map(movies_of, splits_of(data))
    assert train
    assert dev
    assert test
    assert train.isdisjoint(dev | test)
    assert dev.isdisjoint(test)
    assert train | dev | test == {f"movie {i}" for i in range(60)}
    assert len(train) > 4 * max(len(dev), len(test))


def test_reviews_keep_their_labels(tmp_path):
    data = load_from(write_corpus(tmp_path / "c.bz2", corpus_rows()))
    assert data.task.labels == ("rotten", "fresh")
    assert sum(map(len, splits_of(data))) == 180
    for examples in splits_of(data):
        assert examples.labels.dtype == np.int32
        for text, label in zip(examples.texts, examples.labels, strict=True):
            assert label == (0 if text.startswith("Bad") else 1)


def test_plots_are_balanced_and_have_sentences_of_comparable_length(tmp_path):
    data = load_from(write_corpus(tmp_path / "c.bz2", corpus_rows()), "plots")
    assert data.task.labels == ("subjective", "objective")
    for examples in splits_of(data):
        subjective, objective = np.bincount(examples.labels)
        assert subjective == objective
        for text, label in zip(examples.texts, examples.labels, strict=True):
            assert text.startswith("A hero") == (label == 1)
            assert 10 <= len(text.split()) <= 40


def test_the_order_of_the_rows_does_not_matter(tmp_path):
    rows = corpus_rows()
    forwards = load_from(write_corpus(tmp_path / "a.bz2", rows), "plots")
    backwards = load_from(write_corpus(tmp_path / "b.bz2", rows[::-1]), "plots")
    for a, b in zip(splits_of(forwards), splits_of(backwards), strict=True):
        assert a.texts == b.texts
        assert a.labels.tolist() == b.labels.tolist()


def test_a_new_movie_moves_no_other(tmp_path):
    before = load_from(write_corpus(tmp_path / "a.bz2", corpus_rows(60)))
    after = load_from(write_corpus(tmp_path / "b.bz2", corpus_rows(61)))
    for a, b in zip(splits_of(before), splits_of(after), strict=True):
        assert set(a.texts) <= set(b.texts)


def test_duplicates_empty_and_ambiguous_texts_are_dropped(tmp_path):
    rows = [
        *corpus_rows(),
        ("fresh", "Said  once.", "movie 1"),
        ("fresh", "Said once. ", "movie 1"),
        ("fresh", "Said of two movies.", "movie 1"),
        ("fresh", "Said of two movies.", "movie 2"),
        ("fresh", "Said both ways.", "movie 3"),
        ("rotten", "Said both ways.", "movie 3"),
        ("rotten", " ", "movie 4"),
        ("plot", "", "movie 5"),
    ]
    data = load_from(write_corpus(tmp_path / "c.bz2", rows))
    texts = [text for examples in splits_of(data) for text in examples.texts]
    assert len(texts) == 181
    assert [text for text in texts if text.startswith("Said")] == ["Said once."]


def test_sentences_end_where_a_reader_ends_them():
    one = "Mr. J. R. Smith of St. Louis asks Dr. Who for 2.5 million dollars!"
    two = '"Is this all that there is to it, my dear friend?"'
    three = "(He says so in every one of the movies that he makes.)"
    assert movies.split_sentences(f"{one} {two}\n\n{three}  No.") == [one, two, three, "No."]


def test_k_shot_draws_train_and_dev_from_their_own_movies(tmp_path):
    path = write_corpus(tmp_path / "c.bz2", corpus_rows())
    whole = load_from(path)
    few = load_from(path, k_shot=2, data_seed=13)
    assert np.bincount(few.train.labels).tolist() == [2, 2]
    assert np.bincount(few.dev.labels).tolist() == [2, 2]
    assert set(few.train.texts) < set(whole.train.texts)
    assert set(few.dev.texts) < set(whole.dev.texts)
    assert few.test.texts == whole.test.texts
    assert load_from(path, k_shot=2, data_seed=21).train.texts != few.train.texts


def test_too_few_reviews_for_k_are_refused(tmp_path):
    path = write_corpus(tmp_path / "c.bz2", corpus_rows())
    said = r"k_shot=30: .*c\.bz2 \(dev\) has \d+ example\(s\) of 'rotten' and needs 30: lower it"
    with pytest.raises(InputError, match=said):
        load_from(path, k_shot=30)


@pytest.mark.parametrize("name", ["reviews", "plots"])
def test_the_real_corpus_has_large_splits_without_repeats_or_telling_lengths(name, asset):
    data = load_from(asset("rotten_tomatoes"), name)
    texts = [text for examples in splits_of(data) for text in examples.texts]
    assert len(texts) == len(set(texts))
    assert len(texts) > (12_000 if name == "reviews" else 8_000)
    for examples in splits_of(data):
        assert len(examples) > 1000
        lengths = [
            [len(t.split()) for t in np.array(examples.texts)[examples.labels == c]] for c in (0, 1)
        ]
        assert abs(np.mean(lengths[0]) - np.mean(lengths[1])) < 3
