"""Jobs whose folder is on an object store, with fsspec's store in memory as one."""

import asyncio
import json
import shutil
from pathlib import Path

import fsspec
import pytest
from fsspec.asyn import AsyncFileSystem
from rich.console import Console

from experiments import main
from tests.helpers import toy_job
from wayward_jax.errors import InputError
from wayward_jax.jobs import job, records
from wayward_jax.jobs.object_stores import local, mirrored
from wayward_jax.jobs.progress_bar import ProgressReporter
from wayward_jax.jobs.records import read_jobs

STORE = fsspec.filesystem("memory")
FLAGS = {"gamma": (0.5,), "steps": 20, "population": 2, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_job.make(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def url():
    """The URL of an empty place, beside a folder of a similar name."""
    STORE.pipe("/bucket/job2/results.jsonl", b"another's")
    yield "memory://bucket/job"
    STORE.rm("/bucket", recursive=True)


def run_job(folder, out_dir, mirror=None):
    settings = toy_job.settings(folder, out_dir, **FLAGS)
    with ProgressReporter(Console(quiet=True)) as watch:
        return job.run_job(settings, main.EXPERIMENT, out_dir, watch, mirror).records


def run_job_at(url, folder):
    with mirrored(url) as mirror:
        return run_job(folder, mirror.folder, mirror)


@pytest.fixture(scope="module")
def undisturbed(folder):
    run_job(folder, folder / "undisturbed")
    return folder / "undisturbed"


def assert_same(url, undisturbed):
    """Rows and prompts to the bit, and the same files, as who reads the store finds them."""
    with local([url]) as (found,):
        rows, expected = (
            [{**row, "seconds": 0} for row in toy_job.rows(run.record for run in read_jobs([each]))]
            for each in (found, undisturbed)
        )
        assert rows == expected
        for row in rows:
            assert (toy_job.prompt(found, row) == toy_job.prompt(undisturbed, row)).all()
        names = {path.name for path in undisturbed.iterdir()} - {".lock"}
        assert {path.name for path in found.iterdir()} == names
    assert not STORE.find("/bucket/job/in_flight")
    assert STORE.cat("/bucket/job2/results.jsonl") == b"another's"


@pytest.mark.slow
def test_whenever_it_is_cut_off_from_the_store_the_job_goes_on_there(
    folder, url, undisturbed, monkeypatch
):
    """After so many objects were written; each attempt begins on a machine with nothing."""
    whole = type(STORE).put_file
    for limit in (3, 17, 40):
        written = 0

        def put_file(store, source, target, limit=limit, **options):
            nonlocal written
            if written == limit:
                raise ConnectionError("the store is gone")
            written += 1
            whole(store, source, target, **options)

        with monkeypatch.context() as patched:
            patched.setattr(type(STORE), "put_file", put_file)
            with pytest.raises(InputError, match=rf"^out_dir='{url}': cannot be written"):
                run_job_at(url, folder)
    run_job_at(url, folder)
    assert_same(url, undisturbed)


@pytest.mark.slow
def test_a_finished_job_is_found_finished(folder, url, undisturbed):
    STORE.put(str(undisturbed), "/bucket/job", recursive=True)
    before = STORE.find("/bucket/job", detail=True)
    assert len(run_job_at(url, folder)) == 3
    assert STORE.find("/bucket/job", detail=True) == before


@pytest.mark.slow
def test_a_job_of_other_flags_is_refused_by_its_url(folder, url, undisturbed):
    STORE.put(str(undisturbed), "/bucket/job", recursive=True)
    flags = toy_job.settings(folder, None, **{**FLAGS, "steps": 30}).texts()
    STORE.pipe("/bucket/job/flags.json", json.dumps(flags).encode())
    with pytest.raises(InputError, match=rf"^out_dir='{url}': is a job of other flags"):
        run_job_at(url, folder)


@pytest.mark.slow
def test_shards_and_local_jobs_are_read_together(url, undisturbed, tmp_path):
    rows = records.read_lines(undisturbed / "results.jsonl")
    for number, own in enumerate((rows[:1], rows[1:])):
        shard = tmp_path / f"shard-{number}-of-2"
        (shard / "in_flight").mkdir(parents=True)
        (shard / "in_flight" / "large").touch()
        records.append_lines(shard / "results.jsonl", own)
    STORE.put(str(tmp_path), "/bucket/job", recursive=True)
    with local([url, str(undisturbed)]) as folders:
        assert toy_job.rows(run.record for run in read_jobs(folders)) == rows
        assert not list(folders[0].rglob("large"))
        assert folders[1] == undisturbed
    assert not folders[0].exists()
    assert undisturbed.exists()


class Slow(AsyncFileSystem):
    """A store whose answers take a while; it counts the requests that are under way."""

    protocol, most, objects = "slow", 0, {}

    async def _transfer(self):
        Slow.waiting = getattr(Slow, "waiting", 0) + 1
        Slow.most = max(Slow.most, Slow.waiting)
        await asyncio.sleep(0.01)
        Slow.waiting -= 1

    async def _put_file(self, source, target, **options):
        await self._transfer()
        rows = [name for name in self.objects if name.endswith(".jsonl")]
        assert not rows or target.endswith(".jsonl")  # rows come last
        self.objects[target] = Path(source).read_bytes()

    async def _get_file(self, source, target, **options):
        await self._transfer()
        Path(target).write_bytes(self.objects[source])

    async def _find(self, path, **options):
        return sorted(self.objects)

    async def _rm_file(self, path, **options):
        await self._transfer()
        del self.objects[path]


def test_files_are_sent_fetched_and_removed_side_by_side(tmp_path):
    fsspec.register_implementation("slow", Slow, clobber=True)
    names = [f"checkpoints/a/{i}" for i in range(20)]
    with mirrored("slow://bucket/job") as mirror:
        for name in ["results.jsonl", "measurements.jsonl", *names]:
            (mirror.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (mirror.folder / name).write_text(name)
        mirror.send()
        assert Slow.most > 4
        Slow.most = 0
        with local(["slow://bucket/job"]) as (found,):
            assert all((found / name).read_text() == name for name in names)
        assert Slow.most > 4
        shutil.rmtree(mirror.folder / "checkpoints")
        Slow.most = 0
        mirror.send()
    assert Slow.most > 4
    assert sorted(Slow.objects) == [
        f"bucket/job/{name}" for name in ("measurements.jsonl", "results.jsonl")
    ]


@pytest.mark.parametrize(
    "name", ["memory://bucket/absent", "nothing://bucket/job", "x://job", "memory://bucket/[1]"]
)
def test_what_cannot_be_read_is_named_in_one_line(name):
    with pytest.raises(InputError) as error, local([name]) as folders:
        read_jobs(folders)
    line = error.value.as_flag()
    assert line.startswith((f"--runs={name}: ", f"{name}/results.jsonl: "))
    assert "\n" not in line
