"""What made a result beside the definition of its run: data, precision, devices and versions."""

import dataclasses
import functools
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Self

from jax.sharding import Mesh

from wayward_jax import __version__
from wayward_jax.models import LanguageModel

LIBRARIES = ("jax", "jaxlib", "optax")


INCIDENTAL = ("device", "devices", "version", "libraries", "commit")
"""The attributes of `Provenance` that should not decide results; the others do."""


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What made a result.

    Attributes:
        dtype: of the frozen weights.
        readable: the tokens that a prompt can be read as, see `LanguageModel.readable`.
        examples_digest: sixteen hexadecimal digits of the encoded examples, see `EncodedTask`.
        device: the kind of the devices.
        devices: the number of devices.
        version: of wayward_jax.
        libraries: the versions of `LIBRARIES`, as in `jax 0.10.2, jaxlib 0.10.2, optax 0.2.8`.
        commit: of the code; empty if the code is not in a git repository.
    """

    dtype: str
    readable: str
    examples_digest: str
    device: str
    devices: int
    version: str
    libraries: str
    commit: str

    @classmethod
    def here(cls, model: LanguageModel, examples_digest: str, mesh: Mesh) -> Self:
        """The provenance of what this process makes with a model, examples and devices."""
        return cls(
            dtype=model.embedding_table().dtype.name,
            readable=model.readable,
            examples_digest=examples_digest,
            device=mesh.devices.flat[0].device_kind,
            devices=mesh.size,
            version=__version__,
            libraries=", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES),
            commit=_commit(),
        )


@functools.cache
def _commit() -> str:
    """The commit of this file's repository, `-dirty` after it if files were changed since."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()
