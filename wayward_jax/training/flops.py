"""The work that training needs, and how fast a device could do it."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from wayward_jax.models import LanguageModel
from wayward_jax.models.products import rounded_product
from wayward_jax.segments import Segments


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


def step_cost(segments: Segments, numbers: np.ndarray, prompt_lengths: Sequence[int]) -> StepCost:
    """The cost of some steps of R runs.

    Args:
        segments: examples.
        numbers: `[R, steps, B]`, which of them each run has at each step.
        prompt_lengths: `[R]`, vectors of the runs' prompts.
    """
    lengths = np.array(prompt_lengths)
    tokens, _, predictions = np.moveaxis(segments.sizes[numbers], 3, 0)
    return StepCost(
        tokens=int(tokens.sum() + numbers.shape[1] * lengths.sum()),
        predictions=int(predictions.sum()),
        pairs=int(segments.pairs[numbers].sum() + (tokens.sum(axis=(1, 2)) * lengths).sum()),
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
    product = jax.jit(functools.partial(rounded_product, a_axis=1, b_axis=0))
    product(square, square).block_until_ready()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        product(square, square).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)
