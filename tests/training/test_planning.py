"""Which runs are tuned together, and how little is computed for nothing."""

import collections
import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.populations import A_RUN, TRAIN, meshes, runs_of_any_kind
from wayward_jax import targets
from wayward_jax.models.formats import gguf
from wayward_jax.runs import Run
from wayward_jax.segments import Segments, gold_segments, label_segments
from wayward_jax.sharding import make_mesh
from wayward_jax.tasks import encode, load
from wayward_jax.training.calls import iter_calls
from wayward_jax.training.memory import busy_tokens, row_grain
from wayward_jax.training.planning import MAX_SHAPES, plan_populations
from wayward_jax.training.scoring import EvaluationSet, plan_scoring, scoring_shape

SHARED = ("steps", "batch_size", "method", "template", "k_shot")


@pytest.mark.slow
@given(
    runs=runs_of_any_kind,
    population=st.none() | st.integers(1, 12),
    pack_tokens=st.integers(1, 500),
    mesh=meshes,
)
def test_every_run_is_planned_once_with_its_like(runs, population, pack_tokens, mesh):
    plans = plan_populations(
        {"task": TRAIN},
        runs,
        population=population,
        pack_tokens=pack_tokens,
        mesh=mesh,
        row_grain=32,  # each length of rows to choose from takes time
    )
    assert collections.Counter(run for each in plans for run in each.runs) == collections.Counter(
        runs
    )
    shapes = collections.defaultdict(set)
    for each in plans:
        (shared,) = {tuple(getattr(run, name) for name in SHARED) for run in each.runs}
        assert each.data_seeds == sorted({run.data_seed for run in each.runs})
        if each.runs[0].k_shot < 0:
            (sample,) = each.data_seeds
            shared = (*shared, sample)
        shapes[shared].add((each.prompt_length, each.shapes))
        own = np.array([run.prompt_length for run in each.runs])
        assert max(own) <= each.prompt_length
        for shard in range(each.run_shards):
            of_shard = own[each.places // each.runs_per_shard == shard]
            assert (np.diff(of_shard) >= 0).all()
        assert population is None or len(each.runs) <= population
        assert len(each.runs) <= each.run_shards * each.runs_per_shard == len(each.padded_runs)
        assert [each.padded_runs[place] for place in each.places] == list(each.runs)
        of_shards = np.bincount(each.places // each.runs_per_shard, minlength=each.run_shards)
        assert max(of_shards) - min(of_shards) <= 1
        assert (each.run_shards, each.data_shards) == (mesh.shape["runs"], mesh.shape["data"])
        assert 1 <= len(each.shapes) <= MAX_SHAPES
    assert all(len(of_group) == 1 for of_group in shapes.values())  # one set of programs


@pytest.mark.parametrize(
    "different",
    [
        {"steps": 1},
        {"batch_size": 1},
        {"method": "channel"},
        {"template": 0},
        {"k_shot": 16},
        {"data_seed": 13},
    ],
)
def test_runs_that_cannot_share_a_program_are_apart(different):
    runs = [A_RUN, dataclasses.replace(A_RUN, **different), dataclasses.replace(A_RUN, seed=2)]
    plans = plan_populations(
        {"task": TRAIN}, runs, population=3, pack_tokens=1000, mesh=make_mesh()
    )
    assert [each.runs for each in plans] == [(runs[0], runs[2]), (runs[1],)]


def test_k_shot_samples_of_a_task_share_a_population():
    few = dataclasses.replace(A_RUN, k_shot=16)
    runs = [few, dataclasses.replace(few, data_seed=13)]
    (own,) = plan_populations(
        {"task": TRAIN}, runs, population=2, pack_tokens=1000, mesh=make_mesh()
    )
    assert own.runs == tuple(runs)
    assert own.data_seeds == [13, 100]


def test_populations_have_short_and_long_prompts_alike():
    runs = [dataclasses.replace(A_RUN, prompt_length=n, seed=n, gamma=n) for n in (9, 3, 7, 5, 1)]
    plans = plan_populations(
        {"task": TRAIN}, runs, population=2, pack_tokens=1000, mesh=make_mesh()
    )
    lengths = [[run.prompt_length for run in each.runs] for each in plans]
    assert sorted(lengths) == [[1, 7], [3, 9], [5]]


# The test looks at this many of 2,000 steps.
LOOKED_AT = 50


@pytest.fixture(scope="module")
def tokenizer(asset):
    """The default model's."""
    return gguf.read(asset("smollm2-135m")).tokenizer


@pytest.fixture(scope="module")
def encoded(data_dir, tokenizer):
    """Gives the training and test segments of a task, its test labels and those of words."""

    @functools.cache
    def encoded(name, k_shot):
        data = load(name, data_dir=data_dir, k_shot=k_shot, fetch=None)
        train, test = (
            encode(data.task, examples.texts, tokenizer) for examples in (data.train, data.test)
        )
        words = data.task.word_labels
        segments = gold_segments(train, data.train.labels, words), label_segments(test)
        return *segments, data.test.labels, words

    return encoded


@pytest.mark.slow
@pytest.mark.parametrize("population", [1, 16])
@pytest.mark.parametrize("k_shot", [16, -1])
@pytest.mark.parametrize("name", ["sst2", "agnews", "trec"])
def test_training_computes_little_for_nothing(encoded, tokenizer, name, k_shot, population):
    """For one run towards each built-in instruction; prompts and their padding are counted."""
    train, mesh = {100: encoded(name, k_shot)[0]}, make_mesh()
    instructions = targets.tokenize(targets.load_texts("instructions"), tokenizer)
    runs = [
        Run.towards(target, model="smollm2-135m", task=name, seed=seed)
        for seed, target in enumerate(instructions)
    ]
    plans = plan_populations(
        {name: train},
        runs,
        population=population,
        pack_tokens=busy_tokens(mesh),
        mesh=mesh,
        row_grain=row_grain(mesh),
    )
    needed = computed = 0
    for own in plans[::5] if population == 1 else plans:
        prompts = sum(run.prompt_length for run in own.runs)
        for call in itertools.islice(iter_calls(train, own), LOOKED_AT // own.steps_per_call):
            packs = jax.tree.map(lambda x, taken=call.steps: x[:taken], call.packs)
            needed += (packs.segment > 0).sum() + call.steps * prompts
            computed += packs.segment.size
    assert needed >= 0.85 * computed


@pytest.mark.slow
@pytest.mark.parametrize("busy", [2048, 8192])
@pytest.mark.parametrize("name", ["sst2", "agnews", "trec"])
def test_evaluation_computes_little_for_nothing(encoded, name, busy):
    """All examples are scored for one run and for 32 runs, and 64 and 32 examples for 32 runs.

    Prompts have 5 to 20 tokens.
    """
    _, test, _, words = encoded(name, 16)
    sets = [Segments.join(list(test)[:n]) for n in (64, 32, len(test))]  # one an example
    shape = scoring_shape(sets, prompt_length=20, tokens=busy, row_grain=8 if busy < 8192 else 128)
    for examples, runs, share in ((2, 1, 0.84), (2, 32, 0.84), (0, 32, 0.8), (1, 32, 0.79)):
        own, lengths = sets[examples], [5 + i % 16 for i in range(runs)]
        each = EvaluationSet(own, shape, np.zeros(1, np.int32), words)
        scoring = plan_scoring([each] * runs, lengths, 1, 1)
        needed = runs * own.sizes[:, 0].sum() + sum(lengths)
        assert needed >= share * len(scoring.parts) * shape.rows * shape.slots
