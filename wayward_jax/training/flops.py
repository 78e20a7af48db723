"""The work that training needs, and how fast a device could do it."""

import dataclasses
import time
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from wayward_jax.models import LanguageModel
from wayward_jax.training.planning import PopulationPlan
from wayward_jax.training.step import Batches


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The work that training steps need, without padding.

    Attributes:
        tokens: tokens through the model; a prompt's count once a step.
        predictions: tokens whose logits are needed.
        pairs: pairs of an example's token and a token that it attends to.
    """

    tokens: int = 0
    predictions: int = 0
    pairs: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.tokens + other.tokens,
            self.predictions + other.predictions,
            self.pairs + other.pairs,
        )


def step_cost(batches: Batches, plan: PopulationPlan) -> StepCost:
    """The cost of the steps of `planning.iter_batches`, which are still on the host."""
    packs = batches.packs
    real = packs.slot >= 0
    lengths = np.array([run.prompt_length for run in plan.padded_runs])
    runs_per_shard = plan.packs_per_shard * plan.runs_per_pack
    shard = np.repeat(np.arange(plan.run_shards), plan.packs_per_shard)[:, None]
    of_run = lengths[batches.run_index + shard * runs_per_shard]  # [n, packs, M]
    of_row = np.take_along_axis(of_run[:, :, None], np.maximum(packs.run, 0), axis=-1)
    row = packs.slot // packs.token.shape[-1]
    seen = packs.positions + 1 + np.take_along_axis(of_row, np.maximum(row, 0), axis=-1)
    prompts = len(batches.run_index) * sum(run.prompt_length for run in plan.runs)
    return StepCost(
        tokens=int(real.sum()) + prompts,
        predictions=int((packs.weight > 0).sum()),
        pairs=int(np.where(real, seen, 0).sum()),
    )


def needed_flops(model: LanguageModel, cost: StepCost) -> float:
    """Of the forward and backward pass through frozen weights.

    Four a weight and token. The last layer's output and MLP, and the logits, count only where a
    token is predicted.
    """
    flat = traverse_util.flatten_dict(model.params["params"], sep="/")
    kernels = {path: x for path, x in flat.items() if path.endswith("kernel")}
    layers = model.module.config.depth
    first_half = ("c_attn", "q_proj", "k_proj", "v_proj")
    last = sum(
        x.size
        for path, x in kernels.items()
        if path.startswith(f"layers_{layers - 1}/") and path.split("/")[1] not in first_half
    )
    everywhere = sum(x.size for x in kernels.values()) - last
    table = model.embedding_table()
    return 4 * (everywhere * cost.tokens + (last + table.size) * cost.predictions) + (
        12 * layers * table.shape[1] * cost.pairs
    )


def matrix_peak(dtype: jnp.dtype, size: int, repeats: int = 8) -> float:
    """FLOP/s of a product of matrices `[size, size]` on one device, the best of a few."""
    square = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        product(square, square).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)
