"""Measures how far readings under several metrics agree with a target."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from wayward_jax import metrics
from wayward_jax.analysis.selection import Comparison
from wayward_jax.readings import Reading

# A target's token is looked for among these numbers of nearest tokens.
TOP = (1, 5, 10)


def agreements(
    comparison: Comparison, readings: Mapping[str, Mapping[str, Reading]]
) -> list[dict[str, Any]]:
    """Compares the readings of a target's prompts, and of p_star, with the target.

    Args:
        comparison: the target's runs and the p_star runs beside them.
        readings: readings by metric and run id; runs that are not there are left out.

    Returns:
        A row for each metric and run, with both F1 values and, as `top_k`, the share of vectors
        that have the target's token at their place among their k nearest tokens.
    """
    first = comparison.wayward[0]
    target = first.run.target
    wanted = np.array(target.ids)[:, None]
    groups = (("wayward", comparison.wayward), ("p_star", comparison.p_star))
    return [
        {
            "id": first.id,
            "metric": metric,
            "prompt": name,
            "prompt_f1": metrics.prompt_f1(reading.text, target.text),
            "token_f1": metrics.token_f1(reading.ids[:, 0].tolist(), target.ids),
            **{f"top_{k}": float((reading.ids[:, :k] == wanted).any(axis=1).mean()) for k in TOP},
        }
        for metric, by_id in readings.items()
        for name, records in groups
        for reading in (by_id[record.id] for record in records if record.id in by_id)
    ]
