"""Rows on disk: all that were added or none, and what a crash leaves of them."""

import dataclasses
import errno
import json
import resource

import pytest

from tests.helpers.finished_runs import best, record, wayward
from wayward_jax.errors import InputError
from wayward_jax.jobs import records
from wayward_jax.jobs.layout import JobLayout
from wayward_jax.runs import Run

ROWS = [{"id": f"{i:012x}", "text": "日本 'w7'\n", "accuracy": i / 7} for i in range(5)]


def test_rows_come_back_in_the_order_they_were_added(tmp_path):
    path = tmp_path / "results.jsonl"
    records.append_lines(path, ROWS[:2])
    records.append_lines(path, ROWS[2:])
    assert records.read_lines(path) == ROWS


def test_rows_that_do_not_fit_on_the_disk_leave_no_trace(tmp_path):
    """The system writes as much as the limit allows, as it does on a disk that gets full."""
    path = tmp_path / "results.jsonl"
    records.append_lines(path, ROWS[:2])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, limits[1]))
    try:
        with pytest.raises(OSError) as error:  # noqa: PT011 - its number is checked below
            records.append_lines(path, ROWS[2:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert records.read_lines(path) == ROWS[:2]
    records.append_lines(path, ROWS[2:])
    assert records.read_lines(path) == ROWS


def test_rows_of_the_old_format_are_refused_with_a_remedy(tmp_path):
    row = record(Run("gpt2", "sst2", 2), 0.8).to_json()
    assert [each.id for each in read_back(tmp_path, row)] == [row["id"]]
    row["projected_text"] = row.pop("text")
    with pytest.raises(InputError) as error:
        read_back(tmp_path, row)
    assert str(error.value) == (
        f"{tmp_path}/results.jsonl:1: lacks text: it was made by another version of wayward_jax, "
        "so run the job again"
    )


def read_back(folder, row):
    (folder / "results.jsonl").write_text(json.dumps(row) + "\n")
    return records.read_records(JobLayout(folder))


def job_of(folder, *made):
    folder.mkdir()
    records.append_lines(folder / "results.jsonl", [each.to_json() for each in made])
    return folder


@pytest.mark.parametrize(
    ("name", "other"),
    [("dtype", "bfloat16"), ("readable", "all"), ("examples_digest", "f" * 16)],
)
def test_jobs_made_of_other_data_or_in_other_precision_are_not_merged(tmp_path, name, other):
    first, second = best(0.8), wayward(0.7)
    second = dataclasses.replace(
        second, provenance=dataclasses.replace(second.provenance, **{name: other})
    )
    folders = [job_of(tmp_path / "a", first), job_of(tmp_path / "b", second)]
    with pytest.raises(InputError, match=rf"b: run .* has {name}={other}, and run .*/a has"):
        records.read_jobs(folders)


def test_jobs_of_other_devices_and_versions_are_merged(tmp_path):
    first, again = best(0.8), best(0.8)
    again = dataclasses.replace(
        again, provenance=dataclasses.replace(again.provenance, device="TPU v5", version="9")
    )
    folders = [job_of(tmp_path / "a", first), job_of(tmp_path / "b", again)]
    assert len(records.read_jobs(folders)) == 1


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_a_row_cut_anywhere_is_dropped_and_the_others_stay(tmp_path, rows):
    path = tmp_path / "results.jsonl"
    records.append_lines(path, ROWS[:rows])
    whole = path.read_bytes()
    records.append_lines(path, [ROWS[rows]])
    longer = path.read_bytes()
    for end in range(len(whole) + 1, len(longer)):
        path.write_bytes(longer[:end])
        assert records.repair(path)
        assert path.read_bytes() == whole


def test_whole_rows_need_no_repair(tmp_path):
    path = tmp_path / "results.jsonl"
    records.append_lines(path, ROWS)
    before = path.read_bytes()
    assert not records.repair(path)
    assert path.read_bytes() == before


def test_a_broken_row_among_others_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n{{broken\n{json.dumps(ROWS[1])}\n")
    with pytest.raises(InputError, match=r"results.jsonl:2"):
        records.read_lines(path)
