"""The memory that a training step takes, and the memory that there is."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import psutil
from jax.sharding import Mesh

from wayward_jax.errors import InputError
from wayward_jax.models import LanguageModel
from wayward_jax.objective import summed_losses
from wayward_jax.packing import PackedBatch, empty_pack
from wayward_jax.runs import Run
from wayward_jax.shapes import PackedShape
from wayward_jax.training.planning import MAX_OVERFULL, SAMPLE_STEPS, Train, plan_populations

# A device is busy with this many tokens of a pack. More tokens gain nothing.
BUSY_CPU, BUSY_ACCELERATOR = 2048, 8192

# The lengths of rows are multiples of this.
ROW_CPU, ROW_ACCELERATOR = 8, 128

# A step may take this share of the free memory. The rest is for what is not counted.
SHARE = 0.8


def busy_tokens(mesh: Mesh) -> int:
    """The number of tokens that keep a device busy when they go through the model at once."""
    return BUSY_CPU if mesh.devices.flat[0].platform == "cpu" else BUSY_ACCELERATOR


def free_bytes(device: jax.Device) -> int:
    """The memory of a device that is not in use, in bytes."""
    stats = device.memory_stats()
    if stats is None:  # a CPU
        return psutil.virtual_memory().available
    return stats["bytes_limit"] - stats["bytes_in_use"]


def row_grain(mesh: Mesh) -> int:
    """The number that the lengths of rows are multiples of: the registers' width on accelerators.

    CPUs have no registers to fill.
    """
    return ROW_CPU if mesh.devices.flat[0].platform == "cpu" else ROW_ACCELERATOR


def activation_bytes(
    model: LanguageModel, runs: int, prompt_length: int, shape: PackedShape
) -> int:
    """The bytes that JAX keeps from the forward pass of a pack to its backward pass.

    The attention weights of one layer, which the backward pass computes again, are added: three
    arrays of float32. Compilers need less. Nothing is computed or compiled for this: JAX follows
    the pass with shapes alone.
    """

    def kept(params: dict, prompts: jax.Array, pack: PackedBatch) -> list[jax.Array]:
        def losses(prompts: jax.Array) -> jax.Array:
            return summed_losses(model.module, params, prompts, pack)[0]

        # The leaves alone, for JAX would keep the structure, and the whole pass with it, forever.
        return jax.tree.leaves(jax.vjp(losses, prompts)[1])

    width = model.embedding_table().shape[1]
    prompts = jax.ShapeDtypeStruct((runs, prompt_length, width), jnp.float32)
    residuals = jax.eval_shape(kept, model.params, prompts, empty_pack(runs, shape))
    weights = 3 * 4 * model.module.config.heads * shape.rows * shape.slots**2
    return _bytes(residuals) - _bytes(model.params) + weights


def pack_tokens(
    model: LanguageModel,
    train: Train,
    runs: Sequence[Run],
    mesh: Mesh,
    free: int | None = None,
) -> int:
    """The number of tokens that may go through the model at once when runs are tuned.

    Args:
        model: that the runs are tuned with.
        train: their examples.
        runs: of one task.
        mesh: see `sharding.AXES`.
        free: the memory of each device that is not in use, in bytes; None asks a device.

    Raises:
        InputError: there is too little memory even for one run.
    """
    longest_first = sorted(runs, key=lambda run: -run.input_length)
    if free is None:
        free = free_bytes(mesh.local_devices[0])
    usable = SHARE * free * mesh.shape["model"]
    tokens = busy_tokens(mesh)
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
        needed = MAX_OVERFULL * max(
            activation_bytes(model, plan.runs_per_shard, plan.prompt_length, shape)
            for shape in plan.shapes
        )
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


def _bytes(tree: object) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
