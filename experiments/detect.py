"""`detect`: asks whether a wayward prompt can be told from an honest one.

Prompts are held to true descriptions of their task (honest), to instructions for other tasks
(wayward), or to nothing (p_star, honest, too). Scores that need no training are measured of each:
how far its vectors are from tokens, how much nearer the nearest token is than the next, their
norms, whether readings agree, and how much the loss rises around the prompt.
"""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments import grid
from wayward_jax import metrics
from wayward_jax.analysis.detection import DESCRIPTION, WAYWARD
from wayward_jax.jobs.experiment import Experiment
from wayward_jax.jobs.probes import Measurement, ProbeContext
from wayward_jax.jobs.settings import Settings
from wayward_jax.projection import METRICS
from wayward_jax.readings import Lens, Verbal, read_prompts
from wayward_jax.runs import P_STAR, Run, RunRecord
from wayward_jax.sharding import on_host
from wayward_jax.targets import Target

if TYPE_CHECKING:
    from wayward_jax.models import LanguageModel

# The set of texts that describe the task.
TRUE = "definitions/"

# Sharpness is the rise of the loss under noise of this part of the prompt's norm, over some draws.
NOISE, DRAWS = 0.1, 4


def runs(settings: Settings, model: "LanguageModel", task: str, targets: list[Target]) -> list[Run]:
    """Lists the runs of `grid` but for those with a target that nothing holds to it."""
    return [
        run
        for run in grid.runs(settings, model, task, targets)
        if not (run.has_target and run.is_unconstrained)
    ]


def measure(context: ProbeContext) -> Iterator[Measurement]:
    """Yields the scores of each prompt."""
    for record in context.own_records:
        yield record.id, functools.partial(_measure_scores, context, record)


def _measure_scores(context: ProbeContext, record: RunRecord) -> list[dict[str, Any]]:
    prompt = context.load_prompt(record)
    return [{"id": record.id, "prompt": _kind(record), **scores(context, record.run, prompt)}]


def _kind(record: RunRecord) -> str:
    if record.run.is_unconstrained:
        return P_STAR
    return DESCRIPTION if record.run.target_name.startswith(TRUE) else WAYWARD


def scores(context: ProbeContext, run: Run, prompt: np.ndarray) -> dict[str, float]:
    """The scores of a prompt `[L, D]`; `analysis.detection.SCORES` describes them."""
    model = context.model
    euclidean, *others = (read_prompts(model, [prompt], [None], each)[0] for each in METRICS)
    ids = euclidean.ids[:, 0]
    verbal, lens = Verbal(), Lens(model.module.config.depth // 2)
    said = model.tokenizer.decode(on_host(verbal.read(model, prompt[None]))[0].tolist())
    return {
        "distance": float(np.sqrt(euclidean.distances[:, 0]).mean()),
        "margin": float(euclidean.margins.mean()),
        "norm": float(np.linalg.norm(prompt, axis=1).mean()),
        "metrics_agree": float(np.mean([other.ids[:, 0] == ids for other in others])),
        "lens_loss": float(lens.loss(model, prompt[None], ids[None])[0]),
        "verbal_loss": float(verbal.loss(model, prompt[None], ids[None])[0]),
        "says_reading": metrics.similarity(said, euclidean.text),
        "sharpness": _sharpness(context, run, prompt),
    }


def _sharpness(context: ProbeContext, run: Run, prompt: np.ndarray) -> float:
    """The mean rise of the loss on a few dev examples under noise, which is always the same."""
    examples = context.tasks[run.task].dev_subset[run.data_seed]
    noise = np.random.default_rng(0).normal(size=(DRAWS, *prompt.shape))
    noise *= NOISE * np.linalg.norm(prompt) / np.linalg.norm(noise, axis=(1, 2), keepdims=True)
    nll = context.score([prompt, *np.float32(prompt + noise)], examples)
    losses = nll[:, np.arange(len(examples.labels)), examples.labels].mean(axis=1)
    return float(losses[1:].mean() - losses[0])


EXPERIMENT = Experiment(
    runs,
    tables=("groups", "detect"),
    measure=measure,
    defaults={
        "task": "reviews,plots",
        "targets": "definitions:3,instructions:3",
        "prompt_length": "10",
        "seeds": "1,2",
        "steps": "60",
    },
)
