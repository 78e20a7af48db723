"""The loader of a job's models, which chooses their meshes and keeps one on the devices."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import jax
from jax.sharding import Mesh

from wayward_jax import models
from wayward_jax.errors import InputError
from wayward_jax.jobs.processes import on_primary
from wayward_jax.jobs.settings import Settings
from wayward_jax.models import LanguageModel
from wayward_jax.models.sources import short_name
from wayward_jax.sharding import make_mesh
from wayward_jax.training.memory import free_bytes
from wayward_jax.training.meshes import choose_sizes, write_mesh


def keep_compiled(cache_dir: Path) -> None:
    """Turns on JAX's compilation cache, unless the user of JAX has chosen a folder for it.

    After a first compilation it would stay off.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir / "compiled"))


class Loader:
    """Loads the models of a job onto its devices, and keeps only the last one there.

    Attributes:
        dtype: of frozen weights.
        devices: that the job uses.
        free_bytes: of each device, without any weights.
        meshes: by the model's name, once they are chosen.
    """

    def __init__(
        self,
        settings: Settings,
        devices: Sequence[jax.Device] | None = None,
        free_bytes: int | None = None,
        kept: Mapping[str, Mapping[str, int]] = MappingProxyType({}),
    ) -> None:
        """Loads nothing yet.

        Args:
            settings: of the job.
            devices: that there are; None asks JAX.
            free_bytes: of each; None asks a device.
            kept: the sizes of meshes that an earlier start of the job chose, by the model's name.

        Raises:
            InputError: two models have one name, or there are fewer devices than the mesh needs.
        """
        self.devices = jax.devices() if devices is None else devices
        self.dtype = models.resolve_dtype(settings.dtype, self.devices[0])
        self._settings, self._kept = settings, kept
        self._sources = _by_short_name(settings.model)
        self._opened: dict[str, LanguageModel] = {}
        self._placed: LanguageModel | None = None
        self.meshes: dict[str, Mesh] = {}
        if settings.mesh is not None:
            mesh = _make_mesh(settings.mesh, self.devices)
            self.meshes = dict.fromkeys(self._sources, mesh)
            self.devices = list(mesh.devices.flat)
        self.free_bytes = _free_bytes(self.devices) if free_bytes is None else free_bytes

    @property
    def names(self) -> dict[str, str]:
        """The text of `--model` for each model, by the model's name."""
        return self._sources

    def open(self, name: str) -> LanguageModel:
        """The model of this name, its weights on no device yet."""
        if name not in self._opened:
            self._opened[name] = models.open_model(
                self._sources[name],
                cache_dir=self._settings.cache_dir,
                assets_dir=self._settings.assets_dir,
                dtype=self.dtype,
                readable=self._settings.readable,
                bos=self._settings.bos,
            )
        return self._opened[name]

    def choose_mesh(self, name: str, runs: int) -> Mesh:
        """Chooses the mesh of a model of which so many runs are tuned at once.

        That is the mesh of the flags or, without one, that of an earlier start on as many devices.
        """
        if name not in self.meshes:
            sizes = self._kept.get(name, {})
            if math.prod(sizes.values()) != len(self.devices):
                sizes = choose_sizes(
                    len(self.devices),
                    self.free_bytes,
                    self.open(name).nbytes,
                    runs,
                    self._settings.batch_size,
                )
            self.meshes[name] = _make_mesh(sizes, self.devices)
        return self.meshes[name]

    def model(self, name: str) -> LanguageModel:
        """The model of this name on its mesh; the one before must not be in use any more."""
        if self._placed is None or self._placed.name != name:
            self._placed = None
            self._placed = self.place(self.open(name), self.meshes[name])
        return self._placed

    def place(self, model: LanguageModel, mesh: Mesh) -> LanguageModel:
        """A model with its weights on its mesh."""
        return model.placed(mesh)


def _by_short_name(sources: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for source in sources:
        name = short_name(source)
        if name in found:
            raise InputError(
                "model",
                source,
                f"is called {name} in the results, as --model={found[name]} is: rename one of the "
                "two, or give them to two jobs",
            )
        found[name] = source
    return found


@on_primary
def _free_bytes(devices: Sequence[jax.Device]) -> int:
    """`free_bytes` on the primary process, so that all choose the same meshes by it."""
    return free_bytes(devices)


def _make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device]) -> Mesh:
    given = write_mesh(sizes)
    try:
        mesh = make_mesh(**sizes, devices=devices)
    except ValueError as error:
        raise InputError("mesh", given, str(error)) from error
    if jax.process_count() > 1 and mesh.size < jax.device_count():
        raise InputError(
            "mesh",
            given,
            f"uses {mesh.size} of the {jax.device_count()} devices that the processes of this job "
            "have: use all",
        )
    return mesh
