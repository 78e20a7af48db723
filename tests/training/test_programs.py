"""The programs of a population: how often they are compiled, and memory that does not suffice."""

import collections
import dataclasses
import types

import jax
import pytest

from tests.helpers import toy_models
from wayward_jax.errors import InputError
from wayward_jax.runs import Run
from wayward_jax.sharding import make_mesh
from wayward_jax.training.examples import encode_task
from wayward_jax.training.planning import plan_populations
from wayward_jax.training.population import PopulationPlan
from wayward_jax.training.programs import Memory, check_memory, compile_together
from wayward_jax.training.trainer import score_unprompted, tune_population

GIB = 2**30
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compiled():
    """Counts the compilations of each function by name."""
    counts = collections.Counter()

    def listen(event, seconds, fun_name="", **about):
        if event == COMPILED:
            counts[fun_name.removeprefix("jit(").removesuffix(")")] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counts
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{}, {"runs": 2, "data": 2}], ids=str)
def test_each_program_is_compiled_once_and_before_the_first_step(tmp_path, compiled, sizes):
    on_devices = make_mesh(**sizes)
    model = toy_models.make("gpt2", tmp_path).placed(on_devices)
    task = encode_task(
        *(model, {100: toy_models.toy_data()}), prompt_length=6, template=0, tokens=200
    )
    runs = [dataclasses.replace(run, keep="best") for run in toy_models.toy_runs(model, steps=23)]
    (own,) = plan_populations(
        {"toy": task.train},
        runs,
        population=len(runs),
        pack_tokens=60,
        mesh=on_devices,
        num_evals=3,
    )
    at_first = {}

    def on_progress(progress):
        at_first.setdefault("compiled", dict(compiled))

    for _ in range(2):  # and not again for another population
        tune_population(model, task, own, on_devices, on_progress=on_progress)
    score_unprompted(model, task, own, on_devices)
    shapes = len(set(own.call_shapes))
    assert len(own.calls) > shapes > 1
    assert (compiled["train_steps"], compiled["score_packs"]) == (shapes, 1)
    assert at_first["compiled"]["train_steps"] == shapes
    assert at_first["compiled"]["score_packs"] == 1


def mesh(runs=1, data=1, model=1):
    shape = {"runs": runs, "data": data, "model": model}
    return types.SimpleNamespace(shape=shape, size=runs * data * model)


def plan(runs, run_shards=1, packs_per_shard=1):
    return PopulationPlan(
        runs=tuple(Run("m", "t", 3, seed=i, batch_size=8) for i in range(runs)),
        prompt_length=3,
        run_shards=run_shards,
        data_shards=1,
        packs_per_shard=packs_per_shard,
        runs_per_shard=runs // run_shards,
        eval_steps=(1,),
    )


def gib(total, working):
    return Memory(int(total * GIB), int(working * GIB))


SMALL = gib(1, 0.5)


def test_what_fits_to_the_byte_passes():
    check_memory(plan(8), mesh(), gib(16, 12), SMALL, 16 * GIB)


@pytest.mark.parametrize(
    ("of_plan", "sizes", "training", "scoring", "available", "said"),
    [
        # 10 of 40 GiB of work fit, and a tenth of them is left free: 0.225 of 64 runs.
        (
            *((64,), {}, gib(46, 40), SMALL, 16),
            "population=64: a step takes 46.0 GiB of each device, and 16.0 are free: "
            "give population=14",
        ),
        # The 8 runs of each of four packs are what takes the memory of a device.
        (
            *((64, 2, 4), {"runs": 2}, gib(46, 40), SMALL, 26),
            "population=64: a step takes 46.0 GiB of each device, and 26.0 are free: "
            "give population=6",
        ),
        # Not even a run fits; 0.45 of its 8 examples do.
        (
            *((1,), {}, gib(26, 20), SMALL, 16),
            "batch_size=8: a step takes 26.0 GiB of each device, and 16.0 are free: "
            "give batch_size=3",
        ),
        # The weights alone do not fit.
        (
            *((8,), {"runs": 8}, gib(30, 10), SMALL, 16),
            "mesh='runs:8,data:1,model:1': a step takes 30.0 GiB of each device, and 16.0 are "
            "free: give mesh=runs:2,model:4",
        ),
        (
            *((1,), {}, gib(30, 10), SMALL, 16),
            "mesh='runs:1,data:1,model:1': a step takes 30.0 GiB of each device, and 16.0 are "
            "free: share the model (mesh=model:N) between 3 devices or more",
        ),
        # Fewer runs do not make evaluation smaller.
        (
            *((8,), {"runs": 4, "model": 2}, SMALL, gib(20, 19), 16),
            "mesh='runs:4,data:1,model:2': evaluation takes 20.0 GiB of each device, and 16.0 are "
            "free: give mesh=runs:2,model:4",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_flag_and_value_that_help(
    of_plan, sizes, training, scoring, available, said
):
    with pytest.raises(InputError) as error:
        check_memory(plan(*of_plan), mesh(**sizes), training, scoring, available * GIB)
    assert str(error.value) == said


def refused(said):
    """A lowered program that a compiler refuses."""

    def compile_it():
        raise jax.errors.JaxRuntimeError(said)

    return types.SimpleNamespace(compile=compile_it)


def test_what_the_compiler_finds_too_large_is_refused_in_one_line_and_its_other_errors_are_not():
    fitting = jax.jit(lambda x: x + 1).lower(1.0)
    too_large = refused("RESOURCE_EXHAUSTED: Ran out of memory. Used 20.5G of 15.7G hbm.\n\nTotal:")
    one_device = types.SimpleNamespace(is_multi_process=False)
    with pytest.raises(InputError) as error:
        compile_together([fitting, too_large], plan(64), one_device)
    assert str(error.value) == (
        "population=64: does not fit into the memory of the devices (RESOURCE_EXHAUSTED: Ran out "
        "of memory. Used 20.5G of 15.7G hbm): give fewer, a smaller batch_size, or share the model "
        "(mesh=model:N)"
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compile_together([refused("INTERNAL: a bug")], plan(64), one_device)
