"""Reads the prompts of a population, each by the reading that its constraint is about."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from wayward_jax.constraints import ReadingPenalty
from wayward_jax.models import LanguageModel
from wayward_jax.projection import d_proj
from wayward_jax.readings import ReadTokens, read_tokens
from wayward_jax.runs import NEAREST_TOKENS
from wayward_jax.sharding import BY_RUN, on_host
from wayward_jax.training.population import PopulationPlan
from wayward_jax.training.step import Population


def start_reading(
    model: LanguageModel, population: Population, prompts: jax.Array, mesh: Mesh
) -> jax.Array:
    """Starts to read prompts, each by the reading that its constraint is about: `[R, L]` int32.

    That is the nearest tokens, if it is no `ReadingPenalty`.
    """
    ids = d_proj(model.embedding_table(), prompts, model.valid_tokens())
    for number, constraint in enumerate(population.constraints):
        if isinstance(constraint, ReadingPenalty):
            own = _read_shards(constraint, model.params, prompts, population.mask, mesh)
            ids = jnp.where((population.constraint == number)[:, None], own, ids)
    return ids


@functools.partial(jax.jit, static_argnames=("constraint", "mesh"))
def _read_shards(
    constraint: ReadingPenalty, params: dict, prompts: jax.Array, mask: jax.Array, mesh: Mesh
) -> jax.Array:
    """`ReadingPenalty.read` of each device's own runs."""
    return jax.shard_map(
        constraint.read,
        mesh=mesh,
        in_specs=(PartitionSpec(), BY_RUN, BY_RUN),
        out_specs=BY_RUN,
        axis_names={"runs", "data"},
        check_vma=False,
    )(params, prompts, mask)


def decode_readings(
    model: LanguageModel, read: jax.Array, plan: PopulationPlan
) -> list[ReadTokens]:
    """Decodes the tokens that the prompts in all places read as, `[R, L]`, for each run."""
    return [
        read_tokens(model.tokenizer, ids[len(run.bos_ids) : run.input_length], run.target)
        for run, ids in zip(plan.runs, on_host(read)[plan.places].tolist(), strict=True)
    ]


def reading_name(population: Population, place: int) -> str:
    """See `RunRecord.reading`."""
    constraint = population.constraints[int(population.constraint[place])]
    return str(constraint.reading) if isinstance(constraint, ReadingPenalty) else NEAREST_TOKENS
