"""Runs, their ids, and the records of what came of them."""

import dataclasses
import json
import math

import numpy as np
import pytest

from tests.helpers.finished_runs import PROVENANCE
from wayward_jax.runs import PROMPT, TEXT, Answer, CurvePoint, Run, RunRecord
from wayward_jax.targets import Target

RUN = Run.towards(
    Target("words/1", "日本 'two'", (5, 3)), model="gpt2", task="sst2", gamma=0.1, init="target"
)
RECORD = RunRecord(
    run=RUN,
    n_train=40,
    n_dev=12,
    n_eval=11,
    accuracy=8 / 11,
    macro_f1=0.7,
    majority=6 / 11,
    correct=np.arange(11) < 8,
    unprompted=np.arange(11) < 3,
    answers={PROMPT: (Answer("日本", 0.9), None), TEXT: (Answer("b", 0.5), Answer("a", 0.6))},
    dev_accuracy=0.5,
    reading="nearest tokens",
    text="one two",
    token_ids=(5, 4),
    prompt_f1=2 / 3,
    token_f1=0.5,
    distance=1.25,
    final_gamma=0.1,
    gamma_found=None,
    in_cells=None,
    kept_step=10,
    task_loss=0.3,
    diverged_at=None,
    seconds=1.5,
    curve=(CurvePoint(5, 0.5, 2.0, 0.25, 0.0), CurvePoint(10, math.nan, 1.25, 0.5, 2 / 3)),
    provenance=PROVENANCE,
    prompt=np.ones((2, 3), np.float32),
)


def test_a_record_comes_back_from_a_line_of_json_but_for_its_prompt():
    back = RunRecord.from_json(json.loads(json.dumps(RECORD.to_json())))
    assert back.run == RUN
    assert back.prompt is None
    np.testing.assert_array_equal(back.correct, RECORD.correct)
    assert back.correct.dtype == bool
    assert back.unprompted.sum() == 3
    assert back.answers == RECORD.answers
    assert back.provenance == PROVENANCE
    assert json.dumps(back.to_json()) == json.dumps(RECORD.to_json())


@pytest.mark.parametrize("name", [*RECORD.to_json()])
def test_a_record_without_one_of_its_entries_is_refused(name):
    row = RECORD.to_json()
    del row[name]
    with pytest.raises(ValueError, match=name):
        RunRecord.from_json(row)


@pytest.mark.parametrize(
    "wrong",
    [
        {"correct": 5},
        {"correct": "xy"},
        {"unprompted": "xy"},
        {"curve": [5]},
        {"answers": 5},
        {"answers": {"prompt": [["good"]]}},
        {"curve": [{"step": 5}]},
        {"token_ids": 5},
        {"target_ids": None},
        {"n_eval": "many"},
        {"id": "0123456789ab"},
        {"gamma": 0.2},
    ],
    ids=str,
)
def test_a_record_with_a_wrong_entry_is_refused(wrong):
    with pytest.raises(ValueError, match=r"wrong kind|not its run's|hexadecimal"):
        RunRecord.from_json(RECORD.to_json() | wrong)


@pytest.mark.parametrize("field", dataclasses.fields(Run), ids=lambda field: field.name)
def test_every_attribute_of_a_run_decides_its_id(field):
    value = getattr(RUN, field.name)
    other = (*value, 7) if isinstance(value, tuple) else value + type(value)("1")
    assert dataclasses.replace(RUN, **{field.name: other}).id != RUN.id
