"""The package as it is published: a source distribution, and the wheel that is built of it."""

import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import wayward_jax

ROOT = Path(__file__).parents[2]


def tracked(*folders):
    """The files of the repository that are in some folders, or all of them."""
    if not (ROOT / ".git").exists():
        pytest.skip("the code is not in a git repository, which tells its files from others")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--", *folders]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if (ROOT / name).is_file()}


def build(kind, source, to):
    """Builds a distribution as `python -m build` does, but in this environment."""
    pytest.importorskip("setuptools")
    code = f"import sys; from setuptools import build_meta as b; b.build_{kind}(sys.argv[1])"
    made = subprocess.run(
        [sys.executable, "-c", code, str(to)], cwd=source, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    (path,) = to.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return path


@pytest.mark.slow
def test_wheel_and_source_have_every_file_of_the_packages_and_the_console_scripts(tmp_path):
    checkout = tmp_path / "checkout"
    for name in tracked():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, checkout / name)
    with tarfile.open(build("sdist", checkout, tmp_path)) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    unpacked = {str(file.relative_to(source)) for file in source.rglob("*") if file.is_file()}
    assert tracked("wayward_jax", "experiments", "tests", "docs") <= unpacked

    with zipfile.ZipFile(build("wheel", source, tmp_path)) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (entries,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
        scripts = wheel.read(entries).decode()
    assert names == tracked("wayward_jax", "experiments")
    for program in ("run", "analyze", "audit"):
        assert f"wayward-{program} = experiments.{program}:program" in scripts


@pytest.mark.slow
@pytest.mark.parametrize("program", ["run", "analyze", "audit"])
def test_the_help_of_a_console_script_begins_with_what_the_program_does(program):
    """A console script imports the function and calls it."""
    code = f"from experiments.{program} import program; program()"
    command = [sys.executable, "-c", code, "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    module = importlib.import_module(f"experiments.{program}")
    assert shown.startswith(module.__doc__)


def test_the_citation_names_the_version_of_the_package():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", text, re.M)[1] == wayward_jax.__version__
