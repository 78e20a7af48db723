"""Readings by the tokens that are nearest to a prompt's vectors, and how well they fit targets.

Nearest tokens are the paper's reading (section 3); `projection.METRICS` are the metrics.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from wayward_jax import metrics
from wayward_jax.models import LanguageModel
from wayward_jax.models.tokenizer import Tokenizer
from wayward_jax.projection import c_proj, d_proj, distances_between, margins, neighbors
from wayward_jax.readings.hidden import mask_of, masked_mean
from wayward_jax.targets import Target

# The number of vectors that one compiled search takes, whichever prompts they belong to.
VECTORS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """A prompt of L vectors, read by its nearest tokens under one metric.

    Attributes:
        ids: `[L, k]` int32, the k nearest tokens of each vector, nearest first.
        distances: `[L, k]` float32, the distances to these tokens under the metric.
        text: the text of the nearest tokens.
        prompt_f1: F1 of the words of `text` against the target's; None without a target.
        token_f1: F1 of the nearest tokens against the target's; None without a target.
    """

    ids: np.ndarray
    distances: np.ndarray
    text: str
    prompt_f1: float | None
    token_f1: float | None

    @cached_property
    def margins(self) -> np.ndarray:
        """`[L]` float32, how much farther each vector's second nearest token is than its nearest.

        Two neighbors are needed, so k must be at least 2.
        """
        return np.asarray(margins(self.distances))


def read_prompts(
    model: LanguageModel,
    prompts: Sequence[np.ndarray],
    targets: Sequence[Target | None],
    metric: str = "euclidean",
    k: int = 10,
) -> list[Reading]:
    """Reads prompts by the nearest tokens of their vectors.

    Args:
        model: the frozen model that the prompts were tuned for.
        prompts: `[L, D]` float32 each, of any lengths L.
        targets: the target of each prompt; None for a prompt without a target.
        metric: one of `projection.METRICS`.
        k: the number of neighbors of each vector; a model with fewer tokens gives fewer.
    """
    table, valid = model.embedding_table(), model.valid_tokens()
    k = min(k, int(valid.sum()))
    vectors = np.concatenate(prompts)
    padding = -len(vectors) % VECTORS_AT_ONCE
    blocks = np.pad(vectors, [(0, padding), (0, 0)]).reshape(-1, VECTORS_AT_ONCE, table.shape[1])
    found = [neighbors(table, jnp.asarray(block), valid, k=k, metric=metric) for block in blocks]
    ids, distances = (np.concatenate(parts) for parts in zip(*found, strict=True))
    readings, start = [], 0
    for prompt, target in zip(prompts, targets, strict=True):
        own = slice(start, start + len(prompt))
        read = read_tokens(model.tokenizer, ids[own, 0].tolist(), target)
        readings.append(Reading(ids[own], distances[own], read.text, read.prompt_f1, read.token_f1))
        start += len(prompt)
    return readings


class ReadTokens(NamedTuple):
    """L tokens and their text, compared with a target.

    Attributes:
        ids: the tokens.
        text: their text.
        prompt_f1: F1 of the words of `text` against the target's (paper); None without a target.
        token_f1: F1 of the tokens against the target's; None without a target.
    """

    ids: tuple[int, ...]
    text: str
    prompt_f1: float | None
    token_f1: float | None


def read_tokens(tokenizer: Tokenizer, ids: Sequence[int], target: Target | None) -> ReadTokens:
    """Decodes tokens and compares them with a target."""
    text = tokenizer.decode(ids)
    if target is None:
        return ReadTokens(tuple(ids), text, None, None)
    return ReadTokens(
        tuple(ids),
        text,
        metrics.prompt_f1(text, target.text),
        metrics.token_f1(ids, target.ids),
    )


@dataclasses.dataclass(frozen=True)
class NearestTokens:
    """Reads each vector as its nearest token; see `readings.Method`.

    Attributes:
        metric: one of `projection.METRICS`.
    """

    metric: str = "euclidean"

    def read(
        self, model: LanguageModel, prompts: ArrayLike, mask: ArrayLike | None = None
    ) -> jax.Array:
        """See `readings.Method`."""
        vectors = jnp.asarray(prompts, jnp.float32)
        return d_proj(model.embedding_table(), vectors, model.valid_tokens(), self.metric)

    def loss(
        self,
        model: LanguageModel,
        prompts: ArrayLike,
        targets: ArrayLike,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """See `readings.Method`: the mean distance of the vectors from the target's embeddings."""
        wanted = c_proj(model.embedding_table(), jnp.asarray(targets, jnp.int32))
        vectors = jnp.asarray(prompts, jnp.float32)
        return masked_mean(distances_between(vectors, wanted, self.metric), mask_of(vectors, mask))
