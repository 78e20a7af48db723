"""The estimate of a step's memory against XLA's, and the packs that fit into it."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.helpers import toy_models
from wayward_jax.errors import InputError
from wayward_jax.models import LanguageModel
from wayward_jax.models.gpt2.modeling import GPT2, GPT2Config
from wayward_jax.models.gpt2.params import GPT2_FAMILY
from wayward_jax.objective import summed_losses
from wayward_jax.packing import empty_pack
from wayward_jax.runs import Run
from wayward_jax.segments import gold_segments
from wayward_jax.shapes import PackedShape
from wayward_jax.sharding import make_mesh
from wayward_jax.training import memory
from wayward_jax.training.planning import MAX_OVERFULL, plan_populations

TRAIN = {100: gold_segments(toy_models.examples(40, n_labels=2, seed=0), [0] * 40, range(2))}


def zeros(config):
    """A GPT-2 whose weights are all 0, and which has no tokenizer."""
    module = GPT2(config)
    text = jnp.zeros((1, 4), jnp.int32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), text, method="text_logits"))
    params = jax.tree.map(jnp.zeros_like, shapes)
    return LanguageModel("zeros", GPT2_FAMILY, module, params, None).placed(make_mesh())


@pytest.fixture(scope="module")
def small():
    return zeros(GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=4))


@pytest.fixture(scope="module")
def middling():
    return zeros(GPT2Config(vocab_size=2000, n_positions=256, n_embd=256, n_layer=4, n_head=4))


def shape_of(examples):
    """Of a pack with so many rows of an example, which has 4 predictions."""
    return PackedShape(examples, 40, examples, 4 * examples, 4 * examples)


def needed_by_xla(model, runs, prompt_length, shape):
    """The temporary memory of the compiled gradient."""
    width = model.embedding_table().shape[1]

    def gradient(params, prompts, pack):
        def total(prompts):
            return summed_losses(model.module, params, prompts, pack)[0].sum()

        return jax.grad(total)(prompts)

    prompts = jnp.zeros((runs, prompt_length, width))
    pack = empty_pack(runs, shape)
    program = jax.jit(gradient).lower(model.params, prompts, pack).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("runs", [1, 4])
@pytest.mark.parametrize("size", ["small", "middling"])
def test_xla_needs_no_more_than_is_said(request, size, runs):
    model, shape = request.getfixturevalue(size), shape_of(examples=16)
    shape = shape._replace(copies=16 // runs)
    said = memory.activation_bytes(model, shape)
    needed = needed_by_xla(model, runs, 10, shape)
    assert needed <= said < 2 * needed


def test_memory_grows_with_tokens(middling):
    taken = [memory.activation_bytes(middling, shape_of(n)) for n in (8, 16, 32)]
    tokens = np.array([8, 16, 32]) * 40
    np.testing.assert_allclose(taken / tokens, taken[0] / tokens[0], rtol=0.1)


@pytest.fixture(scope="module")
def planned(small):
    """Gives the tokens of a pack, and 40 runs planned for them, where so many bytes are free."""
    runs = [
        Run("zeros", "none", prompt_length=4 + seed % 3, seed=seed, steps=20, batch_size=4)
        for seed in range(40)
    ]

    @functools.cache
    def plans(free):
        tokens = memory.pack_tokens(small, TRAIN, runs, free)
        mesh = make_mesh()
        return tokens, plan_populations(
            {"none": TRAIN},
            runs,
            population=None,
            pack_tokens=tokens,
            mesh=mesh,
            row_grain=memory.row_grain(mesh),
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "ROW_CPU", 32)  # each length of rows to choose from takes time
        yield plans


@pytest.mark.slow
def test_too_little_memory_for_one_run_is_refused(planned):
    with pytest.raises(InputError, match=r"batch_size=4.*lower") as refusal:
        planned(10_000)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
@pytest.mark.parametrize("free", [2**22, 2**23])
def test_the_packs_that_are_planned_fit_into_the_memory_there_is(small, planned, free):
    _, plans = planned(free)
    assert planned(2**22)[0] < planned(2**23)[0] < memory.busy_tokens(make_mesh())
    largest = max(plans, key=lambda each: each.shapes[-1].cost)
    assert largest.runs_per_shard > largest.packs_per_shard
    prompts = largest.runs_per_shard, largest.prompt_length
    assert needed_by_xla(small, *prompts, largest.shapes[-1]) < free


@pytest.mark.slow
def test_packs_are_no_larger_than_keeps_a_device_busy(planned):
    assert planned(2**60)[0] == memory.busy_tokens(make_mesh())


@pytest.mark.parametrize(("width", "shards"), [(768, 1), (5120, 1), (5120, 2), (28672, 8)])
def test_on_a_tpu_the_widest_layer_of_the_fullest_pack_stays_in_vector_memory(width, shards):
    device = SimpleNamespace(platform="tpu")
    layers = {"down": ((width, 512), ("model",)), "up": ((512, width), (None, "model"))}
    placed = make_mesh(model=shards)
    params = {
        name: {
            "kernel": jax.ShapeDtypeStruct(
                shape, jnp.bfloat16, sharding=NamedSharding(placed, PartitionSpec(*axes))
            )
        }
        for name, (shape, axes) in layers.items()
    }
    mesh = SimpleNamespace(devices=np.array([device]))
    asked = memory._vector_tokens(SimpleNamespace(mesh=mesh, params=params))
    fullest = int(MAX_OVERFULL * asked)
    assert fullest * width * 2 / shards <= memory.VECTOR_BYTES
    assert (fullest + 2) * width * 2 / shards > memory.VECTOR_BYTES
