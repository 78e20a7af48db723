"""Toy runs of any kind, their training examples, and meshes on which to plan them."""

import dataclasses

from hypothesis import strategies as st
from jax.sharding import AbstractMesh

from tests.helpers import toy_models
from wayward_jax.runs import Run
from wayward_jax.segments import gold_segments
from wayward_jax.sharding import AXES

# Two choices of examples.
EXAMPLES = {seed: toy_models.examples(10, n_labels=2, seed=seed) for seed in (100, 13)}
TRAIN = {
    seed: gold_segments(chosen, [1] * len(chosen), range(2)) for seed, chosen in EXAMPLES.items()
}
A_RUN = Run("model", "task", prompt_length=4, steps=3, batch_size=4)

runs_of_any_kind = st.lists(
    st.builds(
        dataclasses.replace,
        st.just(A_RUN),
        prompt_length=st.integers(1, 40),
        gamma=st.sampled_from([0.0, 0.1]),
        seed=st.integers(0, 10**6),
        steps=st.integers(1, 3),
        batch_size=st.sampled_from([2, 4]),
        method=st.sampled_from(["direct", "channel"]),
        k_shot=st.sampled_from([-1, 16]),
        data_seed=st.sampled_from(list(TRAIN)),
    ),
    min_size=1,
    max_size=30,
    unique=True,
)
# No devices are needed to plan.
meshes = st.sampled_from(
    [AbstractMesh(sizes, AXES) for sizes in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1))]
)
