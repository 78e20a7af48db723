"""A population before its first step."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from wayward_jax.constraints import CONSTRAINTS, Constraint
from wayward_jax.initialization import STARTS
from wayward_jax.models import LanguageModel
from wayward_jax.sharding import BY_RUN, on_host, place
from wayward_jax.training.planning import PopulationPlan
from wayward_jax.training.step import STATE_SPECS, Population, TrainState, init_state


def init_population(
    model: LanguageModel,
    plan: PopulationPlan,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    starts: Mapping[str, np.ndarray] = MappingProxyType({}),
    constraints: Mapping[str, Constraint] = MappingProxyType(CONSTRAINTS),
) -> tuple[Population, TrainState]:
    """A population before its first step, on the mesh; arguments as for `tune_population`."""
    runs = plan.padded_runs
    population = describe_population(plan, model.tokenizer.vocab_size, constraints)
    table = on_host(model.embedding_table()).astype(np.float32)
    vectors = [
        np.concatenate(
            [
                table[list(run.bos_ids)],
                starts[run.init] if run.init in starts else STARTS[run.init](run, table),
            ]
        )
        for run in runs
    ]
    state = init_state(
        population,
        model.embedding_table(),
        _padded(vectors, plan),
        optimizer,
        gamma=[run.gamma for run in runs],
        margin=[run.margin for run in runs],
        steps=runs[0].steps,
    )
    return place(population, mesh, BY_RUN), place(state, mesh, STATE_SPECS)


def describe_population(
    plan: PopulationPlan,
    vocab_size: int,
    constraints: Mapping[str, Constraint] = MappingProxyType(CONSTRAINTS),
) -> Population:
    """Describes what the runs of a plan are tuned with; see `tune_population`.

    The arrays are on the host's device.
    """
    runs = plan.padded_runs
    names = sorted({run.constraint for run in runs})
    return Population(
        target_ids=_padded(
            [np.asarray((*run.bos_ids, *run.target_ids), np.int32) for run in runs], plan
        ),
        mask=_padded([np.arange(run.input_length) >= len(run.bos_ids) for run in runs], plan),
        learning_rate=jnp.asarray([run.learning_rate for run in runs], jnp.float32),
        constraint=jnp.asarray([names.index(run.constraint) for run in runs], jnp.int32),
        constraints=tuple(constraints[name] for name in names),
        vocab_size=vocab_size,
    )


def _padded(arrays: Sequence[np.ndarray], plan: PopulationPlan) -> jax.Array:
    """Stacks arrays of `[<= L, ...]` as `[R, L, ...]`, padded with zeros at the end."""
    length = plan.prompt_length
    return jnp.asarray(
        np.stack([np.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in arrays])
    )
