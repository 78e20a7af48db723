"""The program as a user runs it: a whole job on a tiny model, and input that it refuses."""

import contextlib
import io
import json

import numpy as np
import pytest
from rich.console import Console

import experiments.run
from experiments import flags, main
from tests.helpers import toy_job
from tests.helpers.toy_job import settings
from tests.helpers.toy_models import make_table
from wayward_jax.errors import InputError
from wayward_jax.jobs import job, loader, records
from wayward_jax.jobs.progress_bar import ProgressReporter
from wayward_jax.runs import RunRecord

FIELDS = [
    "model",
    "task",
    "method",
    "template",
    "target_name",
    "target_text",
    "init",
    "gamma",
    "seed",
    "steps",
    "batch_size",
    "learning_rate",
    "n_train",
    "n_eval",
    "accuracy",
    "macro_f1",
    "majority",
    "prompt_f1",
    "token_f1",
    "text",
    "token_ids",
    "distance",
    "task_loss",
    "seconds",
    "unprompted",
    "dtype",
    "examples_digest",
    "device",
    "devices",
    "version",
    "libraries",
    "commit",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_job.make(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def finished(folder):
    """A job of two seeds by the program, in this process, and what it prints."""
    out_dir = folder / "finished"
    given = toy_job.flags(folder, seeds="1,2", mesh="runs:1", out_dir=out_dir)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        experiments.run.main(toy_job.texts(given))
    return out_dir, printed.getvalue()


def test_a_row_says_everything_that_users_rely_on(finished):
    rows = records.read_lines(finished[0] / "results.jsonl")
    assert len(rows) == 6  # p_star, and one target with and without a constraint, two seeds
    for row in rows:
        assert set(FIELDS) <= set(row)
        assert row["n_train"] == 40
        assert row["n_eval"] == 20


def test_a_row_says_which_examples_were_predicted_right(finished):
    for row in records.read_lines(finished[0] / "results.jsonl"):
        assert RunRecord.from_json(row).correct.shape == (20,)
        assert RunRecord.from_json(row).correct.mean() == pytest.approx(row["accuracy"])


def test_a_strong_pull_makes_the_prompt_read_as_its_target(finished):
    rows = [r for r in records.read_lines(finished[0] / "results.jsonl") if r["gamma"]]
    assert [row["prompt_f1"] for row in rows] == [1.0, 1.0]
    assert {row["text"] for row in rows} == {"w7 w8 w9"}


def test_checkpoints_hold_the_prompts_that_were_read(finished, folder):
    out_dir, _ = finished
    table = make_table()
    for row in records.read_lines(out_dir / "results.jsonl"):
        prompt = toy_job.prompt(out_dir, row)
        distances = ((prompt[:, None] - table[None]) ** 2).sum(-1)
        assert distances.argmin(1).tolist() == row["token_ids"]


def test_the_folder_has_the_flags_and_the_report(finished):
    out_dir, _ = finished
    assert json.loads((out_dir / "flags.json").read_text())["seeds"] == "1,2"
    assert (out_dir / "report" / "report.html").is_file()
    assert (out_dir / "report" / "figures" / "training.png").is_file()


def test_the_output_ends_with_accuracies_the_reading_and_the_report(finished):
    out_dir, output = finished
    assert "p_star" in output
    assert "'w7'" in output
    shown = output.replace("\n", "")
    assert shown.endswith(f"Open {out_dir / 'report' / 'report.html'}")


@pytest.mark.slow
def test_a_job_without_p_star_ends_with_a_report_that_compares_nothing(finished, folder, tmp_path):
    """Its single run is taken over from the finished job, with its answers."""
    before, _ = finished
    row = next(row for row in records.read_lines(before / "results.jsonl") if row["gamma"])
    changed = {"only": row["id"], "reuse": before, "out_dir": tmp_path / "job", "seeds": "1,2"}
    given = toy_job.flags(folder, mesh="runs:1", **changed)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        experiments.run.main(toy_job.texts(given))
    (own,) = records.read_lines(tmp_path / "job" / "results.jsonl")
    assert own == {**row, "checkpoint": own["checkpoint"]}
    page = (tmp_path / "job" / "report" / "report.html").read_text()
    assert "have no p_star" in page
    assert "What they answer" not in page
    assert "w7 w8 w9" in page
    assert "'w7'" in printed.getvalue()


@pytest.mark.slow
def test_another_jobs_results_are_never_overwritten(finished, folder):
    out_dir, _ = finished
    before = {path: path.read_bytes() for path in out_dir.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as refused:
        experiments.run.main(toy_job.texts(toy_job.flags(folder, out_dir=out_dir)))
    assert refused.value.as_flag().startswith("--out_dir=")
    assert {path: path.read_bytes() for path in out_dir.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "", "all"])
def test_a_population_is_a_number_or_auto(given, value):
    assert given(population="auto").population is None
    assert given(population="12").population == 12
    with pytest.raises(InputError, match=r"^population=[^\n]*auto$"):
        given(population=value)


@pytest.mark.parametrize(
    "value",
    ["", "4", "runs", "runs:", "runs:0", "runs:-1", "runs:x", "rows:2", "runs:1,runs:2", "runs:2,"],
)
def test_a_mesh_names_each_axis_once_with_a_size_or_is_auto(given, value):
    assert given(mesh="auto").mesh is None
    assert given(mesh="data:2").mesh == {"data": 2}
    assert given(mesh="model:1,runs:4,data:2").mesh == {"runs": 4, "data": 2, "model": 1}
    with pytest.raises(InputError, match=r"^mesh=[^\n]*runs:4,data:2,model:1$"):
        given(mesh=value)


@pytest.mark.parametrize("value", ["0", "-2", "1.5", ""])
def test_k_shot_is_a_number_or_minus_one(given, value):
    assert given(k_shot=-1).k_shot == -1
    assert given(k_shot=16).k_shot == 16
    with pytest.raises(InputError, match=r"^k_shot=[^\n]*-1 for all$"):
        given(k_shot=value)


@pytest.mark.parametrize(
    "value", ["", "1", "1/", "/2", "2/2", "-1/2", "0/0", "1.0/2", "a/b", "1/2/3"]
)
def test_a_shard_is_one_of_so_many(given, value):
    assert given(shard=None).shard is None
    assert given(shard="1/2", out_dir="job").shard == (1, 2)
    with pytest.raises(InputError, match=r"^shard="):
        given(shard=value, out_dir="job")
    with pytest.raises(InputError, match=r"^out_dir.*shard"):
        given(shard="1/2")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model": ("nothing",)}, "model="),
        ({"task": ("nothing",)}, "^task="),
        ({"targets": "nothing"}, "^targets="),
        ({"template": 7}, "template="),
        ({"init": ("nothing",)}, "^init="),
        ({"prompt_length": (60,)}, "prompt_length"),
        ({"k_shot": 1000}, "k_shot"),
        ({"mesh": "runs:1000"}, "^mesh=.*1000 devices"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(folder, changed, named):
    out_dir = folder / "refused"
    given = settings(folder, out_dir, **changed)
    with pytest.raises(InputError, match=named), ProgressReporter(Console(quiet=True)) as watch:
        job.run_job(given, main.EXPERIMENT, out_dir, watch)
    assert not out_dir.exists()


def test_a_run_that_the_flags_do_not_ask_for_is_refused(folder):
    out_dir = folder / "refused"
    given = settings(folder, out_dir, only=("123456789abc",))
    with pytest.raises(InputError, match="only"), ProgressReporter(Console(quiet=True)) as watch:
        job.run_job(given, main.EXPERIMENT, out_dir, watch)
    assert not out_dir.exists()


@pytest.mark.slow
def test_a_run_can_start_at_an_earlier_checkpoint(finished, folder):
    out_dir, _ = finished
    row = records.read_lines(out_dir / "results.jsonl")[-1]
    source = f"{out_dir}/{row['checkpoint']}:{row['id']}"
    # This job has as many steps and runs as the finished one, so its programs are compiled already.
    changed = {"seeds": "1,2", "mesh": "runs:1", "init": source, "learning_rate": 0.0}
    given = flags.job_settings(toy_job.texts(toy_job.flags(folder, **changed)))
    with ProgressReporter(Console(quiet=True)) as watch:
        records_ = job.run_job(given, main.EXPERIMENT, folder / "continued", watch).records
    again = toy_job.prompt(folder / "continued", records_[-1].to_json())
    np.testing.assert_array_equal(again, toy_job.prompt(out_dir, row))


@pytest.mark.slow
def test_what_does_not_fit_into_memory_is_refused_before_anything_is_written(folder, monkeypatch):
    monkeypatch.setattr(loader, "free_bytes", lambda devices: 1000)
    out_dir = folder / "refused"
    with (
        pytest.raises(InputError, match="batch_size=4"),
        ProgressReporter(Console(quiet=True)) as watch,
    ):
        job.run_job(settings(folder, out_dir), main.EXPERIMENT, out_dir, watch)
    assert not out_dir.exists()
