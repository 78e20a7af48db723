"""Estimates how long a compiled program takes on a device, from its compiler's figures."""

import collections
from collections.abc import Mapping

from experiments.forecast.hlo import (
    KINDS,
    Operation,
    Program,
    count_bytes,
    kernel_work,
    product_flops,
    sent_bytes,
)
from experiments.forecast.machines import Machine

# The part of a TPU's peak at which the attention kernel computes, by the slots of a row. libtpu
# makes no estimate of a kernel; the instructions that it was compiled to were counted, with 525
# cycles for each row to begin.
KERNEL_EFFICIENCY = {128: 0.20, 256: 0.35, 512: 0.39}

# Matrix products on a GPU reach this part of the peak, attention kernels this part of memory's
# bandwidth (an H100 was measured with rows of 128 and 256 slots), and each kernel takes so long to
# begin.
GPU_EFFICIENCY, GPU_KERNEL_BANDWIDTH, GPU_LAUNCH = 0.7, 0.35, 2e-6


def estimate(text: str, machine: Machine) -> Mapping[str, float]:
    """Estimates the seconds of each of `KINDS` of operations in one call of a program.

    For a TPU these are the cycles of libtpu's own model, and the attention kernel's FLOPs at
    `KERNEL_EFFICIENCY`. For a GPU, whose compiler estimates no time, each kernel takes as long as
    its products or its traffic with memory, whichever is longer, attention kernels by
    `GPU_KERNEL_BANDWIDTH`.
    """
    program = Program.parse(text)
    of_operation = _on_gpu if machine.gpu else _on_tpu
    found = collections.Counter(dict.fromkeys(KINDS, 0.0))
    for operation, times in program.executed():
        kind = program.kind(operation)
        found[kind] += times * of_operation(program, operation, kind, machine)
    return found


def _on_tpu(program: Program, operation: Operation, kind: str, machine: Machine) -> float:
    if kind == "attention kernel":
        slots, flops = kernel_work(operation)
        nearest = min(KERNEL_EFFICIENCY, key=lambda size: abs(size - slots))
        return flops / (KERNEL_EFFICIENCY[nearest] * machine.flops)
    if kind == "collectives" and not operation.cycles and not operation.opcode.endswith("-done"):
        return sent_bytes(operation) / machine.links
    return operation.cycles / machine.clock


def _on_gpu(program: Program, operation: Operation, kind: str, machine: Machine) -> float:
    traffic = sum(map(count_bytes, (operation.result, *operation.operands)))
    products = product_flops(program, operation) / (GPU_EFFICIENCY * machine.flops)
    reached = GPU_KERNEL_BANDWIDTH if kind == "attention kernel" else 1.0
    return GPU_LAUNCH + max(products, traffic / (reached * machine.bandwidth))
