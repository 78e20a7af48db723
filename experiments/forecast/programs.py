"""The programs of a job, compiled from shapes alone for devices that are not there."""

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.forecast.environment import DUMPS
from experiments.forecast.kernels import take_bundles
from wayward_jax.constraints import CONSTRAINTS, Constraint
from wayward_jax.models import LanguageModel
from wayward_jax.models.family import Family
from wayward_jax.shapes import PackedShape
from wayward_jax.sharding import BY_RUN, param_specs, shapes_on
from wayward_jax.training.optimizers import named_optimizer
from wayward_jax.training.population import PopulationPlan
from wayward_jax.training.programs import lower_scoring, lower_training, read_memory
from wayward_jax.training.scoring import EvaluationSet
from wayward_jax.training.starting import describe_population
from wayward_jax.training.step import STATE_SPECS, Population, TrainState, init_state


class Compiled(NamedTuple):
    """A compiled program.

    Attributes:
        hlo: its text; empty if the compiler refused, because memory does not suffice.
        memory: bytes of each device that it takes, its arguments among them.
        seconds: that tracing and compiling took.
        bundles: the instructions of operations on a TPU, see `take_bundles`.
        refusal: what the compiler said.
    """

    hlo: str
    memory: int
    seconds: float
    bundles: Mapping[str, int] = MappingProxyType({})
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
    cast = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)
    return shapes_on(cast, mesh, specs)


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
    on_mesh = shapes_on(population, mesh, BY_RUN), shapes_on(state, mesh, STATE_SPECS)
    return _compile(lambda: lower_training(model, plan, shape, *on_mesh, optimizer, mesh))


def compile_scoring(
    model: LanguageModel, plan: PopulationPlan, examples: EvaluationSet, mesh: Mesh
) -> Compiled:
    """Compiles the program that scores a part of some examples under all prompts of a plan."""
    prompts = shapes_on(_prompts(model, plan), mesh, BY_RUN)
    return _compile(lambda: lower_scoring(model, plan, examples.shape, prompts, mesh))


def _state(
    model: LanguageModel, plan: PopulationPlan, population: Population, optimizer: Any
) -> TrainState:
    """The shapes of a population's state before its first step."""
    runs = plan.padded_runs
    table = model.embedding_table()

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

    return jax.eval_shape(start, table, _prompts(model, plan))


def _prompts(model: LanguageModel, plan: PopulationPlan) -> jax.ShapeDtypeStruct:
    """The shape of a population's prompts."""
    width = model.embedding_table().shape[1]
    return jax.ShapeDtypeStruct((len(plan.padded_runs), plan.prompt_length, width), jnp.float32)


def _compile(lower: Callable[[], jax.stages.Lowered]) -> Compiled:
    began = time.perf_counter()
    try:
        compiled = lower().compile()
        seconds = time.perf_counter() - began
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = str(error).splitlines()[0]
        return Compiled("", 0, time.perf_counter() - began, refusal=refusal)
    finally:
        bundles = take_bundles(DUMPS)
    return Compiled(compiled.as_text(), read_memory(compiled).total, seconds, bundles)
