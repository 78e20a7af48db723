"""The mesh of devices, and the placement of arrays on it.

The mesh has three axes. `runs` divides the runs of a population, which never communicate. `data`
divides the examples of each run, whose gradients are summed. `model` divides the weights of a model
that is too large for one device.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("runs", "data", "model")
BY_RUN = PartitionSpec("runs")


def make_mesh(
    runs: int = 1, data: int = 1, model: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Makes the mesh of the first `runs * data * model` of some devices, of all by default.

    Raises:
        ValueError: there are fewer devices.
    """
    needed, devices = runs * data * model, jax.devices() if devices is None else devices
    if needed > len(devices):
        raise ValueError(f"needs {needed} devices, and there are {len(devices)}")
    devices = devices[:needed]
    return jax.make_mesh((runs, data, model), AXES, (AxisType.Auto,) * 3, devices=devices)


def place(tree: Any, mesh: Mesh, specs: Any) -> Any:
    """Puts a pytree onto the mesh.

    Several processes that share a mesh call this together, each with the whole tree; each puts the
    part of its own devices.

    Args:
        tree: of arrays.
        mesh: where they are put.
        specs: one `PartitionSpec` for the whole tree, or a pytree prefix of them.
    """

    def put(spec: PartitionSpec, part: Any) -> Any:
        sharding = NamedSharding(mesh, spec)
        if not mesh.is_multi_process:
            return jax.device_put(part, sharding)
        # device_put would make the processes compare the whole tree first.
        arrays = jax.tree.map(np.asarray, part)
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]),
            arrays,
        )

    return jax.tree.map(put, specs, tree)


def shapes_on(tree: Any, mesh: Mesh, specs: Any) -> Any:
    """The shapes of a pytree's arrays, sharded as `place` would; arguments as for `place`."""

    def shape(spec: PartitionSpec, part: Any) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), part
        )

    return jax.tree.map(shape, specs, tree)


def keep_whole(x: jax.Array) -> jax.Array:
    """Keeps an array, and its gradient, whole on every device of the mesh axis `model`.

    Functions that XLA divides among these devices call this where they have summed over the axis.
    XLA would otherwise divide what follows, too, and move it between devices many times. Without
    such an axis the array is as it was.
    """
    if model_shards() <= 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


def model_shards() -> int:
    """The size of the mesh axis `model` in the function that JAX traces; 0 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get("model", 0)


def by_platform(*arrays: Any, default: Callable[..., Any], **ways: Callable[..., Any]) -> Any:
    """Calls the function that is meant for the platform of the devices.

    Like `jax.lax.platform_dependent`, but where the mesh of the traced function consists of CPUs or
    TPUs, JAX traces the function for that platform alone. Tracing kernels for others takes long.

    Args:
        *arrays: the arguments of each function.
        default: the function for platforms without one of their own.
        **ways: the functions for `cpu`, `cuda` and `tpu`.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = device and device.device_kind.split()[0].lower()
    if platform in ("cpu", "tpu"):
        return ways.get(platform, default)(*arrays)
    return jax.lax.platform_dependent(*arrays, default=default, **ways)


Shards = tuple[slice, slice]
"""Some run shards and some data shards of a mesh."""

ALL_SHARDS: Shards = (slice(None), slice(None))


def local_shards(mesh: Mesh) -> Shards:
    """Finds the shards, and those between them, that have devices of this process."""
    local = np.vectorize(lambda device: device.process_index == jax.process_index())(mesh.devices)
    shards = np.nonzero(local.any(axis=2))
    return tuple(slice(int(own.min()), int(own.max()) + 1) for own in shards)  # type: ignore[return-value]


def place_part(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Puts packs onto the mesh, of which each process has those of its `local_shards`.

    Args:
        tree: of arrays of the process's own packs. Axis 1 is divided among the run shards, and axis
            2 among the data shards.
        mesh: where they are put.
        spec: `PartitionSpec(None, "runs", "data")`.
    """
    if not mesh.is_multi_process:
        return place(tree, mesh, spec)
    sharding, local = NamedSharding(mesh, spec), local_shards(mesh)
    sizes = mesh.shape["runs"], mesh.shape["data"]

    def put(x: np.ndarray) -> jax.Array:
        shape, before = list(x.shape), [0] * x.ndim
        for axis, (own, size) in enumerate(zip(local, sizes, strict=True), start=1):
            each = x.shape[axis] // (own.stop - own.start)
            shape[axis], before[axis] = each * size, each * own.start

        def part(index: Any) -> np.ndarray:
            ranges = [range(n)[one] for n, one in zip(shape, index, strict=True)]
            return x[
                tuple(
                    slice(own.start - first, own.stop - first)
                    for own, first in zip(ranges, before, strict=True)
                )
            ]

        return jax.make_array_from_callback(tuple(shape), sharding, part)

    return jax.tree.map(put, tree)


def on_host(tree: Any) -> Any:
    """Copies a pytree to NumPy arrays.

    Several processes that share a mesh call this together, and each gets the whole arrays.
    """

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
    return place(params, mesh, param_specs(params, mesh, partition_spec))


def param_specs(
    params: Mapping[str, Any],
    mesh: Mesh,
    partition_spec: Callable[[tuple[str, ...]], PartitionSpec],
) -> dict[str, Any]:
    """The sharding of each of a model's weights; arguments as for `place_params`."""
    flat = traverse_util.flatten_dict(params)

    def spec(path: tuple[str, ...], shape: tuple[int, ...]) -> PartitionSpec:
        wanted = partition_spec(path)
        if "model" in wanted and shape[wanted.index("model")] % mesh.shape["model"] == 0:
            return wanted
        return PartitionSpec()

    return traverse_util.unflatten_dict({path: spec(path, x.shape) for path, x in flat.items()})
