"""Which runs are tuned together, what examples they see, and how little is computed for nothing."""

import collections
import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh

from tests.helpers import toy_models
from wayward_jax import targets
from wayward_jax.models.formats import gguf
from wayward_jax.runs import Run
from wayward_jax.segments import Segments, example_order, gold_segments, label_segments
from wayward_jax.sharding import AXES, make_mesh
from wayward_jax.tasks import encode, load
from wayward_jax.training.memory import busy_tokens, row_grain
from wayward_jax.training.planning import (
    MAX_SHAPES,
    iter_calls,
    plan_populations,
)
from wayward_jax.training.scoring import EvaluationSet, plan_scoring, scoring_shape

# Two choices of examples.
EXAMPLES = {seed: toy_models.examples(10, n_labels=2, seed=seed) for seed in (100, 13)}
TRAIN = {
    seed: gold_segments(chosen, [1] * len(chosen), range(2)) for seed, chosen in EXAMPLES.items()
}
A_RUN = Run("model", "task", prompt_length=4, steps=3, batch_size=4)

SHARED = ("steps", "batch_size", "method", "template", "k_shot")
runs_of_any_kind = st.lists(
    st.builds(
        dataclasses.replace,
        st.just(A_RUN),
        prompt_length=st.integers(1, 40),
        gamma=st.sampled_from([0.0, 0.1]),
        seed=st.integers(0, 10**6),
        steps=st.integers(1, 3),
        batch_size=st.sampled_from([2, 4]),
        method=st.sampled_from(["direct", "channel"]),
        k_shot=st.sampled_from([-1, 16]),
        data_seed=st.sampled_from(list(TRAIN)),
    ),
    min_size=1,
    max_size=30,
    unique=True,
)
# No devices are needed to plan.
meshes = st.sampled_from(
    [AbstractMesh(sizes, AXES) for sizes in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1))]
)


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


def seen(pack):
    """The examples of each run of a pack, as `expected` has them."""
    found = [collections.Counter() for _ in pack.prompt_lengths]
    predicted = np.where(pack.weight > 0, pack.segment.ravel()[pack.query[pack.of]], -1)
    for example in set(pack.segment.ravel().tolist()) - {0}:
        tokens, targets = pack.ids[pack.segment == example], pack.target[predicted == example]
        (run,) = set(pack.run[pack.segment == example].tolist())
        found[run][tuple(tokens.tolist()), tuple(targets.tolist())] += 1
    return found


def expected(data_seed, numbers):
    """Counts each of these examples: by its tokens and what it predicts."""
    found = collections.Counter()
    for i in numbers:
        example = EXAMPLES[data_seed][i]
        context, continuation = example.contexts[1], example.continuations[1]
        found[context + continuation[:-1], continuation] += 1
    return found


@pytest.mark.slow
@settings(max_examples=25)
@given(runs=runs_of_any_kind, pack_tokens=st.integers(1, 300), mesh=meshes)
def test_every_step_has_each_runs_own_examples(runs, pack_tokens, mesh):
    """Those that its seed alone decides, whatever else is in the population."""
    for own in plan_populations(
        {"task": TRAIN}, runs, population=8, pack_tokens=pack_tokens, mesh=mesh
    ):
        steps, batch_size = own.runs[0].steps, own.runs[0].batch_size
        step = 0
        for call in iter_calls(TRAIN, own):
            for packs in _each(call.packs)[: call.steps]:
                found = [collections.Counter() for _ in own.padded_runs]
                for number, parts in enumerate(_each(packs)):
                    first = number // own.packs_per_shard * own.runs_per_shard
                    assert len(parts.ids) == own.data_shards
                    for pack in _each(parts):
                        for run, examples in enumerate(seen(pack)):
                            found[first + run] += examples
                for number, run in enumerate(own.padded_runs):
                    order = example_order(len(TRAIN[run.data_seed]), steps * batch_size, run.seed)
                    own_examples = order.reshape(steps, batch_size)[step]
                    wanted = own_examples if number in own.places else ()
                    assert found[number] == expected(run.data_seed, wanted)
                step += 1
        assert step == steps


def test_a_process_lays_out_the_packs_of_its_own_shards():
    runs = [dataclasses.replace(A_RUN, prompt_length=n, seed=n) for n in range(1, 8)]
    mesh = AbstractMesh((2, 2, 1), AXES)
    (own,) = plan_populations({"task": TRAIN}, runs, population=7, pack_tokens=30, mesh=mesh)
    assert own.packs_per_shard > 1
    whole = iter_calls(TRAIN, own)
    part = iter_calls(TRAIN, own, shards=(slice(1, 2), slice(0, 1)))
    for expected, found in zip(whole, part, strict=True):
        assert found[1:] == expected[1:]
        for name, x in vars(found.packs).items():
            if name != "segment":  # they are counted through all packs
                wanted = getattr(expected.packs, name)[:, own.packs_per_shard :, :1]
                np.testing.assert_array_equal(x, wanted, name)


def _each(packs):
    """The elements of the leading axis."""
    return [jax.tree.map(lambda x: x[i], packs) for i in range(len(packs.ids))]  # noqa: B023


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
