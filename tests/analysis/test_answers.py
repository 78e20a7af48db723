"""The page shows the answers of the published model, and of cases worked out by hand."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import experiments.run
from tests.helpers import toy_job, toy_models
from tests.helpers.finished_runs import best, wayward, with_run
from tests.helpers.toy_models import WORDS
from wayward_jax.analysis import report
from wayward_jax.analysis.answers import MOST_TEXTS, Answered, Line, answered
from wayward_jax.analysis.selection import compare
from wayward_jax.jobs import records
from wayward_jax.runs import NOTHING, PROMPT, TEXT, Answer, RunRecord
from wayward_jax.tasks import Task, TaskData
from wayward_jax.tasks.task import Examples
from wayward_jax.training.evaluation import answers
from wayward_jax.training.examples import encode_task
from wayward_jax.training.shown import MOST_CHARACTERS, SHOWN

LABELS = ["bad", "good"]


class Section(HTMLParser):
    """The texts of the list items and of the rows of tables in the section on answers."""

    def __init__(self, page):
        super().__init__()
        self.items, self.rows, self._texts, self._inside = [], [], None, False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self._inside |= ("aria-labelledby", "answers-title") in attributes
        if not self._inside:
            return
        if tag == "tr":
            self.rows.append([])
        if tag in ("li", "td", "th"):
            self._texts = []
            (self.items if tag == "li" else self.rows[-1]).append(self._texts)

    def handle_endtag(self, tag):
        self._inside &= tag != "section"

    def handle_data(self, data):
        if self._inside and self._texts is not None:
            self._texts.append(data)

    @property
    def cells(self):
        """The rows of the table, a text a cell."""
        return [["".join(cell).strip() for cell in row] for row in self.rows]


@pytest.fixture(scope="module")
def page(job):
    """The page that the job wrote at its end."""
    return (job / "runs" / "report" / "report.html").read_text()


@pytest.mark.slow
def test_the_page_at_the_end_of_a_job_is_that_of_its_analysis(page, analysis):
    assert page == (analysis / "report.html").read_text()


@pytest.mark.slow
def test_the_examples_are_the_first_of_each_label_in_turn(page, job):
    lines = [json.loads(line) for line in (job / "mood" / "test.jsonl").read_text().splitlines()]
    bad, good = ([line["text"] for line in lines if line["label"] == label] for label in (0, 1))
    expected = [("bad", bad[0]), ("good", good[0]), ("bad", bad[1]), ("good", good[1])]
    found = [re.fullmatch(r"(\w+): (.*)", "".join(item).strip()) for item in Section(page).items]
    assert [each.groups() for each in found] == expected


@pytest.mark.slow
def test_the_answers_are_those_of_the_published_model(page, job, table):
    """Each example is given to transformers behind the vectors that the line names."""
    torch = pytest.importorskip("torch")
    theirs = toy_models.load_published("gpt2", job)
    rows = {row["id"]: row for row in records.read_lines(job / "runs" / "results.jsonl")}
    header, *lines = Section(page).cells
    assert header[:2] == ["prompt", "reads as"]
    given = ["p_star", *["wayward prompt", "the text itself"] * 2, "no prompt"]
    assert [line[0].split("\n")[0] for line in lines] == given
    gold = [each["label"] for each in shown_of(job)]
    wrong = [
        said.split()[0] != label
        for line in lines
        for said, label in zip(line[2:], gold, strict=True)
    ]
    assert page.count('class="wrong"') == sum(wrong) > 0
    examples = [each["texts"][0].split() for each in shown_of(job)]
    for name, text, *said in lines:
        if run := re.search("seed 1, run ([0-9a-f]{12})$", name):
            row = rows[run[1]]
            assert text == row["text"]
            assert name.startswith("wayward prompt" if row["target_ids"] else "p_star")
            assert not row["target_ids"] or row["target_name"] in name
            vectors = toy_job.prompt(job / "runs", row)
        else:
            assert bool(text) == name.startswith("the text itself")
            vectors = table[[WORDS.index(word) for word in text.split()]]
        for example, answer in zip(examples, said, strict=True):
            context = [WORDS.index(word) for word in [*example, "It", "was"]]
            nll = np.array(
                [
                    float(
                        toy_models.published_nll(
                            theirs,
                            torch.tensor(vectors),
                            context,
                            [WORDS.index(word) for word in (label_word, ".", "<eos>")],
                        )
                    )
                    for label_word in ("terrible", "great")
                ]
            )
            shares = np.exp(-nll) / np.exp(-nll).sum()
            label, probability = answer.split()
            assert label == LABELS[shares.argmax()]
            assert float(probability) == pytest.approx(shares.max(), abs=0.0051)


def shown_of(job):
    (own,) = records.read_measurements([job / "runs"])[records.SHOWN].values()
    return own


def test_an_answer_is_the_likeliest_label_and_numbers_that_are_none_are_left_out():
    nll = np.float32([[0, np.log(3)], [2, 1], [np.nan, 1], [np.nan, np.nan]])
    first, second, third, fourth = answers(nll, ("a", "b"))
    assert (first.label, first.probability) == ("a", pytest.approx(0.75))
    assert (second.label, second.probability) == ("b", pytest.approx(1 / (1 + np.exp(-1))))
    assert (third, fourth) == (Answer("b", 1.0), None)


def shown(model, texts, labels, texts_b=()):
    """The numbers of the examples that would be shown of these, and how they are written."""
    names = tuple("abcdef"[: max(labels) + 1])
    task = Task("own", names, ("It was %s .",), tuple(f"w{i}" for i in range(len(names))))
    examples = Examples(tuple(texts), np.array(labels, np.int32), tuple(texts_b))
    data = TaskData(task, examples, examples, examples)
    made = encode_task(model, {100: data}, prompt_length=3, template=0).shown
    return made.numbers.tolist(), made.to_json()


def test_long_examples_are_shown_only_of_labels_that_have_no_other(model):
    long = "w1 " * MOST_CHARACTERS
    texts = [long, "w2", "w3", long, "w4", "w5", long]
    numbers, written = shown(model, texts, [0, 0, 0, 1, 2, 2, 1])
    assert numbers == [1, 3, 4, 2]
    assert [each["label"] for each in written] == ["a", "b", "c", "a"]
    assert written[0]["texts"] == ["w2"]
    assert written[1]["texts"] == [long[:MOST_CHARACTERS] + "..."]


def test_pairs_are_shown_with_both_texts_and_there_may_be_few_or_many_labels(model):
    numbers, written = shown(model, ["w1"], [1], ["w2"])
    assert (numbers, written) == ([0], [{"texts": ["w1", "w2"], "label": "b"}])
    numbers, _ = shown(model, ["w1"] * 6, [5, 4, 3, 2, 1, 0])
    assert numbers == [5, 4, 3, 2][:SHOWN]


def measured_of(*found):
    """The shown examples of records, as their jobs would have written them."""
    examples = [{"texts": ["one"], "label": "good"}, {"texts": ["two"], "label": "bad"}]
    return {records.SHOWN: {each.provenance.examples_digest: examples for each in found}}


@pytest.mark.slow
def test_of_many_texts_the_first_are_shown_with_one_prompt_each(page):
    runs = [best(0.9, seed=seed) for seed in (1, 2)]
    runs += [
        wayward(0.8, text=f"words {i}", name=f"own/{i}", run={"seed": seed, "gamma": 0.1})
        for i in range(MOST_TEXTS + 2)
        for seed in (1, 2)
    ]
    (found,) = answered(compare(runs), measured_of(runs[0]))
    assert found.texts == MOST_TEXTS + 2
    targets = [line.target for line in found.lines if line.given == "wayward prompt"]
    assert targets == [f"own/{i}" for i in range(MOST_TEXTS)]
    assert {line.run.run.seed for line in found.lines if line.run} == {1}
    assert f"{MOST_TEXTS} of {MOST_TEXTS + 2} texts" in rendered(found)
    assert " of 2 texts" not in page


def test_merged_jobs_have_a_part_for_each_model_and_task():
    runs = [
        with_run(record, task=task)
        for task in ("sst2", "trec")
        for record in (best(0.9), wayward(0.8, run={"gamma": 0.1}))
    ]
    found = answered(compare(runs), measured_of(runs[0]))
    assert [each.title for each in found] == ["gpt2 on sst2", "gpt2 on trec"]
    assert answered(compare(runs), {}) == []


def test_prompts_of_other_lengths_are_beside_their_own_p_star():
    short = [best(0.9), wayward(0.8, run={"gamma": 0.1})]
    run = {"gamma": 0.1}
    long = [with_run(best(0.7), prompt_length=3), wayward(0.6, text="now three words", run=run)]
    (found,) = answered(compare([*short, *long]), measured_of(short[0]))
    p_stars = [line.run.run.prompt_length for line in found.lines if line.given == "p_star"]
    assert p_stars == [2, 3]


def rendered(*found):
    return report.render(
        title="t", said=[], answers=found, notes=[], made={}, frames={}, data={"x": 1}
    )


def test_names_texts_and_labels_are_text():
    trouble = ["<script>alert(1)</script>", "</details>", "{{ 7 * 7 }}", "&lt;b&gt;", '"', "\u2028"]
    record = wayward(0.8, run={"gamma": 0.1})
    for name in trouble:
        line = Line("wayward prompt", name, name, record, (Answer(name, 0.5), None))
        examples = [([name, name], name), (["plain"], "plain")]
        page = rendered(Answered(name, examples, [line], 1))
        assert "<script>alert" not in page
        section = Section(page)
        assert "".join(section.items[0]).split() == f"{name}: {name} {name}".split()
        header, cells = section.cells
        assert [each.strip() for each in header[2:]] == [f"1: {name}".strip(), "2: plain"]
        assert cells[0].split() == f"wayward prompt {name} seed 1, run {record.id}".split()
        assert cells[1:] == [name.strip(), f"{name} 0.50".strip(), "nothing"]


@pytest.mark.slow
def test_a_page_shows_the_same_after_the_job_was_stopped_in_each_population(
    tmp_path_factory, monkeypatch
):
    """Prompts of two lengths, so that the populations take different programs."""
    folder = toy_job.make(tmp_path_factory.mktemp("resumed"))
    (folder / "words.txt").write_text("w7 w8 w9\nw3 w3\n")
    changed = {"targets": folder / "words.txt", "population": 3, "mesh": "runs:1"}

    def run(name):
        flags = toy_job.flags(folder, **changed, checkpoint_every=2, out_dir=folder / name)
        experiments.run.main(toy_job.texts(flags))
        return (folder / name / "report" / "report.html").read_text()

    stops, asked_before, done = {4, 7}, 0, []

    def asked(self):
        nonlocal asked_before
        asked_before += 1
        return asked_before in stops

    monkeypatch.setattr("wayward_jax.training.planning.MAX_STEPS_PER_CALL", 2)
    whole = run("whole")
    with monkeypatch.context() as patch:
        patch.setattr("wayward_jax.jobs.preemption.Interruption.asked", asked)
        for _ in stops:
            with pytest.raises(KeyboardInterrupt, match="same command"):
                run("stopped")
            results = folder / "stopped" / "results.jsonl"
            done.append(len(records.read_lines(results)) if results.exists() else 0)
    assert done == [0, 3]
    assert run("stopped") == whole


@pytest.mark.slow
def test_a_row_has_the_answers_to_the_examples_that_it_says_are_right(job):
    tests = [json.loads(line) for line in (job / "mood" / "test.jsonl").read_text().splitlines()]
    examples = shown_of(job)
    numbers = [[each["text"] for each in tests].index(each["texts"][0]) for each in examples]
    for row in records.read_lines(job / "runs" / "results.jsonl"):
        kinds = {PROMPT, NOTHING, TEXT} if row["target_ids"] else {PROMPT, NOTHING}
        assert row["answers"].keys() == kinds
        record = RunRecord.from_json(row)
        for kind, right in ((PROMPT, record.correct), (NOTHING, record.unprompted)):
            found = [
                a.label == e["label"] for a, e in zip(record.answers[kind], examples, strict=True)
            ]
            assert found == right[numbers].tolist()
