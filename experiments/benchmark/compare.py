"""Comparisons of tuning and scoring here and in PyTorch.

Both sides take turns in one process, on the same weights, tokens and schedule, after a check that
they compute the same losses. To compare tasks of six labels, the first ten words of reviews stand
for the questions of TREC, with its template and label words.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from experiments.benchmark import torch_side
from experiments.benchmark.measure import Row
from experiments.benchmark.workload import (
    BATCH_SIZE,
    SAMPLES,
    STEPS,
    Tuner,
    encode_reviews,
    load_model_pair,
    load_reviews,
)
from wayward_jax import tasks
from wayward_jax.models import LanguageModel
from wayward_jax.segments import example_order, label_segments
from wayward_jax.sharding import make_mesh
from wayward_jax.training.evaluation import score_prompts
from wayward_jax.training.memory import busy_tokens, row_grain
from wayward_jax.training.scoring import EvaluationSet, scoring_shape

# The losses of both sides may differ by this much, for each dtype of the weights.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.03}


def compare(name: str, dtype: jnp.dtype, populations: Sequence[int], rounds: int) -> list[Row]:
    """Compares the seconds of a run-step and of a scored example on both sides.

    Args:
        name: name of the model, see `workload.load_model`.
        dtype: of the weights on both sides.
        populations: sizes of the populations that are tuned here.
        rounds: number of turns.

    Raises:
        AssertionError: the sides do not compute the same losses.
    """
    if torch.cuda.is_available():
        torch.set_default_device("cuda")
    model, theirs = load_model_pair(name, dtype, Path(tempfile.mkdtemp()))
    data = load_reviews()
    task = encode_reviews(model, data)
    examples = tasks.encode(data.task, data.train.texts, model.tokenizer)
    order = example_order(len(examples), STEPS * BATCH_SIZE, seed=0).reshape(STEPS, BATCH_SIZE)
    steps = [
        ([examples[i] for i in batch], data.train.labels[batch]) for batch in order[: rounds + 1]
    ]
    rows = []
    for population in populations:
        tuner = Tuner(model, task, population)
        prompt = np.asarray(tuner.state.prompts[0])
        sides: dict[str, Any] = {"peft": torch_side.Peft(theirs, prompt, STEPS)}
        if population == 1:
            sides["paper-style"] = torch_side.PaperStyle(theirs, prompt, STEPS)
        what = f"tuning, population {population}"
        rows += _compare_tuning(name, what, tuner, sides, steps)
    paper = torch_side.PaperStyle(theirs, prompt, STEPS)
    questions = tuple(" ".join(text.split()[:10]) for text in data.test.texts)
    for what, kind, texts in (
        ("scoring, 2 labels", data.task, data.test.texts),
        ("scoring, 6 labels", tasks.TASKS["trec"], questions),
    ):
        encoded = tasks.encode(kind, texts[: 32 * SAMPLES], model.tokenizer)
        rows.append(_compare_scoring(name, what, model, prompt, encoded, paper, rounds))
    return rows


def _compare_tuning(
    name: str,
    what: str,
    tuner: Tuner,
    sides: dict[str, Any],
    steps: Sequence[tuple[Sequence[tasks.Encoded], np.ndarray]],
) -> list[Row]:
    """Takes a chunk here and one step on every other side in each turn."""
    first_loss = tuner.tune_chunk().task_loss[0, 0]
    for side, other in sides.items():
        _check(
            f"{name}, {side}: loss", tuner.model, first_loss, other.step(*steps[0])
        )  # and warms it up
    seconds: dict[str, list[float]] = {side: [] for side in ("here", *sides)}
    for step in steps[1:]:
        while math.isnan((chunk := tuner.tune_chunk()).seconds):
            pass
        seconds["here"].append(chunk.seconds / len(tuner.plan.runs) / len(chunk.task_loss))
        for side, other in sides.items():
            seconds[side].append(_time(lambda other=other, step=step: other.step(*step)))
    return [_make_row(name, what, side, seconds) for side in sides]


def _compare_scoring(
    name: str,
    what: str,
    model: LanguageModel,
    prompt: np.ndarray,
    encoded: Sequence[tasks.Encoded],
    paper: Any,
    rounds: int,
) -> Row:
    mesh = make_mesh()
    segments = label_segments(encoded)
    shape = scoring_shape(
        [segments],
        prompt_length=len(prompt),
        tokens=busy_tokens(mesh),
        row_grain=row_grain(mesh),
    )
    words = tuple(range(len(encoded[0].continuations)))
    ours = EvaluationSet(segments, shape, np.zeros(len(encoded), np.int32), words)
    some = encoded[:SAMPLES]

    def score_here() -> np.ndarray:
        return score_prompts(model, [prompt], ours, mesh, length=len(prompt))[0]

    _check(f"{name}, {what}", model, score_here()[: len(some)], paper.nll(some))
    seconds: dict[str, list[float]] = {"here": [], "paper-style": []}
    for _ in range(rounds):
        seconds["here"].append(_time(score_here) / len(encoded))
        seconds["paper-style"].append(_time(lambda: paper.nll(some)) / len(some))
    return _make_row(name, what, "paper-style", seconds)


def _make_row(name: str, what: str, side: str, seconds: dict[str, list[float]]) -> Row:
    ratios = [theirs / ours for ours, theirs in zip(seconds["here"], seconds[side], strict=True)]
    return {
        "model": name,
        "what": what,
        "beside": side,
        "here ms": 1e3 * statistics.median(seconds["here"]),
        "there ms": 1e3 * statistics.median(seconds[side]),
        "times faster": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }


def _check(what: str, model: LanguageModel, ours: Any, theirs: Any) -> None:
    """Stops the benchmark if the two sides do not compute the same."""
    tolerance = TOLERANCE[model.embedding_table().dtype.name]
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance, err_msg=what)


def _time(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
