"""Records of finished runs, made by hand."""

import dataclasses

import numpy as np

from wayward_jax.provenance import Provenance
from wayward_jax.runs import (
    NEAREST_TOKENS,
    NOTHING,
    PROMPT,
    TEXT,
    Answer,
    CurvePoint,
    Run,
    RunRecord,
)
from wayward_jax.targets import Target

COMMON = {"model": "gpt2", "task": "sst2"}
N_EVAL = 10
PROVENANCE = Provenance(
    "float32", "text", "0" * 16, "cpu", 1, "0.2.0", "jax 0.10.2, jaxlib 0.10.2, optax 0.2.8", ""
)


def record(run, accuracy, *, dev_accuracy=0.5, prompt_f1=1.0, majority=0.1, unprompted=0.0):
    """A run with ten test examples, of which the first ones are predicted right."""
    f1 = prompt_f1 if run.has_target else None
    given = (PROMPT, TEXT, NOTHING) if run.has_target else (PROMPT, NOTHING)
    return RunRecord(
        run=run,
        n_train=40,
        n_dev=20,
        n_eval=N_EVAL,
        accuracy=accuracy,
        macro_f1=accuracy,
        majority=majority,
        correct=np.arange(N_EVAL) < N_EVAL * accuracy,
        unprompted=np.arange(N_EVAL) < N_EVAL * unprompted,
        answers={name: (Answer("good", 0.75), None) for name in given},
        dev_accuracy=dev_accuracy,
        reading=NEAREST_TOKENS,
        text=run.target_text,
        token_ids=run.target_ids,
        prompt_f1=f1,
        token_f1=f1,
        distance=0.5 if run.has_target else None,
        final_gamma=run.gamma,
        gamma_found="suffices" if run.constraint == "dual" else None,
        in_cells=True if run.constraint in ("cell", "dual") else None,
        task_loss=0.7,
        kept_step=run.steps,
        diverged_at=None,
        seconds=1.0,
        curve=(CurvePoint(5, 0.7, 0.5 if run.has_target else None, dev_accuracy, f1),),
        provenance=PROVENANCE,
    )


def best(accuracy, seed=1, run=(), **changed):
    """A p_star."""
    return record(Run(**COMMON, prompt_length=2, seed=seed, **dict(run)), accuracy, **changed)


def wayward(accuracy, text="two words", name="own/1", run=(), **changed):
    """A run with a target; `run` are attributes of the run, `changed` those of `record`."""
    target = Target(name, text, tuple(range(len(text.split()))))
    return record(Run.towards(target, **COMMON, **dict(run)), accuracy, **changed)


def with_run(changed, **attributes):
    """The same record of a run with other attributes."""
    return dataclasses.replace(changed, run=dataclasses.replace(changed.run, **attributes))
