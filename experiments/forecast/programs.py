"""The programs of a job, compiled from shapes alone for devices that are not there."""

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wayward_jax.constraints import CONSTRAINTS, Constraint
from wayward_jax.models import LanguageModel
from wayward_jax.models.family import Family
from wayward_jax.packing import PackedBatch, empty_pack
from wayward_jax.shapes import PackedShape
from wayward_jax.sharding import BY_RUN, param_specs
from wayward_jax.training.evaluation import BY_SHARD, score_packs
from wayward_jax.training.optimizers import named_optimizer
from wayward_jax.training.planning import PopulationPlan
from wayward_jax.training.scoring import EvaluationSet
from wayward_jax.training.step import (
    BATCH_SPECS,
    STATE_SPECS,
    Population,
    TrainState,
    init_state,
    train_steps,
)
from wayward_jax.training.trainer import describe_population


class Compiled(NamedTuple):
    """A compiled program.

    Attributes:
        hlo: its text; empty if the compiler refused, because memory does not suffice.
        memory: bytes of each device that it takes, its arguments among them.
        seconds: that tracing and compiling took.
        refusal: what the compiler said.
    """

    hlo: str
    memory: int
    seconds: float
    refusal: str = ""


def abstract_params(
    shapes: Mapping[str, Any], family: Family, dtype: jnp.dtype, mesh: Mesh
) -> dict[str, Any]:
    """The shapes of a model's weights on a mesh.

    Args:
        shapes: arrays or their shapes, as `LanguageModel.params`.
        family: says how they are sharded.
        dtype: of all.
        mesh: see `sharding.AXES`.
    """
    specs = param_specs(shapes, mesh, family.partition_spec)
    return _like(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes), mesh, specs)


def compile_training(
    model: LanguageModel,
    plan: PopulationPlan,
    shape: PackedShape,
    mesh: Mesh,
    constraints: Mapping[str, Constraint] = MappingProxyType(CONSTRAINTS),
) -> Compiled:
    """Compiles a call of the training program with packs of one of the plan's shapes."""
    run = plan.runs[0]
    optimizer = named_optimizer(run.optimizer, run.steps, run.warmup, run.weight_decay)
    population = describe_population(plan, model.tokenizer.vocab_size, constraints)
    state = _state(model, plan, population, optimizer)
    return _compile(
        train_steps,
        model.module,
        model.params,
        _like(population, mesh, BY_RUN),
        _like(state, mesh, STATE_SPECS),
        _like(_packs(plan, shape), mesh, BATCH_SPECS),
        jax.ShapeDtypeStruct((), jnp.int32),
        optimizer,
        run.steps,
        mesh,
    )


def compile_scoring(
    model: LanguageModel, plan: PopulationPlan, examples: EvaluationSet, mesh: Mesh
) -> Compiled:
    """Compiles the program that scores a part of some examples under all prompts of a plan."""
    places = len(plan.padded_runs)
    width = model.embedding_table().shape[1]
    prompts = jax.ShapeDtypeStruct((places, plan.prompt_length, width), jnp.float32)
    pack = empty_pack(plan.runs_per_shard, examples.shape)
    axes = (plan.run_shards, plan.data_shards)
    return _compile(
        score_packs,
        model.module,
        model.params,
        _like(prompts, mesh, BY_RUN),
        _like(_stacked(pack, axes), mesh, BY_SHARD),
        mesh,
    )


def _packs(plan: PopulationPlan, shape: PackedShape) -> PackedBatch:
    """The shapes of the packs of a call, see `step.BATCH_SPECS`."""
    pack = empty_pack(plan.runs_per_shard, shape)
    axes = (plan.steps_per_call, plan.run_shards * plan.packs_per_shard, plan.data_shards)
    return _stacked(pack, axes)


def _stacked(pack: PackedBatch, axes: tuple[int, ...]) -> PackedBatch:
    """The shapes of packs with further axes before those of a pack."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*axes, *x.shape), x.dtype), pack)


def _state(
    model: LanguageModel, plan: PopulationPlan, population: Population, optimizer: Any
) -> TrainState:
    """The shapes of a population's state before its first step."""
    runs = plan.padded_runs
    table = model.embedding_table()
    prompts = jax.ShapeDtypeStruct((len(runs), plan.prompt_length, table.shape[1]), jnp.float32)

    def start(table: jax.Array, prompts: jax.Array) -> TrainState:
        return init_state(
            population,
            table,
            prompts,
            optimizer,
            gamma=np.array([run.gamma for run in runs]),
            margin=np.array([run.margin for run in runs]),
            steps=runs[0].steps,
        )

    return jax.eval_shape(start, table, prompts)


def _like(tree: Any, mesh: Mesh, specs: Any) -> Any:
    """The shapes of a pytree's arrays, sharded as `sharding.place` shards them."""

    def shape(spec: PartitionSpec, part: Any) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), part
        )

    return jax.tree.map(shape, specs, tree)


def _compile(function: Any, *arguments: Any) -> Compiled:
    began = time.perf_counter()
    try:
        compiled = function.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled("", 0, time.perf_counter() - began, str(error).splitlines()[0])
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    # Compilers leave some temporary memory out of one figure or the other.
    most = max(memory.peak_memory_in_bytes, kept + memory.temp_size_in_bytes)
    return Compiled(compiled.as_text(), most, seconds)
