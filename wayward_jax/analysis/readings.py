"""Prompts read anew from their checkpoints: the nearest tokens of every vector under any metric."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from wayward_jax import metrics
from wayward_jax.analysis.selection import Comparison, Row
from wayward_jax.models import LanguageModel
from wayward_jax.projection import margins, neighbors
from wayward_jax.readings import read_tokens

# Vectors looked up at a time, whatever the length of the prompts that they belong to.
VECTORS_AT_ONCE = 256

# Whether a target's token is among so many nearest.
TOP = (1, 5, 10)


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """What a prompt of L vectors reads as under one metric, and how nearly something else.

    Attributes:
        ids: `[L, k]` int32, the k nearest tokens of each vector, nearest first.
        distances: `[L, k]` float32, theirs.
        text: of the nearest tokens.
        prompt_f1: of the text; None without a target.
        token_f1: of the nearest tokens; None without a target.
    """

    ids: np.ndarray
    distances: np.ndarray
    text: str
    prompt_f1: float | None
    token_f1: float | None

    @cached_property
    def margins(self) -> np.ndarray:
        """`[L]`, see `projection.margins`."""
        return np.asarray(margins(self.distances))


def read_prompts(
    model: LanguageModel,
    rows: Sequence[Row],
    prompts: Sequence[np.ndarray],
    metric: str = "euclidean",
    k: int = 10,
) -> list[Reading]:
    """Reads prompts anew.

    Args:
        model: that they were tuned for.
        rows: of their runs.
        prompts: `[L, D]` each.
        metric: one of `projection.METRICS`.
        k: neighbors of each vector; fewer if the model has fewer tokens.
    """
    table, valid = model.embedding_table(), model.valid_tokens()
    k = min(k, int(valid.sum()))
    vectors = np.concatenate(prompts)
    padding = -len(vectors) % VECTORS_AT_ONCE
    blocks = np.pad(vectors, [(0, padding), (0, 0)]).reshape(-1, VECTORS_AT_ONCE, table.shape[1])
    found = [neighbors(table, jnp.asarray(block), valid, k=k, metric=metric) for block in blocks]
    ids, distances = (np.concatenate(parts) for parts in zip(*found, strict=True))
    ends = np.cumsum([len(prompt) for prompt in prompts])
    return [
        _reading(model, row, ids[end - len(prompt) : end], distances[end - len(prompt) : end])
        for row, prompt, end in zip(rows, prompts, ends, strict=True)
    ]


def _reading(model: LanguageModel, row: Row, ids: np.ndarray, distances: np.ndarray) -> Reading:
    nearest = ids[:, 0].tolist()
    read = read_tokens(model.tokenizer, nearest, row["target_text"], row["target_ids"])
    return Reading(ids, distances, read.text, read.prompt_f1, read.token_f1)


def agreements(
    comparison: Comparison, readings: Mapping[str, Mapping[str, Reading]]
) -> list[dict[str, Any]]:
    """How much a target's prompts, and p_star, have in common with it under every metric.

    Args:
        comparison: of the target.
        readings: by metric and run id; what is not there is left out.

    Returns:
        A row for each metric and run: F1, and the shares of the target's tokens that are the
        nearest of their vectors, or among the nearest (`top_5`).
    """
    target = comparison.wayward[0]
    ids = np.array(target["target_ids"])[:, None]
    rows = []
    for metric, by_id in readings.items():
        for prompt, own in (("wayward", comparison.wayward), ("p_star", comparison.p_star)):
            for found in (by_id[row["id"]] for row in own if row["id"] in by_id):
                nearest = found.ids[:, 0].tolist()
                rows.append(
                    {
                        "id": target["id"],
                        "metric": metric,
                        "prompt": prompt,
                        "prompt_f1": metrics.prompt_f1(found.text, target["target_text"]),
                        "token_f1": metrics.token_f1(nearest, target["target_ids"]),
                        **{
                            f"top_{k}": float((found.ids[:, :k] == ids).any(axis=1).mean())
                            for k in TOP
                        },
                    }
                )
    return rows
