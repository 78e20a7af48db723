"""The figures that a job shows while it runs: in TensorBoard, in a log, and in a profile."""

import builtins
import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from experiments import main
from tests.helpers import toy_job
from wayward_jax.errors import InputError
from wayward_jax.jobs import job, progress_bar, records
from wayward_jax.jobs.layout import JobLayout
from wayward_jax.jobs.progress_bar import ProgressReporter
from wayward_jax.jobs.tensorboard import TensorBoardWriter

FLAGS = {"gamma": 0, "seeds": (1, 2), "steps": 8, "population": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_job.make(tmp_path_factory.mktemp("monitored"))


@pytest.fixture(scope="module")
def monitored(folder):
    """A job of two populations, and its log."""
    out_dir, log = folder / "monitored", io.StringIO()
    settings = toy_job.settings(folder, out_dir, **FLAGS, tensorboard=True, profile=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress_bar, "SECONDS_BETWEEN_LINES", 0)
        with ProgressReporter(
            Console(file=log, width=80), TensorBoardWriter(JobLayout(out_dir))
        ) as watch:
            job.run_job(settings, main.EXPERIMENT, out_dir, watch)
    return out_dir, log.getvalue()


@pytest.fixture(scope="module")
def events(monitored):
    """The points of each figure by the id of a population's first run."""

    def value(event):
        return tensor_util.make_ndarray(event.tensor_proto).item()

    found = {}
    for folder in (monitored[0] / "tensorboard").iterdir():
        task, _, run = folder.name.rpartition("-")
        assert task == "mood"
        read = EventAccumulator(str(folder)).Reload()
        found[run] = {
            name: {event.step: value(event) for event in read.Tensors(name)}
            for name in read.Tags()["tensors"]
        }
    return found


@pytest.fixture(scope="module")
def populations(monitored):
    """The rows of each population by the id of its first run."""
    out_dir, _ = monitored
    rows = {row["id"]: row for row in records.read_lines(out_dir / "results.jsonl")}
    plans = json.loads((out_dir / "plan.json").read_text())["populations"]
    return {plan["runs"][0]: [rows[run] for run in plan["runs"]] for plan in plans}


@pytest.mark.slow
def test_tensorboard_shows_the_results_of_every_population(events, populations):
    assert events.keys() == populations.keys()
    for run, rows in populations.items():
        accuracies = [row["accuracy"] for row in rows]
        assert events[run]["accuracy/mean"] == {8: pytest.approx(np.mean(accuracies))}
        assert events[run]["accuracy/p10"] == {8: pytest.approx(np.quantile(accuracies, 0.1))}
        assert events[run]["diverged"] == {8: 0}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dev_accuracy", "prompt_f1"])
def test_tensorboard_shows_the_curves_of_the_results(name, events, populations):
    for run, rows in populations.items():
        # p_star aims at nothing, so it has no F1.
        counted = [row for row in rows if row["target_ids"] or name == "dev_accuracy"]
        by_step = {
            points[0]["step"]: pytest.approx(np.mean([point[name] for point in points]))
            for points in zip(*(row["curve"] for row in counted), strict=True)
        }
        assert events[run].get(f"{name}/mean", {}) == by_step


@pytest.mark.slow
@pytest.mark.parametrize("name", ["task_loss", "distance"])
def test_tensorboard_shows_losses_like_those_of_the_results(name, events, populations):
    """There they are the means of some steps, so here they are within what those are made of."""
    for run, rows in populations.items():
        if rows[0]["target_ids"] or name == "task_loss":
            shown = events[run][f"{name}/mean"]
            assert max(shown) == 8
            means = [np.mean([row["curve"][i][name] for row in rows]) for i in range(4)]
            assert min(means) * 0.5 < min(shown.values())
            assert max(shown.values()) < max(means) * 2


@pytest.mark.slow
def test_tensorboard_shows_speed_and_memory(events):
    for figures in events.values():
        steps = list(figures["memory_gib"])
        assert list(figures["tokens_per_second"]) == steps[1:]
        assert min(figures["tokens_per_second"].values()) > 0
        assert min(figures["mfu"].values()) > 0
        assert 0.05 < min(figures["memory_gib"].values()) < 100


@pytest.mark.slow
def test_lines_in_a_log_have_the_same_figures(monitored, events):
    lines = monitored[1].splitlines()
    for figures in events.values():
        for step, loss in figures["task_loss/mean"].items():
            memory = figures["memory_gib"][step]
            (line,) = (x for x in lines if f"steps  loss {loss:.3f}" in x)
            assert f"{memory:.1f} GiB" in line
            if step in figures["tokens_per_second"]:
                assert f"{figures['tokens_per_second'][step]:.0f} tokens/s" in line
        accuracy = figures["accuracy/mean"][8]
        assert any(line.startswith(f"accuracy {accuracy:.3f}  dev accuracy") for line in lines)


@pytest.mark.slow
def test_the_profile_has_the_tuning_program(monitored):
    (file,) = (monitored[0] / "profile").rglob("*.xplane.pb")
    profile = jax.profiler.ProfileData.from_file(str(file))
    names = {event.name for plane in profile.planes for x in plane.lines for event in x.events}
    assert any("train_steps" in name for name in names)


@pytest.mark.slow
def test_a_job_that_is_not_asked_for_it_writes_no_metrics(folder):
    out_dir = folder / "plain"
    with ProgressReporter(Console(quiet=True)) as watch:
        job.run_job(toy_job.settings(folder, out_dir, **FLAGS), main.EXPERIMENT, out_dir, watch)
    assert not (out_dir / "tensorboard").exists()
    assert not (out_dir / "profile").exists()


def test_without_tensorboard_its_extra_is_named(tmp_path, monkeypatch):
    imported = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("tensorboard"):
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"^tensorboard: .*needs .*wayward_jax\[tensorboard\]"):
        TensorBoardWriter(JobLayout(tmp_path / "job"))
    assert not list(tmp_path.iterdir())
