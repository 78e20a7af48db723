"""Each run sees its own examples at each step, and each process lays out its own packs."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh

from tests.helpers.populations import A_RUN, EXAMPLES, TRAIN, meshes, runs_of_any_kind
from wayward_jax.segments import example_order
from wayward_jax.sharding import AXES
from wayward_jax.training.calls import iter_calls
from wayward_jax.training.planning import plan_populations


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
