"""The memory that a training step takes, and the memory that there is."""

import dataclasses
from collections.abc import Sequence

import jax
import psutil
from flax import traverse_util
from jax.sharding import Mesh

from wayward_jax.errors import InputError
from wayward_jax.models import LanguageModel
from wayward_jax.runs import Run
from wayward_jax.shapes import PackedShape
from wayward_jax.training.calls import Train
from wayward_jax.training.planning import MAX_OVERFULL, SAMPLE_STEPS, plan_populations

# A device is busy with this many tokens of a pack. More tokens gain nothing.
BUSY_CPU, BUSY_ACCELERATOR = 2048, 8192

# XLA keeps what a layer computes in the vector memory of a TPU if it takes no more than this.
VECTOR_BYTES = 64 * 2**20

# The lengths of rows are multiples of this.
ROW_CPU, ROW_ACCELERATOR = 8, 128

# A step may take this share of the free memory. The rest is for what is not counted.
SHARE = 0.8


def busy_tokens(mesh: Mesh) -> int:
    """The number of tokens that keep a device busy when they go through the model at once."""
    return BUSY_CPU if mesh.devices.flat[0].platform == "cpu" else BUSY_ACCELERATOR


def free_bytes(devices: Sequence[jax.Device]) -> int:
    """The memory of each of some devices, or of this process's, that is not in use, in bytes."""
    own = [device for device in devices if device.process_index == jax.process_index()]
    stats = own[0].memory_stats()
    if stats is None:  # a CPU, whose devices share its memory
        return psutil.virtual_memory().available // len(own)
    return stats["bytes_limit"] - stats["bytes_in_use"]


def row_grain(mesh: Mesh) -> int:
    """The number that the lengths of rows are multiples of: the registers' width on accelerators.

    CPUs have no registers to fill.
    """
    return ROW_CPU if mesh.devices.flat[0].platform == "cpu" else ROW_ACCELERATOR


def activation_bytes(model: LanguageModel, shape: PackedShape) -> int:
    """Estimates the bytes of each device that the step of a pack takes beside the weights.

    The backward pass keeps the outputs of all linear layers, which are most of it. Compilers
    compute everything else again. To these come three float32 arrays each of the stream, of all
    logits, and of a layer's attention weights. XLA on CPUs also keeps what activation functions
    compute, about as much again, and the attention weights of all layers.
    """
    config, tables = model.module.config, model.params["params"]
    head = tables["head" if "head" in tables else "embed"]["embedding"]
    tokens = shape.rows * shape.slots
    logits = shape.queries * head.sharding.shard_shape(head.shape)[0]
    attended = tokens * shape.slots * config.heads / model.mesh.shape["model"]
    working = 3 * 4 * (tokens * head.shape[1] + logits + attended)
    kept = tokens * sum(_output_widths(model)) * head.dtype.itemsize
    if model.mesh.devices.flat[0].platform == "cpu":
        kept = 2 * kept + 4 * config.depth * attended
    return round(kept + working)


def pack_tokens(
    model: LanguageModel,
    train: Train,
    runs: Sequence[Run],
    free: int,
) -> int:
    """The number of tokens that may go through the model at once when runs are tuned.

    Args:
        model: that the runs are tuned with, its weights on the devices.
        train: their examples.
        runs: of one task.
        free: the memory of each device beside the weights, in bytes.

    Raises:
        InputError: there is too little memory even for one run.
    """
    longest_first = sorted(runs, key=lambda run: -run.input_length)
    mesh, usable = model.mesh, SHARE * max(free, 0)
    tokens = min(busy_tokens(mesh), _vector_tokens(model))
    while True:
        # A few steps of as many runs as a pack may have show what it needs.
        some = longest_first[: mesh.shape["runs"] * (1 + tokens // longest_first[0].batch_size)]
        some = [dataclasses.replace(run, steps=min(run.steps, SAMPLE_STEPS)) for run in some]
        plan, *_ = plan_populations(
            {runs[0].task: train},
            list(dict.fromkeys(some)),
            population=None,
            pack_tokens=tokens,
            mesh=mesh,
            row_grain=row_grain(mesh),
        )
        needed = MAX_OVERFULL * max(activation_bytes(model, shape) for shape in plan.shapes)
        if needed <= usable:
            return tokens
        if plan.packs_per_shard == plan.runs_per_shard:
            raise InputError(
                "batch_size",
                longest_first[0].batch_size,
                f"a step of one run takes about {needed / 2**30:.1f} GiB, and "
                f"{usable / 2**30:.1f} are free: lower --batch_size, or share the model between "
                "devices with --mesh",
            )
        tokens = int(0.8 * tokens)


def _vector_tokens(model: LanguageModel) -> int:
    """The number of tokens that may be asked for if the widest layer is to stay in vector memory.

    A step of GPT-2 large takes 5 % less time so (BENCHMARKS.md).
    """
    if model.mesh.devices.flat[0].platform != "tpu":
        return BUSY_ACCELERATOR
    widest = max(_output_widths(model))
    itemsize = jax.tree.leaves(model.params)[0].dtype.itemsize
    return int(VECTOR_BYTES / (MAX_OVERFULL * widest * itemsize))


def _output_widths(model: LanguageModel) -> list[int]:
    """The numbers a token that each linear layer computes on a device."""
    flat = traverse_util.flatten_dict(model.params)
    kernels = (weight for path, weight in flat.items() if path[-1] == "kernel")
    return [kernel.sharding.shard_shape(kernel.shape)[1] for kernel in kernels]
