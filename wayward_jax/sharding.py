"""Devices as a mesh of three axes, and where arrays lie on it.

`runs`: the runs of a population, which never communicate. `data`: the examples of a run, whose
gradients are summed. `model`: the weights of a model too large for one device.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("runs", "data", "model")
BY_RUN = PartitionSpec("runs")


def make_mesh(runs: int = 1, data: int = 1, model: int = 1) -> Mesh:
    """The mesh of the first `runs * data * model` devices.

    Raises:
        ValueError: there are fewer.
    """
    needed, devices = runs * data * model, jax.devices()
    if needed > len(devices):
        raise ValueError(f"needs {needed} devices, and there are {len(devices)}")
    devices = devices[:needed]
    return jax.make_mesh((runs, data, model), AXES, (AxisType.Auto,) * 3, devices=devices)


def place(tree: Any, mesh: Mesh, specs: Any) -> Any:
    """Puts a pytree onto the mesh; `specs` is one for all, or a pytree prefix of them.

    Where several processes share the mesh, each has the whole tree and puts its devices' part.
    """

    def put(spec: PartitionSpec, part: Any) -> Any:
        sharding = NamedSharding(mesh, spec)
        if not mesh.is_multi_process:
            return jax.device_put(part, sharding)
        # device_put would have the processes compare the whole tree first.
        arrays = jax.tree.map(np.asarray, part)
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]),
            arrays,
        )

    return jax.tree.map(put, specs, tree)


def on_host(tree: Any) -> Any:
    """A pytree as NumPy arrays, whole on every process that shares the mesh; all ask together."""

    def whole(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(whole, tree)


def place_params(
    params: Mapping[str, Any],
    mesh: Mesh,
    partition_spec: Callable[[tuple[str, ...]], PartitionSpec],
) -> dict[str, Any]:
    """Puts a model's weights onto the mesh, sharded over the axis `model`.

    Args:
        params: the weights as a nested dictionary.
        mesh: the mesh.
        partition_spec: gives the sharding of the parameter at a path, see `Family`. A parameter
            whose sharded dimension cannot be split evenly is copied to all devices.
    """
    flat = traverse_util.flatten_dict(params)

    def spec(path: tuple[str, ...], shape: tuple[int, ...]) -> PartitionSpec:
        wanted = partition_spec(path)
        if "model" in wanted and shape[wanted.index("model")] % mesh.shape["model"] == 0:
            return wanted
        return PartitionSpec()

    specs = {path: spec(path, x.shape) for path, x in flat.items()}
    return traverse_util.unflatten_dict(place(flat, mesh, specs))
