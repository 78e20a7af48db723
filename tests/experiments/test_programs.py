"""The programs of the largest job of the README are counted; none is compiled."""

import dataclasses
import types

import pytest
from jax.sharding import AbstractMesh

from experiments import grid
from wayward_jax import targets, tasks
from wayward_jax.jobs.settings import Settings
from wayward_jax.models.formats import gguf
from wayward_jax.sharding import AXES
from wayward_jax.training.examples import encode_tasks
from wayward_jax.training.planning import plan_populations

TASKS = ("sst2", "sst5", "agnews", "trec", "subj")


@pytest.mark.slow
def test_the_papers_command_takes_six_programs_at_most(asset, data_dir):
    """Those of the five tasks, 62 targets of 5 to 106 tokens, three gammas and three seeds.

    The first 99 steps stand for 2,000. The number is odd, and no evaluation is at an even distance.
    """
    tokenizer = gguf.read(asset("smollm2-135m")).tokenizer
    module = types.SimpleNamespace(config=types.SimpleNamespace(max_positions=1024))
    model = types.SimpleNamespace(
        name="gpt2-large", digest="", module=module, tokenizer=tokenizer, bos_ids=()
    )
    settings = Settings.parse(
        {
            "model": "gpt2-large",
            "task": ",".join(TASKS),
            "data_dir": str(data_dir),
            "targets": "ni,pile",
            "gamma": "0.01,0.005,0.003",
            "seeds": "1,10,100",
            "steps": "99",
            "n_eval": "0",
        }
    )
    samples, runs = {}, []
    for task in TASKS:
        samples[task] = {100: tasks.load(task, data_dir=data_dir, fetch=None)}
        texts = targets.load_texts(settings.targets, task=task, data_dir=data_dir)
        own = targets.tokenize(texts, tokenizer)
        of_task = dataclasses.replace(settings, template=1)
        runs += grid.runs(of_task, model, task, own)
    assert len(runs) > 5 * 62 * 3 * 4
    encoded = encode_tasks(
        model,
        samples,
        templates=dict.fromkeys(TASKS, 1),
        prompt_length=max(run.prompt_length for run in runs),
        n_dev=settings.n_dev,
        n_eval=settings.n_eval,
        tokens=8192,
        row_grain=128,
    )
    plans = plan_populations(
        {task: own.train for task, own in encoded.items()},
        runs,
        population=None,
        pack_tokens=8192,
        mesh=AbstractMesh((8, 1, 1), AXES),
        row_grain=128,
    )
    assert {plan.runs[0].task for plan in plans} == set(TASKS)
    training = {
        (plan.prompt_length, plan.runs_per_shard, plan.packs_per_shard, plan.steps_per_call, shape)
        for plan in plans
        for shape in plan.shapes
    }
    scoring = {
        (plan.prompt_length, plan.runs_per_shard, examples.shape)
        for plan in plans
        for task in encoded.values()
        for examples in (*task.dev_subset.values(), *task.dev.values(), task.test)
    }
    assert len(training) + len(scoring) <= 6
