"""Devices as a mesh: the same numbers, where weights lie, and what devices tell each other."""

import collections
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from experiments.forecast.programs import compile_training
from tests.helpers import tiny_programs, toy_models
from wayward_jax.models.gpt2.params import GPT2_FAMILY
from wayward_jax.segments import gold_segments
from wayward_jax.sharding import by_platform, make_mesh, place, place_params
from wayward_jax.training.calls import iter_calls
from wayward_jax.training.examples import encode_task
from wayward_jax.training.optimizers import named_optimizer
from wayward_jax.training.planning import plan_populations
from wayward_jax.training.starting import init_population
from wayward_jax.training.step import BATCH_SPECS, train_steps
from wayward_jax.training.trainer import tune_population

STEPS = 4
COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter)"
    r"(?:-start)?\(.*?(?:replica_groups|source_target_pairs)=(mesh\[.*?\] \{.*?\}|\S*)"
)

pytestmark = [
    pytest.mark.skipif(jax.device_count() < 8, reason="there are fewer than 8 devices"),
    pytest.mark.usefixtures("one_shape"),
]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """Gives the tiny model of a family, its weights on a mesh."""
    folder = tmp_path_factory.mktemp("tiny")
    models = {family: toy_models.make(family, folder) for family in toy_models.FAMILIES}

    def on_mesh(family, mesh):
        model = models[family]
        return dataclasses.replace(
            model, params=place_params(model.params, mesh, model.family.partition_spec)
        )

    return on_mesh


@pytest.fixture(scope="module")
def results_on(model_of):
    """Gives the results of five runs, tuned and evaluated on a mesh of some shape."""

    def results(family, shape):
        mesh = make_mesh(*shape)
        model = model_of(family, mesh)
        task = encode_task(
            model,
            {100: toy_models.toy_data()},
            prompt_length=6,
            template=0,
            tokens=300,
        )
        (own,) = plan_populations(
            {"toy": task.train},
            toy_models.toy_runs(model, steps=STEPS),
            population=5,
            pack_tokens=200,
            mesh=mesh,
            num_evals=2,
        )
        return sorted(tune_population(model, task, own, mesh), key=lambda record: record.id)

    return results


@pytest.fixture(scope="module")
def on_one_device(results_on):
    return {family: results_on(family, (1, 1, 1)) for family in toy_models.FAMILIES}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("gpt2", (8, 1, 1)),
        ("llama", (2, 2, 2)),
        ("gpt2", (1, 1, 2)),
    ],
)
def test_a_mesh_gives_the_numbers_of_one_device(results_on, on_one_device, family, shape):
    results = results_on(family, shape)
    for ours, expected in zip(results, on_one_device[family], strict=True):
        assert ours.run == expected.run
        np.testing.assert_allclose(ours.prompt, expected.prompt, rtol=0, atol=1e-4)
        np.testing.assert_allclose(ours.task_loss, expected.task_loss, rtol=1e-4)
        np.testing.assert_array_equal(ours.correct, expected.correct)
        assert (ours.token_ids, ours.text) == (expected.token_ids, expected.text)


def compiled(model, mesh):
    """The text of the program that takes two steps of five runs."""
    own_runs = toy_models.toy_runs(model, steps=2)
    train = {100: gold_segments(toy_models.examples(20, n_labels=2, seed=0), [1] * 20, range(2))}
    (own,) = plan_populations({"toy": train}, own_runs, population=5, pack_tokens=100, mesh=mesh)
    optimizer = named_optimizer("adamw", steps=2)
    population, state = init_population(model, own, mesh, optimizer)
    return (
        train_steps.lower(
            model.module,
            model.params,
            population,
            state,
            place(next(iter_calls(train, own)).packs, mesh, BATCH_SPECS),
            2,
            optimizer,
            2,
            mesh,
        )
        .compile()
        .as_text()
    )


@pytest.mark.slow
def test_runs_never_communicate_and_examples_only_sum_up(model_of):
    """From jax 0.11 on, groups of devices are written as axes of the mesh."""
    mesh = make_mesh(runs=2, data=4)
    groups = "{{0,1,2,3},{4,5,6,7}},", "mesh['runs'=2,'data'=4,'model'=1] {'data'}"
    found = set(COLLECTIVE.findall(compiled(model_of("gpt2", mesh), mesh)))
    assert found in [{("all-reduce", each)} for each in groups]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "devices"), [("llama", 4), ("gpt2", 2), ("gemma3_text", 4), ("gpt_neox", 2)]
)
def test_a_layer_sums_over_the_model_axis_four_times_at_most_and_moves_nothing_else(
    family, devices
):
    """Behind attention and MLP, and behind the gradients of both, as in Megatron-LM."""
    mesh = make_mesh(runs=2, model=devices)

    def collectives(depth):
        entries = {**tiny_programs.CONFIGS[family], tiny_programs.DEPTH_ENTRIES[family]: depth}
        model, plan = tiny_programs.make_model(family, entries, mesh), tiny_programs.make_plan(mesh)
        hlo = compile_training(model, plan, plan.shapes[0], mesh).hlo
        return collections.Counter(name for name, _ in COLLECTIVE.findall(hlo))

    of_layer = collectives(2) - collectives(1)
    assert of_layer.keys() == {"all-reduce"}
    assert of_layer["all-reduce"] <= 4


@pytest.mark.parametrize(
    ("family", "halves"),
    [
        (
            "gpt2",
            {
                "q_proj/kernel": (32, 16),
                "k_proj/kernel": (32, 16),
                "v_proj/kernel": (32, 16),
                "c_fc/kernel": (32, 64),
                "attn_proj/kernel": (16, 32),
                "mlp_proj/kernel": (64, 32),
                "embed/embedding": (48, 32),
            },
        ),
        (
            "llama",
            {
                "q_proj/kernel": (32, 16),
                "k_proj/kernel": (32, 8),
                "v_proj/kernel": (32, 8),
                "o_proj/kernel": (16, 32),
                "gate_proj/kernel": (32, 24),
                "up_proj/kernel": (32, 24),
                "down_proj/kernel": (24, 32),
                "embed/embedding": (48, 32),
                "head/embedding": (48, 32),
            },
        ),
    ],
)
def test_each_device_of_a_model_axis_holds_its_share(model_of, family, halves):
    """Half of every matrix where there are two, and a copy of the small rest."""
    flat = traverse_util.flatten_dict(
        model_of(family, make_mesh(model=2)).params["params"], sep="/"
    )
    seen = set()
    for path, x in flat.items():
        kind = "/".join(path.split("/")[-2:])
        seen.add(kind)
        assert [shard.data.shape for shard in x.addressable_shards] == [
            halves.get(kind, x.shape)
        ] * 2
    assert set(halves) <= seen


def test_what_cannot_be_split_evenly_is_copied():
    params = {"embed": {"embedding": jnp.zeros((9, 4))}, "c_fc": {"kernel": jnp.zeros((4, 8))}}
    placed = place_params(params, make_mesh(model=2), GPT2_FAMILY.partition_spec)
    assert placed["embed"]["embedding"].addressable_shards[1].data.shape == (9, 4)
    assert placed["c_fc"]["kernel"].addressable_shards[1].data.shape == (4, 4)


def test_a_mesh_of_too_many_devices_is_refused():
    with pytest.raises(ValueError, match="devices"):
        make_mesh(runs=2 * jax.device_count())


def test_only_the_way_of_the_platform_is_traced_where_the_mesh_tells_it():
    def elsewhere(x):
        raise AssertionError("traced")

    with jax.set_mesh(make_mesh()):
        assert jax.jit(lambda x: by_platform(x, tpu=elsewhere, default=jnp.sin))(0.0) == 0
        assert jax.jit(lambda x: by_platform(x, cpu=jnp.cos, default=elsewhere))(0.0) == 1


def test_without_a_mesh_the_way_of_the_platform_that_compiles_is_computed():
    found = jax.jit(lambda x: by_platform(x, cpu=jnp.cos, cuda=jnp.tan, default=jnp.sin))(0.0)
    assert found == 1
