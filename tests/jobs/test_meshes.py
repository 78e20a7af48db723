"""The mesh of a job to which none is given: what is chosen, said and kept, and what comes of it."""

import json

import jax
import pytest

from experiments import main
from tests.helpers import toy_job
from wayward_jax.errors import InputError
from wayward_jax.jobs import inputs, job
from wayward_jax.jobs import loader as loading
from wayward_jax.jobs.loader import Loader

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="there are fewer than 8 devices")

# Three runs, so that four devices are left over.
CHOSEN = {"runs": 4, "data": 2, "model": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_job.make(tmp_path_factory.mktemp("meshes"))


def run_job(folder, out_dir, stop_after=None, **changed):
    """The rows of a job, and its notes."""
    notes = []
    settings = toy_job.settings(folder, out_dir, **{"checkpoint_every": 1, "steps": 8, **changed})
    with toy_job.CountingReporter() as watch:
        watch.note = notes.append
        if stop_after is not None:
            watch.stepped = lambda steps, figures: stop_after(steps)
        records = job.run_job(settings, main.EXPERIMENT, out_dir, watch).records
    return {row["id"]: row for row in toy_job.rows(records)}, notes


def sizes(out_dir):
    return json.loads((out_dir / "plan.json").read_text())["made_for"]["meshes"]


@pytest.fixture(scope="module")
def finished(folder):
    """A job, on the mesh that it chose."""
    return run_job(folder, folder / "auto", mesh="auto")


@pytest.mark.slow
def test_a_job_says_and_keeps_the_mesh_that_it_chose_and_its_rows_are_those_of_one_device(
    folder, finished
):
    rows, notes = finished
    assert notes == ["gpt2: --mesh=runs:4,data:2,model:1 for 3 prompts at once"]
    assert sizes(folder / "auto") == {"gpt2": CHOSEN}
    alone, notes = run_job(folder, folder / "alone", mesh="runs:1")
    assert notes == []
    assert rows.keys() == alone.keys()
    for id_, row in rows.items():
        toy_job.assert_same_outcome(row, alone[id_])
        assert (row["devices"], alone[id_]["devices"]) == (8, 1)


@pytest.mark.slow
def test_a_job_that_goes_on_has_the_mesh_of_its_first_start_whatever_would_be_chosen_now(
    folder, finished, tmp_path, monkeypatch
):
    def stop(steps):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(folder, tmp_path / "job", stop_after=stop, mesh="auto")
    with monkeypatch.context() as patched:
        patched.setattr(loading, "choose_sizes", lambda *given: {"data": 4, "model": 2})
        rows, _ = run_job(folder, tmp_path / "job", mesh="auto")
    assert sizes(tmp_path / "job") == {"gpt2": CHOSEN}
    assert [{**row, "seconds": 0} for row in rows.values()] == [
        {**row, "seconds": 0} for row in finished[0].values()
    ]


@pytest.mark.slow
def test_a_job_whose_programs_do_not_fit_says_so_before_its_first_step_and_goes_on_with_more(
    folder, finished, tmp_path, monkeypatch
):
    weights = Loader(toy_job.settings(folder, None)).open("gpt2").nbytes
    steps = []
    with monkeypatch.context() as patched:
        patched.setattr(loading, "free_bytes", lambda devices: weights + 1000)
        patched.setattr(inputs, "pack_tokens", lambda *arguments: 2048)
        with pytest.raises(InputError) as error:
            run_job(folder, tmp_path / "job", stop_after=steps.append, mesh="runs:4,data:2")
    said = str(error.value)
    assert "takes 0.0 GiB of each device, and 0.0 are free: " in said
    assert said.startswith(("population=3", "batch_size=4", "mesh="))
    assert "\n" not in said
    assert not steps
    rows, _ = run_job(folder, tmp_path / "job", mesh="runs:4,data:2")
    assert [{**row, "seconds": 0} for row in rows.values()] == [
        {**row, "seconds": 0} for row in finished[0].values()
    ]


def test_a_mesh_that_is_given_is_taken_as_it_is(folder):
    loader = Loader(toy_job.settings(folder, None, mesh="data:2"))
    assert dict(loader.choose_mesh("gpt2", 512).shape) == {"runs": 1, "data": 2, "model": 1}
    with pytest.raises(InputError, match=r"^mesh='runs:9': needs 9 devices, and there are 8$"):
        Loader(toy_job.settings(folder, None, mesh="runs:9"))


def test_each_model_has_a_mesh_of_its_own(folder, monkeypatch):
    """The weights of one take more than the memory that there is."""
    settings = toy_job.settings(
        folder, None, model=f"{folder / 'gpt2'},{folder / 'copy'}", mesh="auto"
    )
    (folder / "copy").symlink_to(folder / "gpt2")
    loader = Loader(settings)
    weights = loader.open("gpt2").nbytes
    loader.free_bytes = 2 * weights
    assert dict(loader.choose_mesh("gpt2", 8).shape) == {"runs": 8, "data": 1, "model": 1}
    loader.free_bytes = weights // 2
    assert dict(loader.choose_mesh("copy", 8).shape) == {"runs": 2, "data": 1, "model": 4}
    assert loader.model("copy").device_nbytes < weights / 2
    assert loader.model("gpt2").device_nbytes == weights
