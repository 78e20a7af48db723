"""A population before its first step."""

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from wayward_jax.constraints import CONSTRAINTS, Constraint
from wayward_jax.initialization import STARTS
from wayward_jax.models import LanguageModel
from wayward_jax.sharding import BY_RUN, on_host, place
from wayward_jax.training.population import PopulationPlan
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
    init = jax.jit(
        init_state,
        static_argnames=("optimizer", "steps"),
        out_shardings=jax.tree.map(functools.partial(NamedSharding, mesh), STATE_SPECS),
    )
    state = init(
        population,
        model.embedding_table(),
        _padded(vectors, plan),
        optimizer,
        gamma=np.array([run.gamma for run in runs], np.float32),
        margin=np.array([run.margin for run in runs], np.float32),
        steps=runs[0].steps,
    )
    return place(population, mesh, BY_RUN), state


def describe_population(
    plan: PopulationPlan,
    vocab_size: int,
    constraints: Mapping[str, Constraint] = MappingProxyType(CONSTRAINTS),
) -> Population:
    """Describes what the runs of a plan are tuned with; see `tune_population`.

    The arrays are on the host.
    """
    runs = plan.padded_runs
    names = sorted({run.constraint for run in runs})
    return Population(
        target_ids=_padded(
            [np.asarray((*run.bos_ids, *run.target_ids), np.int32) for run in runs], plan
        ),
        mask=_padded([np.arange(run.input_length) >= len(run.bos_ids) for run in runs], plan),
        learning_rate=np.array([run.learning_rate for run in runs], np.float32),
        constraint=np.array([names.index(run.constraint) for run in runs], np.int32),
        constraints=tuple(constraints[name] for name in names),
        vocab_size=vocab_size,
    )


def _padded(arrays: Sequence[np.ndarray], plan: PopulationPlan) -> np.ndarray:
    """Stacks arrays of `[<= L, ...]` as `[R, L, ...]`, padded with zeros at the end."""
    length = plan.prompt_length
    return np.stack([np.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in arrays])
