"""Measurements of finished prompts, tested against their records and in other ways."""

import dataclasses
import io
import json
import shutil
import types
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from experiments import flags
from experiments.discrete import MOST_DEMONSTRATIONS, calibrate, demonstrations
from experiments.path import between
from experiments.recover import rank
from tests.helpers import packs, toy_job, toy_models
from wayward_jax.analysis import tables
from wayward_jax.analysis.analyze import analyze
from wayward_jax.analysis.measured_figures import measured_figures
from wayward_jax.analysis.selection import compare
from wayward_jax.analysis.terminal import show
from wayward_jax.errors import InputError
from wayward_jax.jobs import job, records
from wayward_jax.jobs.probes import ProbeContext
from wayward_jax.segments import gold_segments
from wayward_jax.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("one_shape")


def flipped(path):
    """The same texts, each with the other label."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**x, "label": 1 - x["label"]}) + "\n" for x in lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models and two tasks, of which one has the other's labels the wrong way round.

    The models are alike, so that they share programs.
    """
    made = toy_job.make(tmp_path_factory.mktemp("measurements"))
    shutil.copytree(made / "gpt2", made / "other")
    shutil.copytree(made / "mood", made / "opposite")
    for split in ("train", "dev", "test"):
        flipped(made / "opposite" / f"{split}.jsonl")
    return made


# Populations of six prompts, which share one program whatever task and targets they have.
SETTINGS = {
    "gamma": (0.0, 0.5),
    "seeds": (1, 2),
    "init": ("vocab",),
    "learning_rate": 0.1,
    "steps": 20,
}


def run_job(folder, out_dir, name, **changed):
    settings = toy_job.settings(folder, out_dir, experiment=name, **{**SETTINGS, **changed})
    with toy_job.CountingReporter() as watch:
        finished = job.run_job(settings, flags.find_experiment(name), out_dir, watch)
        return finished, watch.steps


@pytest.fixture(scope="module")
def first(folder):
    return run_job(folder, folder / "first", "main")[0].records


@pytest.fixture(scope="module")
def measured(folder, first):
    """Measures the first job's prompts with an experiment; gives its rows by key."""

    def measure(name):
        finished, steps = run_job(folder, folder / name, name, reuse=(folder / "first",))
        assert steps == 0
        assert toy_job.rows(finished.records) == toy_job.rows(first)
        return finished.measured[name]

    return measure


@pytest.fixture(scope="module")
def on_two_tasks(folder):
    """A job whose prompts are measured on the task of the other labels, too."""
    return run_job(folder, folder / "two", "transfer", task=("mood", "opposite"))[0]


@pytest.mark.slow
def test_paths_begin_at_p_star_pass_the_wayward_prompt_and_end_at_the_target(first, measured):
    records = {record.id: record for record in first}
    p_star = {record.run.seed: record for record in first if not record.run.has_target}
    paths = measured("path")
    assert len(paths) == 2  # a target at its best gamma, two seeds
    for key, path in paths.items():
        record = records[key]
        assert [point["position"] for point in path] == pytest.approx(np.linspace(0, 2, 21))
        begin, middle, end = path[0], path[10], path[20]
        assert begin["accuracy"] == p_star[record.run.seed].accuracy
        for name in ("accuracy", "prompt_f1", "token_f1"):
            assert middle[name] == getattr(record, name)
        assert middle["distance"] == pytest.approx(record.distance, rel=1e-5)
        assert (end["prompt_f1"], end["token_f1"], end["distance"]) == (1, 1, 0)
        # Half-way to the target a prompt is half as far away, and the square of that.
        assert path[15]["distance"] == pytest.approx(middle["distance"] / 4, rel=1e-4)


def test_points_between_corners_are_weighted_means():
    corners = np.array([[[0.0, 0]], [[4, 8]], [[4, 0]]])
    found = between(corners, np.array([0, 0.25, 1, 1.5, 2]))
    np.testing.assert_allclose(found[:, 0], [[0, 0], [1, 2], [4, 8], [4, 4], [4, 0]])


@pytest.mark.slow
def test_a_measurement_is_not_taken_again_unless_its_line_is_cut(folder, measured, tmp_path):
    measured("path")
    path = folder / "path" / "measurements.jsonl"
    before = path.read_bytes()
    measured("path")
    assert path.read_bytes() == before
    cut = shutil.copytree(folder / "path", tmp_path / "cut")
    (cut / "measurements.jsonl").write_bytes(before[:-100])
    run_job(folder, cut, "path")
    assert (cut / "measurements.jsonl").read_bytes() == before


@pytest.mark.parametrize("line", ["3", '{"key": "x"}'])
def test_a_line_that_is_no_measurement_is_named(tmp_path, line):
    (tmp_path / "measurements.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"measurements.jsonl:1"):
        records.read_measurements([tmp_path])


@pytest.mark.slow
def test_discrete_measures_each_prompt_its_texts_and_the_references(first, measured):
    found = measured("discrete")
    by_id = {record.id: record for record in first}
    own = [line for key, lines in found.items() if key in by_id for line in lines]
    for line in own:
        if line["prompt"] == "continuous" and not line["calibrated"]:
            assert line["accuracy"] == by_id[line["id"]].accuracy
    assert {(line["prompt"], line["calibrated"]) for line in own} == {
        (prompt, is_so)
        for prompt in ("continuous", "projected", "target")
        for is_so in (False, True)
    }
    others = [lines[0]["prompt"] for key, lines in found.items() if key not in by_id]
    assert others == ["zero-shot", "few-shot", "few-shot"]
    # The reading depends on the run; the target's text does not.
    assert len({line["accuracy"] for line in own if line["prompt"] == "target"}) <= 2


@pytest.mark.slow
@pytest.mark.parametrize(("family", "bos"), [("gpt2", ()), ("llama", ()), ("llama", (9,))])
def test_a_prompt_of_tokens_scores_as_the_tokens_before_the_text(family, bos, tmp_path):
    """And one without tokens as the text alone, by transformers' pass over plain ids.

    A model that begins texts with BOS has it before each of them.
    """
    torch = pytest.importorskip("torch")
    ours = toy_models.make(family, tmp_path)
    theirs = toy_models.load_published(family, tmp_path)
    encoded = toy_models.examples(5, n_labels=2, seed=1)
    examples = packs.evaluation_set(encoded, [0] * 5, prompt_length=7, tokens=10**4)
    texts = ([7, 8, 9], [3], [], [5, 5, 11, 60], [*range(1, 31)])
    table = np.asarray(ours.embedding_table())
    prompts = [table[ids].reshape(-1, toy_models.WIDTH) for ids in texts]
    (longest,) = toy_models.toy_runs(ours)[-1:]
    context = ProbeContext(
        dataclasses.replace(ours, bos_ids=bos),
        make_mesh(),
        {},
        [types.SimpleNamespace(run=longest)],
        "dev",
        pytest.fail,
        {},
        {},
    )
    assert longest.prompt_length == 6
    # The last prompt is longer than those that the examples are packed for.
    found = [*context.score(prompts[:-1], examples), *context.score(prompts[-1:], examples)]
    for ids, scores in zip(texts, found, strict=True):
        for example, of_labels in zip(encoded, scores, strict=True):
            for before, continuation, score in zip(*example, of_labels, strict=True):
                stream = torch.tensor([*bos, *ids, *before, *continuation])
                logits = theirs(stream[None]).logits[0, -len(continuation) - 1 : -1]
                expected = torch.nn.functional.cross_entropy(logits, torch.tensor(continuation))
                assert score == pytest.approx(expected.item(), rel=1e-4)


def test_calibration_divides_probabilities_by_those_of_a_text_without_content():
    """By hand: the second label is likelier without content, so that the first one wins."""
    probabilities = np.array([[[0.4, 0.6], [0.1, 0.9]]])
    prior = np.array([[[0.2, 0.8]]])
    found = np.exp(-calibrate(-np.log(probabilities), -np.log(prior)))
    np.testing.assert_allclose(found, [[[2.0, 0.75], [0.5, 1.125]]])


def test_demonstrations_are_whole_examples_with_their_labels_as_many_as_fit():
    encoded = toy_models.examples(40, n_labels=2, seed=6)
    labels = np.arange(40) % 2
    train = gold_segments(encoded, labels, range(2))
    wholes = {
        (*example.contexts[label], *example.continuations[label][:-1], 99)
        for example, label in zip(encoded, labels, strict=True)
    }
    for room in (0, 30, 10**6):
        ids = demonstrations(train, [99], room=room, seed=1)
        assert len(ids) <= room
        parts = []
        for token in ids:
            if not parts or parts[-1][-1] == 99:
                parts.append(())
            parts[-1] += (token,)
        assert set(parts) <= wholes
    assert len(parts) == MOST_DEMONSTRATIONS
    assert ids != demonstrations(train, [99], room=10**6, seed=2)


@pytest.mark.slow
def test_on_a_task_of_opposite_labels_prompts_are_right_where_they_were_wrong(on_two_tasks):
    records = {record.id: record for record in on_two_tasks.records}
    on = defaultdict(dict)
    for key, (line,) in on_two_tasks.measured["transfer"].items():
        assert key == f"{line['id']} on {line['to_task']}"  # lines of other jobs are no repetition
        on[line["id"]][line["to_task"]] = line["accuracy"]
    assert len(on) == 2 * (2 + 2)  # of both tasks p_star and the target, two seeds
    for id_, accuracies in on.items():
        assert accuracies[records[id_].run.task] == records[id_].accuracy
        assert accuracies["mood"] + accuracies["opposite"] == pytest.approx(1)


@pytest.mark.slow
def test_every_models_readings_are_given_to_every_model(folder, tmp_path):
    models = tuple(str(folder / name) for name in ("gpt2", "other"))
    finished, _ = run_job(folder, tmp_path / "job", "transfer", model=models)
    of = {record.id: record.run.model for record in finished.records}
    lines = [line for found in finished.measured["transfer"].values() for line in found]
    pairs = {(of[line["id"]], line["to_model"], line["as_text"]) for line in lines}
    assert len(set(of.values())) == 2
    assert pairs == {(a, b, True) for a in of.values() for b in of.values()}


@pytest.mark.slow
def test_readings_of_the_same_prompts_agree_with_their_records(folder, first, measured):
    by_id = {record.id: record for record in first}
    (lines,) = measured("projection").values()
    euclidean = [x for x in lines if x["metric"] == "euclidean" and x["prompt"] == "wayward"]
    gamma = by_id[euclidean[0]["id"]].run.gamma
    wayward = [r for r in first if r.run.has_target and r.run.gamma == gamma]
    for line, record in zip(euclidean, wayward, strict=True):
        assert (line["prompt_f1"], line["token_f1"]) == (record.prompt_f1, record.token_f1)
        assert line["top_1"] == np.mean(np.equal(record.token_ids, record.run.target_ids))
        assert line["top_1"] <= line["top_5"] <= line["top_10"]
    table = toy_models.make_table()
    best = [x for x in lines if x["metric"] == "dot" and x["prompt"] == "p_star"]
    p_stars = [record for record in first if not record.run.has_target]
    for line, record in zip(best, p_stars, strict=True):
        prompt = toy_job.prompt(folder / "first", record.to_json())
        ten = (-prompt @ table.T).argsort(axis=1)[:, :10]
        target = np.array(wayward[0].run.target_ids)[:, None]
        assert line["top_10"] == pytest.approx((ten == target).any(axis=1).mean())


@pytest.mark.slow
def test_the_best_gamma_can_be_chosen_on_the_split_that_is_reported(first):
    records = [record for record in first if not record.run.has_target]
    for record in first:
        if record.run.has_target:
            high = record.run.gamma == 0.5
            run = dataclasses.replace(record.run, gamma=0.5 if high else 0.1)  # 0 is no constraint
            changed = {"accuracy": float(high), "dev_accuracy": float(not high)}
            records.append(dataclasses.replace(record, run=run, prompt_f1=1.0, **changed))
    assert compare(records)[0].wayward[0].run.gamma == 0.1
    assert compare(records, "test")[0].wayward[0].run.gamma == 0.5


@pytest.mark.slow
def test_tables_have_means_over_prompts_and_the_terminal_shows_them(folder, first, measured):
    found = {"path": measured("path")}
    table = tables.by_measurement(first, found, "path")
    assert table["position"].tolist() == pytest.approx(np.linspace(0, 2, 21))
    at_target = [path[20]["accuracy"] for path in found["path"].values()]
    last = table.iloc[20]
    assert last["accuracy"] == pytest.approx(np.mean(at_target))
    # Other test examples would give another accuracy, though both paths end at the same text.
    assert min(at_target) == max(at_target)
    assert last["least"] < last["accuracy"] < last["most"]
    assert set(table["prompts"]) == {2}
    console = Console(width=100, record=True, file=io.StringIO())
    show(analyze([folder / "path"], cache_dir=folder / "cache"), ["path"], console)
    lines = [line.split() for line in console.export_text().splitlines()]
    positions = {f"{position}" for position in table["position"]}
    assert len([words for words in lines if words and words[0] in positions]) == 21


@pytest.mark.slow
def test_the_analysis_has_tables_and_figures_of_all_that_was_measured(
    folder, measured, on_two_tasks, tmp_path
):
    for name in ("path", "discrete", "projection"):
        measured(name)
    folders = [folder / name for name in ("path", "discrete", "projection")]
    runs = ",".join(map(str, [*folders, on_two_tasks.layout.folder]))
    toy_job.analyze_here(
        runs=runs, out_dir=tmp_path / "out", cache_dir=folder / "cache", select="test"
    )
    for name in ("path", "discrete", "transfer", "projection"):
        assert len(pd.read_csv(tmp_path / "out" / "tables" / f"{name}.csv"))
    for name in ("path", "discrete", "transfer"):
        assert (tmp_path / "out" / "figures" / f"{name}.png").exists()
    assert "accuracy on test counts" in (tmp_path / "out" / "report.html").read_text()
    rows = records.read_lines(folder / "path" / "results.jsonl")
    assert len(rows) == 6


@pytest.mark.slow
def test_every_reading_is_measured_of_the_prompts_that_are_held_by_one(folder, tmp_path):
    """The measurement of a prompt by the reading that holds it repeats the prompt's own row."""
    finished, _ = run_job(
        folder,
        tmp_path,
        "readings",
        steps=3,
        seeds=1,
        gamma=5,
        constraint="penalty,lens:2,verbal",
        verbal_templates="w1 {prompt} w2|w1 {prompt} w3",
    )
    by_id = {record.id: record for record in finished.records}
    rows = finished.measured["readings"]
    held_by = {by_id[id_].run.constraint for id_ in rows}
    names = {row["reading"] for of_target in rows.values() for row in of_target}
    assert len(held_by) == 3
    assert held_by - {"penalty"} < names
    assert {"euclidean", "cosine", "dot", "lens:1"} < names
    for id_, of_target in rows.items():
        record = by_id[id_]
        own = "euclidean" if record.run.constraint == "penalty" else record.reading
        (row,) = (row for row in of_target if (row["reading"], row["prompt"]) == (own, "wayward"))
        assert row["text"] == record.text
        assert (row["prompt_f1"], row["token_f1"]) == (record.prompt_f1, record.token_f1)
    made = tables.tables(finished.records, compare(finished.records), finished.measured)
    assert len(made["readings"]) == len(held_by) * len(names) * 2
    figure = measured_figures(finished.records, finished.measured)["readings"]
    shown = {text.get_text() for text in figure.axes[0].get_yticklabels()}
    assert shown == held_by | {"p_star"}


def test_ranks_count_what_is_lower_and_half_of_what_is_equal():
    assert rank(np.array([1.0, 2, 3])) == 1
    assert rank(np.array([3.0, 2, 4, 1])) == 3
    assert rank(np.array([2.0, 2, 2, 1])) == 3


@pytest.mark.slow
def test_a_prompt_that_has_not_left_its_description_is_read_as_it_and_p_star_is_not(
    folder, tmp_path
):
    """Nothing is learned, so that the prompt is its description: no nearest token is distant."""
    finished, _ = run_job(folder, tmp_path, "recover", learning_rate=0, init="target")
    (rows,) = finished.measured["recover"].values()
    ranks = {(row["reading"], row["beside"]): row["rank"] for row in rows}
    assert ranks["euclidean", "nothing"] == 1
    assert ranks["euclidean", "p_star"] == 1
    assert {beside for _, beside in ranks} == {"nothing", "p_star"}


@pytest.mark.slow
def test_prompts_are_told_apart_by_scores_of_each_of_them(folder, tmp_path):
    """Those held to definitions are honest, and so are those that nothing holds."""
    (folder / "definitions.txt").write_text("w3 w4 w5\n")
    (folder / "words.txt").write_text("w7 w8 w9\n")
    finished, _ = run_job(
        folder,
        tmp_path,
        "detect",
        gamma=0.5,
        task="mood,opposite",
        targets=f"{folder / 'definitions.txt'},{folder / 'words.txt'}",
    )
    by_id = {record.id: record for record in finished.records}
    rows = {id_: row for id_, (row,) in finished.measured["detect"].items()}
    assert rows.keys() == by_id.keys()
    kinds = {"definitions/1": "true description", "words/1": "wayward", "p_star": "p_star"}
    table = np.float64(load_table(folder))[: len(toy_models.WORDS)]
    for id_, row in rows.items():
        assert row["prompt"] == kinds[by_id[id_].run.target_name]
        prompt = np.float64(toy_job.prompt(tmp_path, by_id[id_].to_json()))
        apart = np.linalg.norm(prompt[:, None] - table[1:], axis=2)  # special tokens are not read
        apart.sort(axis=1)
        assert row["distance"] == pytest.approx(apart[:, 0].mean(), rel=1e-4)
        margin = (apart[:, 1] ** 2 - apart[:, 0] ** 2).mean()
        assert row["margin"] == pytest.approx(margin, rel=1e-3)
        assert row["norm"] == pytest.approx(np.linalg.norm(prompt, axis=1).mean(), rel=1e-4)
    made = tables.tables(finished.records, compare(finished.records), finished.measured)["detect"]
    assert set(made["honest"]) == {"true description", "p_star"}
    assert set(made["prompts"]) == {8}
    assert "all together" in set(made["score"])


def load_table(folder):
    """The embeddings of the published model."""
    return load_file(folder / "gpt2" / "model.safetensors")["transformer.wte.weight"]
