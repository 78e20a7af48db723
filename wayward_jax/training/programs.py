"""The programs of a population: lowered from shapes, compiled side by side, and their memory."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from wayward_jax.errors import InputError
from wayward_jax.models import LanguageModel
from wayward_jax.packing import PackedBatch, empty_pack
from wayward_jax.shapes import PackedShape
from wayward_jax.sharding import shapes_on
from wayward_jax.training.evaluation import BY_SHARD, score_packs
from wayward_jax.training.meshes import write_mesh
from wayward_jax.training.population import PopulationPlan
from wayward_jax.training.step import BATCH_SPECS, Population, TrainState, train_steps

# The part of the free memory that a remedy counts on, since it is a proportion and no plan.
CERTAIN = 0.9


class Memory(NamedTuple):
    """The bytes of each device that a program takes.

    Attributes:
        total: all of them, arguments and results among them.
        working: those of what it computes in between.
    """

    total: int
    working: int


def lower_training(
    model: LanguageModel,
    plan: PopulationPlan,
    shape: PackedShape,
    population: Population,
    state: TrainState,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> jax.stages.Lowered:
    """Lowers a call of the training program with packs of one of the plan's shapes.

    The weights, the population and its state are arrays or `jax.ShapeDtypeStruct`s on the mesh.
    """
    axes = (plan.steps_per_call, plan.run_shards * plan.packs_per_shard, plan.data_shards)
    packs = shapes_on(_stacked(empty_pack(plan.runs_per_shard, shape), axes), mesh, BATCH_SPECS)
    steps = plan.runs[0].steps
    return train_steps.lower(
        model.module, model.params, population, state, packs, 1, optimizer, steps, mesh
    )


def lower_scoring(
    model: LanguageModel, plan: PopulationPlan, shape: PackedShape, prompts: Any, mesh: Mesh
) -> jax.stages.Lowered:
    """Lowers the program that scores packs of a shape under all prompts of a plan."""
    axes = (plan.run_shards, plan.data_shards)
    packs = shapes_on(_stacked(empty_pack(plan.runs_per_shard, shape), axes), mesh, BY_SHARD)
    return score_packs.lower(model.module, model.params, prompts, packs, mesh)


def compile_together(
    lowered: Sequence[jax.stages.Lowered], plan: PopulationPlan, mesh: Mesh
) -> list[Memory]:
    """Compiles programs of a population side by side, and reads what they take.

    JAX keeps them, so calls with such arguments compile nothing. Several processes must compile in
    the same order, so they take one after the other.

    Raises:
        InputError: the compiler itself says that a program does not fit, as that of TPUs does.
    """
    threads = ThreadPoolExecutor(max_workers=1 if mesh.is_multi_process else len(lowered))
    try:
        with threads:
            compiled = threads.map(lambda each: each.compile(), lowered)
            return [read_memory(each) for each in compiled]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            "population",
            len(plan.runs),
            f"does not fit into the memory of the devices ({said}): give fewer, a smaller "
            "--batch_size, or share the model (--mesh=model:N)",
        ) from error


def read_memory(compiled: jax.stages.Compiled) -> Memory:
    """What a program takes, as its compiler says."""
    said = compiled.memory_analysis()
    if said is None:  # not all compilers say anything
        return Memory(0, 0)
    kept = said.argument_size_in_bytes + said.output_size_in_bytes - said.alias_size_in_bytes
    # Compilers leave some working memory out of one figure or the other.
    total = max(said.peak_memory_in_bytes, kept + said.temp_size_in_bytes)
    return Memory(total, total - kept)


def check_memory(
    plan: PopulationPlan,
    mesh: Mesh,
    training: Memory,
    scoring: Memory,
    available: int,
    *,
    one_text: bool = False,
) -> None:
    """Checks that the largest programs of a population fit into each device.

    Args:
        plan: of the population.
        mesh: that the plan was made for.
        training: of the largest step.
        scoring: of evaluation.
        available: bytes of each device that there are for them, the weights among them.
        one_text: a pack has a single text for all runs of its shard. Otherwise they share the packs
            of their shard.

    Raises:
        InputError: they do not; it says which flag helps.
    """
    largest = max(training, scoring)
    if largest.total <= available:
        return
    what = "a step" if largest == training else "evaluation"
    takes = (
        f"{what} takes {largest.total / 2**30:.1f} GiB of each device, and "
        f"{available / 2**30:.1f} are free: "
    )
    room = CERTAIN * (available - largest.total + largest.working) / max(largest.working, 1)
    runs = room * plan.runs_per_shard / (1 if one_text else plan.packs_per_shard)
    batch_size = 1 if one_text else plan.runs[0].batch_size
    if largest == training and runs >= 1:
        population = int(runs) * plan.run_shards
        raise InputError("population", len(plan.runs), f"{takes}give --population={population}")
    if largest == training and runs * batch_size >= 1:
        raise InputError(
            "batch_size", batch_size, f"{takes}give --batch_size={int(runs * batch_size)}"
        )
    shards = mesh.shape["model"]
    needed = shards * largest.total / (CERTAIN * available)
    divisors = [n for n in range(shards + 1, mesh.size + 1) if mesh.size % n == 0 and n >= needed]
    remedy = (
        f"give --mesh={write_mesh({'runs': mesh.size // divisors[0], 'model': divisors[0]})}"
        if divisors
        else f"share the model (--mesh=model:N) between {-(-needed // 1):.0f} devices or more"
    )
    raise InputError("mesh", write_mesh(mesh.shape), takes + remedy)


def _stacked(pack: PackedBatch, axes: tuple[int, ...]) -> PackedBatch:
    """The shapes of packs with further axes before those of a pack."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*axes, *x.shape), x.dtype), pack)
