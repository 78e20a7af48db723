"""Finished jobs analyzed by the program, against their results and checkpoints."""

import json
import re
import shlex
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from tests.helpers import fork_server, toy_job
from tests.helpers.nearest import nearest
from tests.helpers.toy_models import WORDS
from wayward_jax.errors import InputError
from wayward_jax.jobs import records
from wayward_jax.jobs.kept_flags import read_flags
from wayward_jax.jobs.layout import JobLayout

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def page_data(out_dir):
    return json.loads(DATA.search((out_dir / "report.html").read_text())[1])


@pytest.mark.slow
def test_tables_and_figures_are_written_in_every_format(analysis):
    for name in ("groups", "targets", "projection"):
        assert len(pd.read_csv(analysis / "tables" / f"{name}.csv"))
        assert (analysis / "tables" / f"{name}.md").read_text().startswith("| model")
        assert r"\begin{tabular}" in (analysis / "tables" / f"{name}.tex").read_text()
    for name in ("main", "training", "gamma"):
        assert (analysis / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (analysis / "figures" / f"{name}.svg").read_text()


@pytest.mark.slow
def test_the_table_of_targets_agrees_with_the_results(analysis, job):
    rows = records.read_lines(job / "runs" / "results.jsonl")
    p_star = np.mean([row["accuracy"] for row in rows if not row["target_ids"]])
    lines = pd.read_csv(analysis / "tables" / "targets.csv")
    assert len(lines) == 2
    for line in lines.itertuples():
        own = [r for r in rows if r["target_name"] == line.target and r["gamma"] == line.gamma]
        accuracy = np.mean([row["accuracy"] for row in own])
        assert line.runs == 4  # two seeds of each
        assert line.accuracy == pytest.approx(accuracy)
        assert line.drop == pytest.approx(100 * (p_star - accuracy) / p_star)
        assert line.low <= line.drop <= line.high


@pytest.mark.slow
def test_the_group_has_the_mean_drop_of_its_targets(analysis):
    groups, targets = (pd.read_csv(analysis / "tables" / f"{n}.csv") for n in ("groups", "targets"))
    (group,) = groups.itertuples()
    assert group.drop == pytest.approx(targets["drop"].mean())
    assert (group.targets, group.seeds, group.runs) == (2, 2, 6)


@pytest.mark.slow
def test_the_page_has_the_neighbors_that_the_checkpoints_have(analysis, job, table):
    data = page_data(analysis)
    rows = {row["id"]: row for row in records.read_lines(job / "runs" / "results.jsonl")}
    assert sorted(run["id"] for run in data["runs"]) == sorted(rows)
    for run in data["runs"]:
        ids, distances = nearest(job, rows[run["id"]], table)
        words = [data["tokens"][token] for token in run["near"]]
        assert words == [WORDS[id_] for id_ in ids.ravel()]
        np.testing.assert_allclose(run["far"], distances.ravel(), rtol=6e-4)
        least = (distances[:, 1] - distances[:, 0]).min()
        assert run["margin"] == pytest.approx(least, rel=6e-4, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_the_page_has_the_reading_under_other_metrics(analysis, job, table, metric):
    data = page_data(analysis)
    rows = {row["id"]: row for row in records.read_lines(job / "runs" / "results.jsonl")}
    for run in data["runs"]:
        prompt = toy_job.prompt(job / "runs", rows[run["id"]])
        near = np.float64(prompt) @ np.float64(table).T
        if metric == "cosine":
            near /= np.linalg.norm(table, axis=1)
        ids = run["others"][data["metrics"].index(metric) - 1]
        assert [data["tokens"][token] for token in ids] == [WORDS[i] for i in near.argmax(1)]


@pytest.mark.slow
def test_the_page_refers_to_no_other_file(analysis):
    page = (analysis / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", page)


@pytest.mark.slow
def test_the_command_of_a_row_repeats_this_row_alone(analysis, job, fork, tmp_path):
    data = page_data(analysis)
    run = next(run for run in data["runs"] if run["prompt_f1"] is not None and run["gamma"])
    command = shlex.split(data["commands"][run["command"]])
    assert command[:3] == ["python", "-m", "experiments.run"]
    again = job / "again"
    places = [f"--out_dir={again}", f"--cache_dir={job / 'cache'}"]
    words = [*command[3:], f"--only={run['id']}", *places]
    ended = fork_server.start(fork, command[2], words, tmp_path, 300).finish()
    assert ended.code == 0, ended.err
    (row,) = records.read_lines(again / "results.jsonl")
    (first,) = (
        r for r in records.read_lines(job / "runs" / "results.jsonl") if r["id"] == row["id"]
    )
    for name in ("accuracy", "prompt_f1", "token_ids", "correct"):
        assert row[name] == first[name]
    assert row["distance"] == pytest.approx(first["distance"], rel=1e-3)


def analyze_copy(job, tmp_path):
    """Analyzes the changed copy of the job in `tmp_path / "runs"`."""
    out_dir = tmp_path / "analysis"
    toy_job.analyze_here(runs=tmp_path / "runs", out_dir=out_dir, cache_dir=job / "cache")
    return out_dir


def assert_read_without_its_model(analysis, out_dir, said):
    """The page says so, the tables are the same, and there are no neighbors."""
    assert said in (out_dir / "report.html").read_text()
    table = (analysis / "tables" / "targets.csv").read_text()
    assert (out_dir / "tables" / "targets.csv").read_text() == table
    assert not any("near" in run for run in page_data(out_dir)["runs"])


@pytest.mark.slow
def test_without_the_model_the_page_is_made_and_says_so(job, analysis, tmp_path):
    moved = shutil.copytree(job / "runs", tmp_path / "runs")
    flags = (moved / "flags.json").read_text()
    (moved / "flags.json").write_text(flags.replace(str(job / "gpt2"), "/nowhere/gpt2"))
    out_dir = analyze_copy(job, tmp_path)
    assert_read_without_its_model(analysis, out_dir, "gpt2 is not here")


@pytest.mark.slow
def test_a_model_with_other_weights_is_not_used_and_the_page_says_so(job, analysis, tmp_path):
    moved = shutil.copytree(job / "runs", tmp_path / "runs")
    other = shutil.copytree(job / "gpt2", tmp_path / "gpt2")
    weights = load_file(other / "model.safetensors")
    name = next(name for name in weights if name.endswith("wte.weight"))
    weights[name] = weights[name] + 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    flags = (moved / "flags.json").read_text()
    (moved / "flags.json").write_text(flags.replace(str(job / "gpt2"), str(other)))
    out_dir = analyze_copy(job, tmp_path)
    assert_read_without_its_model(analysis, out_dir, "has other weights than the prompts were")


@pytest.mark.slow
def test_a_job_of_the_old_format_is_refused_in_one_line(job, tmp_path):
    old = shutil.copytree(job / "runs", tmp_path / "runs")
    renamed = (old / "results.jsonl").read_text().replace('"token_ids"', '"projected_ids"')
    (old / "results.jsonl").write_text(renamed.replace('"text"', '"projected_text"'))
    with pytest.raises(InputError) as error:
        analyze_copy(job, tmp_path)
    assert error.value.as_flag() == (
        f"{old}/results.jsonl:1: lacks text, token_ids: it was made by another version of "
        "wayward_jax, so run the job again"
    )
    assert not (tmp_path / "analysis").exists()


def folder_of(rows, path):
    path.mkdir()
    (path / "flags.json").write_text("{}")
    records.append_lines(path / "results.jsonl", rows)
    return path


@pytest.fixture
def rows(job):
    return records.read_lines(job / "runs" / "results.jsonl")


@pytest.mark.slow
def test_merged_jobs_have_each_run_once_in_order(rows, tmp_path):
    first = folder_of(rows[:6], tmp_path / "first")
    second = folder_of([{**row, "seconds": 9.0} for row in rows[3:]], tmp_path / "second")
    merged = records.read_jobs([first, second])
    expected = rows[:6] + [{**row, "seconds": 9.0} for row in rows[6:]]
    assert toy_job.rows([run.record for run in merged]) == expected
    assert [run.job.folder for run in merged] == [first] * 6 + [second] * (len(rows) - 6)


@pytest.mark.slow
def test_jobs_that_disagree_on_a_run_are_refused(rows, tmp_path):
    first = folder_of(rows, tmp_path / "first")
    second = folder_of([rows[0], {**rows[1], "accuracy": 0.123}], tmp_path / "second")
    with pytest.raises(InputError, match=r"second/results.jsonl:2: .* in accuracy: leave out"):
        records.read_jobs([first, second])


@pytest.mark.slow
def test_rows_that_lack_an_entry_are_refused(rows, tmp_path):
    old = {name: value for name, value in rows[0].items() if name not in ("correct", "gamma")}
    with pytest.raises(InputError, match=r"results.jsonl:1: lacks correct, gamma: .*run the job"):
        records.read_jobs([folder_of([old], tmp_path / "old")])


@pytest.mark.parametrize("text", ["", "{", "3\n", '{"id": '])
def test_files_that_hold_no_rows_are_refused(tmp_path, text):
    (tmp_path / "results.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"results.jsonl"):
        records.read_jobs([tmp_path])


@pytest.mark.parametrize("text", [None, "", "[]", "{"])
def test_flags_that_cannot_be_read_are_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "flags.json").write_text(text)
    with pytest.raises(InputError, match=r"flags.json: cannot be read"):
        read_flags(JobLayout(tmp_path))
