"""The work that training needs, and how fast a device could do it."""

import dataclasses
import time
from typing import Self

import jax
import jax.numpy as jnp
from flax import traverse_util

from wayward_jax.models import LanguageModel
from wayward_jax.packing import PackedBatch
from wayward_jax.training.planning import PopulationPlan


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


def step_cost(packs: PackedBatch, plan: PopulationPlan) -> StepCost:
    """The cost of the steps of `planning.iter_batches`, which are still on the host."""
    real = packs.segment > 0
    prompts = len(packs.ids) * sum(run.input_length for run in plan.runs)
    return StepCost(
        tokens=int(real.sum()) + prompts,
        predictions=int((packs.weight > 0).sum()),
        pairs=int((packs.positions + 1)[real].sum()),
    )


def needed_flops(model: LanguageModel, cost: StepCost) -> float:
    """Counts the FLOPs of the forward and backward pass through frozen weights.

    A weight takes four FLOPs per token: a product and a sum, forward and backward. The last layer's
    output and MLP, and the logits, count only for tokens with a prediction. Each pair of a token
    and a token that it attends to takes 12 FLOPs per channel and layer: a query times a key and a
    weight times a value, forward and for both factors backward.
    """
    flat = traverse_util.flatten_dict(model.params["params"])
    kernels = {path: x.size for path, x in flat.items() if path[-1] == "kernel"}
    config = model.module.config
    predicting = sum(
        size
        for path, size in kernels.items()
        if path[0] == f"layers_{config.depth - 1}" and path[-2] not in model.family.attention_inputs
    )
    everywhere = sum(kernels.values()) - predicting
    table = model.embedding_table().size
    return 4 * (everywhere * cost.tokens + (predicting + table) * cost.predictions) + (
        12 * config.depth * config.attention_width * cost.pairs
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
