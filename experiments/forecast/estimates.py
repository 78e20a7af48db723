"""Estimates how long a compiled program takes on a device, from its compiler's figures."""

import collections
from collections.abc import Mapping
from typing import Any

from experiments.forecast.hlo import (
    KINDS,
    Operation,
    Program,
    arrays,
    kernel_rows,
    product_flops,
    sent_bytes,
    traffic,
)
from experiments.forecast.machines import Machine
from experiments.forecast.programs import Compiled
from wayward_jax.errors import InputError

# A kernel on a TPU takes so many seconds to begin with each row.
TPU_ROW = 0.35e-6

# Matrix products on a GPU reach this part of the peak, attention kernels this part of memory's
# bandwidth (an H100 was measured with rows of 128 and 256 slots), and each kernel takes so long to
# begin.
GPU_EFFICIENCY, GPU_KERNEL_BANDWIDTH, GPU_LAUNCH = 0.7, 0.35, 2e-6


def estimate(compiled: Compiled, machine: Machine) -> Mapping[str, float]:
    """Estimates the seconds of each of `KINDS` of operations in one call of a program.

    For a TPU these are the cycles of libtpu's own model. It has none for the attention kernel,
    which takes as long as its instructions or its traffic with memory, whichever is longer, and
    `TPU_ROW` for each row. For a GPU, whose compiler estimates no time, each kernel takes as long
    as its products or its traffic with memory, attention kernels by `GPU_KERNEL_BANDWIDTH`.

    Raises:
        InputError: libtpu did not write down the instructions of an attention kernel.
    """
    program = Program.parse(compiled.hlo)
    operations = list(program.executed())
    bundles = {
        _types(each): compiled.bundles[each.name]
        for each, _ in operations
        if each.name in compiled.bundles
    }
    found = collections.Counter(dict.fromkeys(KINDS, 0.0))
    for operation, times in operations:
        kind = program.kind(operation)
        if machine.gpu:
            seconds = _on_gpu(program, operation, kind, machine)
        elif kind == "attention kernel":
            seconds = _kernel_on_tpu(program, operation, bundles, machine)
        else:
            seconds = _on_tpu(operation, kind, machine)
        found[kind] += times * seconds
    return found


def gpu_traffic(compiled: Compiled) -> float:
    """The bytes that the kernels of a GPU read and write in one call of a program."""
    program = Program.parse(compiled.hlo)
    return float(sum(times * traffic(program, each) for each, times in program.executed()))


def _types(operation: Operation) -> Any:
    """The sizes of a kernel's result and operands.

    libtpu writes down the instructions of one of the kernels that have these in common.
    """
    return tuple(tuple(arrays(each)) for each in (operation.result, *operation.operands))


def _kernel_on_tpu(
    program: Program, operation: Operation, bundles: Mapping[Any, int], machine: Machine
) -> float:
    if _types(operation) not in bundles:
        raise InputError(
            "topology",
            "a TPU",
            "this libtpu does not tell its kernels' instructions: install the jax[tpu] that this "
            "version was made with, 0.10 to 0.12",
        )
    rows = kernel_rows(operation) / machine.cores
    of_memory = traffic(program, operation) / machine.bandwidth
    return rows * TPU_ROW + max(rows * bundles[_types(operation)] / machine.clock, of_memory)


def _on_tpu(operation: Operation, kind: str, machine: Machine) -> float:
    if kind == "collectives" and not operation.cycles and not operation.opcode.endswith("-done"):
        return sent_bytes(operation) / machine.links
    return operation.cycles / machine.clock


def _on_gpu(program: Program, operation: Operation, kind: str, machine: Machine) -> float:
    products = product_flops(program, operation) / (GPU_EFFICIENCY * machine.flops)
    reached = GPU_KERNEL_BANDWIDTH if kind == "attention kernel" else 1.0
    of_memory = traffic(program, operation) / (reached * machine.bandwidth)
    return GPU_LAUNCH + max(products, of_memory)
