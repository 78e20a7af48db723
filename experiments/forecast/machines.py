"""Devices that are not there: their published figures, and topologies to compile for."""

import dataclasses
import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from wayward_jax.errors import InputError

GIB = 2**30

# The part of a TPU's memory that programs cannot use.
TPU_RESERVED = 0.25 * GIB


@dataclasses.dataclass(frozen=True)
class Machine:
    """A kind of device, by published figures.

    Attributes:
        flops: bfloat16 FLOP/s at peak.
        bandwidth: of its memory, bytes/s.
        memory: bytes that programs can use.
        clock: cycles/s, of the compiler's estimates for a TPU.
        links: bytes/s that a chip sends to its neighbors on a TPU's mesh, both ways of one axis.
        cores: of a TPU, which share the rows of a kernel.
        gpu: the text of a `GpuTargetConfigProto`, if it is a GPU.
    """

    flops: float
    bandwidth: float
    memory: float
    clock: float = 0.0
    links: float = 0.0
    cores: int = 1
    gpu: str = ""


def _gpu(
    flops: float,
    bandwidth: float,
    memory: float,
    *,
    capability: str,
    cores: int,
    clock_ghz: float,
    shared: int,
    l2: int,
) -> Machine:
    major, minor = capability.split(".")
    target = f"""gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {64 if major == "8" else 128}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(bandwidth)}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock_ghz}
  device_memory_size: {int(memory)}
  shared_memory_per_block_optin: {shared - 1024}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "sm_{capability}"
"""
    return Machine(flops, bandwidth, memory, gpu=target)


# The numbers of one chip are those of Google's pages "TPU v4", "v5e", "v5p" and "v6e"; the clock is
# that at which its matrix units reach the peak.
TPUS = {
    "v4": Machine(275e12, 1.23e12, 32 * GIB - TPU_RESERVED, clock=1.05e9, links=0.9e11, cores=2),
    "v5e": Machine(197e12, 0.82e12, 16 * GIB - TPU_RESERVED, clock=1.5e9, links=0.9e11),
    "v5p": Machine(459e12, 2.77e12, 95 * GIB - TPU_RESERVED, clock=1.75e9, links=1.8e11, cores=2),
    "v6e": Machine(918e12, 1.64e12, 32 * GIB - TPU_RESERVED, clock=1.75e9, links=1.8e11),
}

# Dense products, from NVIDIA's data sheets of the SXM modules.
GPUS = {
    "a100": _gpu(
        *(312e12, 2.04e12, 79.2 * GIB),
        capability="8.0", cores=108, clock_ghz=1.41, shared=167936, l2=41943040,
    ),
    "h100": _gpu(
        *(989e12, 3.35e12, 79.1 * GIB),
        capability="9.0", cores=132, clock_ghz=1.98, shared=233472, l2=52428800,
    ),
    "h200": _gpu(
        *(989e12, 4.8e12, 139.8 * GIB),
        capability="9.0", cores=132, clock_ghz=1.98, shared=233472, l2=52428800,
    ),
    "b200": _gpu(
        *(2250e12, 8e12, 178.3 * GIB),
        capability="10.0", cores=148, clock_ghz=1.96, shared=233472, l2=132644864,
    ),
}  # fmt: skip


def find(topology: str) -> tuple[Machine, list[jax.Device]]:
    """The devices of a topology such as `v5e:2x4` or `h100`, a single one.

    Raises:
        InputError: there is no such topology, or the package with its compiler is missing.
    """
    kind, _, size = topology.partition(":")
    if kind in GPUS and not size:
        _require(("jax_cuda12_plugin", "jax_cuda13_plugin"), topology, "forecast-gpu")
        found = topologies.get_topology_desc(
            "", platform="cuda", topology="1x1x1", target_config=GPUS[kind].gpu
        )
        return GPUS[kind], list(found.devices)
    if kind not in TPUS or not re.fullmatch(r"\d+(x\d+){1,2}", size):
        raise InputError(
            "topology",
            topology,
            f"give a kind and size such as v5e:2x4, with one of {', '.join(TPUS)}, or one of "
            f"{', '.join(GPUS)}",
        )
    _require(("libtpu",), topology, "forecast-tpu")
    try:
        found = topologies.get_topology_desc(topology, platform="tpu", **_options(kind, size))
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        (reason, *_) = str(error).splitlines()
        raise InputError(
            "topology", topology, f"libtpu knows no such topology ({reason})"
        ) from error
    return TPUS[kind], list(found.devices)


def _options(kind: str, size: str) -> dict[str, Any]:
    """Options for libtpu, where a rented slice is not what it assumes."""
    if kind == "v4":  # Both cores of a chip are one device.
        return {"chip_config_name": "megacore"}
    if kind in ("v5e", "v6e") and size == "2x4":  # One host has all eight chips.
        return {"chips_per_host_bounds": (2, 4, 1)}
    return {}


def _require(any_of: Sequence[str], topology: str, extra: str) -> None:
    if not any(map(importlib.util.find_spec, any_of)):
        raise InputError(
            "topology",
            topology,
            f"its compiler is missing: pip install -e '.[{extra}]' for jax "
            f"{importlib.metadata.version('jax')}",
        )
