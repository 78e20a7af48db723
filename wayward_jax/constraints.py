"""Constraints keep a prompt to its target while it is tuned.

A constraint may add a term to the loss, change the prompt after each optimizer step, and keep a
state for that. `Constraint` is the protocol of all of them, and a class of your own that follows it
works like the built-in ones.

Cells. The vectors that read as a token are its Voronoi cell among the embeddings. A cell is convex
and contains the token's embedding, so a vector that has left it can be put back exactly: on the ray
from the embedding to the vector, at the point where the ray leaves the cell. A prompt in the cells
of its target's tokens reads as the target, whatever else it has learned. A vector may use only the
fraction `1 - margin` of its cell: the cell, drawn smaller around the embedding. The rest is room
for rounding, and keeps the reading of a prompt from being a near-tie.
"""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from wayward_jax.models import LanguageModel
from wayward_jax.objective import distance
from wayward_jax.projection import BLOCK, TINY, c_proj, d_proj, neighbors
from wayward_jax.readings import Method

# Where an adaptive gamma starts. It comes from above, because a gamma that is too small for long
# leaves too few steps to get to the target.
FIRST_GAMMA = 1.0

# Upper bound of an adaptive gamma. Gradients are clipped, so larger values change nothing and take
# long to decay.
MAX_GAMMA = 10.0

# The largest change of log gamma over a whole training, while gamma falls.
LOG_GAMMA_TRAVEL = 30.0

# Gamma rises this many times faster than it falls, and no longer falls in this last fraction of the
# steps: a vector that leaves its cell late has little time to come back.
RISE = 3.0
SETTLING = 0.25

# This many nearest neighbors of a token are compared with it by exact differences. All others are
# compared by matrix products, whose rounding is taken off the cell.
NEAREST = 32

EPS = float(jnp.finfo(jnp.float32).eps)

# The relative error of a float32 distance between points that are nearly equal: a sum of D squared
# differences.
ROUNDING = 4 * EPS


@struct.dataclass
class Target:
    """The target of one prompt, as arrays.

    ids: `[L]` int32 tokens.
    embeddings: `[L, D]` float32, their embeddings `c_proj(ids)`.
    mask: `[L]` bool, False on BOS before the prompt, and where a prompt that is shorter than its
        population's longest is padded. Vectors there stay as they are.
    table: `[V, D]`, the embeddings of all tokens that can be read.
    params: the frozen weights of the model; None before the first step.
    """

    ids: jax.Array
    embeddings: jax.Array
    mask: jax.Array
    table: jax.Array
    params: Any = None


@dataclasses.dataclass(frozen=True)
class Constraint:
    """Keeps a prompt `[L, D]` to its target; this one does nothing.

    A constraint of your own overrides the methods that it needs. The trainer maps them over the
    runs of a population (`jax.vmap`) inside its compiled program, so they must be pure functions of
    arrays. An object is part of that program, so it must be hashable; a frozen dataclass is. Its
    `repr` names it in the records of its runs. If its state has a field `gamma`, records have the
    last value of that as `final_gamma`.

    Attributes:
        runs_at_once: of a population, how many the penalty is computed for together; None is all.
    """

    runs_at_once: ClassVar[int | None] = None

    def init(self, target: Target, gamma: jax.Array, margin: jax.Array, steps: int) -> Any:
        """The state before the first step: a pytree of arrays.

        Args:
            target: of the prompt.
            gamma: `[]` float32, the run's.
            margin: `[]` float32, the run's.
            steps: of the whole training.
        """
        return ()

    def penalty(self, state: Any, prompt: jax.Array, target: Target) -> jax.Array:
        """The term `[]` that is added to the task loss; its gradient moves the prompt."""
        return jnp.zeros(())

    def project(
        self, state: Any, prompt: jax.Array, target: Target, remaining: jax.Array
    ) -> tuple[jax.Array, Any]:
        """The prompt and the state after an optimizer step; the starting prompt is projected, too.

        Args:
            state: before the step.
            prompt: `[L, D]`, as the optimizer left it.
            target: of the prompt.
            remaining: `[]` float32, the fraction of the steps that is still to come.
        """
        return prompt, state


@struct.dataclass
class PenaltyState:
    """gamma: `[]` float32, the weight of the distance term."""

    gamma: jax.Array


@dataclasses.dataclass(frozen=True)
class Penalty(Constraint):
    """The paper's constraint: `gamma * distance` is added to the loss (section 3)."""

    def init(self, target: Target, gamma: jax.Array, margin: jax.Array, steps: int) -> PenaltyState:
        return PenaltyState(gamma)

    def penalty(self, state: PenaltyState, prompt: jax.Array, target: Target) -> jax.Array:
        return state.gamma * distance(prompt, target.embeddings, target.mask)


@dataclasses.dataclass(frozen=True)
class ReadingPenalty(Constraint):
    """Adds gamma times the loss of a reading: the prompt is to read as its target by that reading.

    Attributes:
        reading: a hashable one.
        model: the model that reads; its weights are those of the target, so it has none.
    """

    runs_at_once: ClassVar[int | None] = 8

    reading: Method
    model: LanguageModel = dataclasses.field(hash=False)

    @classmethod
    def of(cls, reading: Method, model: LanguageModel) -> Self:
        """The constraint for the prompts of a model."""
        return cls(reading, dataclasses.replace(model, params={}))

    def init(self, target: Target, gamma: jax.Array, margin: jax.Array, steps: int) -> PenaltyState:
        return PenaltyState(gamma)

    def penalty(self, state: PenaltyState, prompt: jax.Array, target: Target) -> jax.Array:
        own = slice(len(self.model.bos_ids), None)
        model = dataclasses.replace(self.model, params=target.params)
        rows = (prompt[None, own], target.ids[None, own], target.mask[None, own])
        return state.gamma * self.reading.loss(model, *rows)[0]

    def read(self, params: dict[str, Any], prompts: jax.Array, mask: jax.Array) -> jax.Array:
        """Reads prompts as a population has them, with BOS before them: `[R, L]` int32 tokens.

        Args:
            params: the frozen weights.
            prompts: `[R, L, D]`.
            mask: `[R, L]` bool, see `Target`.
        """
        before = len(self.model.bos_ids)
        model = dataclasses.replace(self.model, params=params)

        def read(run: tuple[jax.Array, jax.Array]) -> jax.Array:
            prompt, own = run
            return self.reading.read(model, prompt[None, before:], own[None, before:])[0]

        ids = jax.lax.map(read, (prompts, mask), batch_size=self.runs_at_once)
        return jnp.pad(ids, [(0, 0), (before, 0)])


@struct.dataclass
class CellState:
    """The cells of one prompt.

    nearest: `[L, K]` int32, the tokens nearest to the target's embeddings, those included.
    fraction: `[]` float32, the part of each cell that may be used, `1 - margin`.
    """

    nearest: jax.Array
    fraction: jax.Array


@dataclasses.dataclass(frozen=True)
class Cells(Constraint):
    """After every step, vectors that have left their token's cell are put back into it."""

    def init(self, target: Target, gamma: jax.Array, margin: jax.Array, steps: int) -> CellState:
        return CellState(nearest_tokens(target.table, target.ids), 1 - margin)

    def project(
        self, state: CellState, prompt: jax.Array, target: Target, remaining: jax.Array
    ) -> tuple[jax.Array, CellState]:
        exit_at = cell_exit(target.table, target.ids, state.nearest, prompt)
        inside = retract(prompt, target.embeddings, exit_at, state.fraction)
        return jnp.where(target.mask[:, None], inside, prompt), state


@struct.dataclass
class AdaptiveGammaState:
    """An adaptive gamma and the cells that it watches.

    gamma: `[]` float32, the weight of the distance term.
    steps: `[]` float32, of the whole training.
    left: `[]` bool, whether a vector was ever outside the used fraction of its cell.
    outside: `[]` bool, whether one was outside at the last step, before it was put back.
    cells: of the target's tokens.
    """

    gamma: jax.Array
    steps: jax.Array
    left: jax.Array
    outside: jax.Array
    cells: CellState


@dataclasses.dataclass(frozen=True)
class AdaptiveGamma(Constraint):
    """The distance term with a gamma that is found while the prompt is tuned.

    Gamma is the Lagrange multiplier of the constraint that the prompt reads as its target. A dual
    update raises it while a vector is outside the used fraction of its cell, and lowers it, by less
    and less, while all vectors are inside. It ends at a gamma that suffices, which need not be the
    least. After the last step, vectors outside are put back, as `Cells` does after each.
    """

    def init(
        self, target: Target, gamma: jax.Array, margin: jax.Array, steps: int
    ) -> AdaptiveGammaState:
        cells = Cells().init(target, gamma, margin, steps)
        never = jnp.zeros((), bool)
        return AdaptiveGammaState(gamma, jnp.float32(steps), never, never, cells)

    def penalty(self, state: AdaptiveGammaState, prompt: jax.Array, target: Target) -> jax.Array:
        return state.gamma * distance(prompt, target.embeddings, target.mask)

    def project(
        self, state: AdaptiveGammaState, prompt: jax.Array, target: Target, remaining: jax.Array
    ) -> tuple[jax.Array, AdaptiveGammaState]:
        exit_at = cell_exit(target.table, target.ids, state.cells.nearest, prompt)
        outside = ((state.cells.fraction * exit_at < 1) & target.mask).any()
        direction = jnp.where(outside, RISE, -jnp.maximum(remaining - SETTLING, 0))
        rate = LOG_GAMMA_TRAVEL / state.steps
        gamma = jnp.minimum(state.gamma * jnp.exp(rate * direction), MAX_GAMMA)
        inside = retract(prompt, target.embeddings, exit_at, state.cells.fraction)
        is_last = remaining * state.steps < 1.5  # it is 1 at the last step
        prompt = jnp.where(is_last & target.mask[:, None], inside, prompt)
        new_state = AdaptiveGammaState(
            gamma, state.steps, state.left | outside, outside, state.cells
        )
        return prompt, new_state


CONSTRAINTS: dict[str, Constraint] = {
    "penalty": Penalty(),
    "cell": Cells(),
    "dual": AdaptiveGamma(),
}
"""The built-in constraints by the names that runs have for them."""


BY_CONSTRUCTION = ("cell", "dual")
"""The constraints under which prompts end in the cells of their targets by construction."""


def hold(constraint: str, gamma: float, margin: float) -> dict[str, Any]:
    """The attributes of a `Run` that keep it to its target; what a constraint does not use is 0.

    Args:
        constraint: a name of `CONSTRAINTS`, or the `repr` of another constraint.
        gamma: weight of the distance term, where it is given.
        margin: the part of each cell that stays free.
    """
    match constraint:
        case "penalty":
            return {"constraint": constraint, "gamma": gamma}
        case "cell":
            return {"constraint": constraint, "margin": margin}
        case "dual":
            return {"constraint": constraint, "gamma": FIRST_GAMMA, "margin": margin}
    return {"constraint": constraint, "gamma": gamma, "margin": margin}


def nearest_tokens(table: jax.Array, ids: jax.Array) -> jax.Array:
    """The nearest tokens of each token, itself included: `[V, D]`, `[L]` -> `[L, K]` int32.

    K is at most `NEAREST`.
    """
    all_valid = np.ones(len(table), bool)
    return neighbors(table, c_proj(table, ids), all_valid, k=min(NEAREST, len(table)))[0]


def has_empty_cell(table: jax.Array, ids: jax.Array) -> np.ndarray:
    """Tells which tokens no vector reads as: a token of a lower id has the same embedding.

    Args:
        table: `[V, D]`, embeddings of the tokens that can be read.
        ids: `[L]`.

    Returns:
        `[L]` bool.
    """
    valid = np.ones(len(table), bool)
    return np.asarray(d_proj(table, c_proj(table, ids), valid) != ids)


def cell_exit(table: jax.Array, ids: jax.Array, nearest: jax.Array, prompt: jax.Array) -> jax.Array:
    """Where the ray from a token's embedding `e` to a vector `p` leaves the token's cell.

    The ray is `e + s (p - e)`, and the result is the largest s at which it still reads as the
    token; `p` is in the cell where s is 1 or more. The wall to another token of embedding `v` is
    where both are equally far: `s = |v - e|^2 / (2 u.(v - e))` with `u = p - e`. Where float32 is
    too coarse to tell which of two tokens is nearer, the wall is taken to be as near as it may be.

    Args:
        table: `[V, D]`, embeddings of the tokens that can be read.
        ids: `[L]`, tokens whose cells are meant.
        nearest: `[L, K]`, their `nearest_tokens`.
        prompt: `[L, D]`.

    Returns:
        `[L]` float32.
    """
    own = c_proj(table, ids)
    ray = prompt - own
    gaps = c_proj(table, nearest) - own[:, None]  # [L, K, D]
    lengths = [jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (own, ray)]
    apart = jnp.square(gaps).sum(axis=-1)
    # Equal embeddings are never told apart, and share a cell.
    others = jnp.where(apart > 0, apart, jnp.inf)
    least = _nearest_wall(others, (ray[:, None] * gaps).sum(axis=-1), *lengths)

    # Distances do not change if everything is moved, and products are the more precise the shorter
    # the vectors are. Embeddings often have a large part in common.
    center = table.mean(axis=0, dtype=jnp.float32)
    own = own - center
    own_length, ray_length = (jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (own, ray))
    # The error of a sum of D products grows like a random walk.
    rounding = EPS * np.sqrt(table.shape[1])
    compared = jnp.concatenate([nearest, ids[:, None]], axis=1)
    each = jnp.arange(len(ids))[:, None]

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    for start in range(0, len(table), BLOCK):
        rows = table[start : start + BLOCK].astype(jnp.float32) - center
        reach = jnp.linalg.norm(rows, axis=1) + own_length
        ahead = product(ray, rows.T) - (ray * own).sum(axis=-1, keepdims=True)
        ahead += rounding * ray_length * reach
        apart = jnp.square(rows).sum(axis=1) - 2 * product(own, rows.T)
        apart += jnp.square(own).sum(axis=-1, keepdims=True)
        apart = jnp.maximum(apart - rounding * jnp.square(reach), 0)
        at = jnp.where(compared >= start, compared - start, len(rows))
        others = apart.at[each, at].set(jnp.inf, mode="drop")
        least = jnp.minimum(least, _nearest_wall(others, ahead, *lengths))
    return least


def retract(
    prompt: jax.Array, embeddings: jax.Array, exit_at: jax.Array, fraction: jax.Array
) -> jax.Array:
    """Moves vectors that are outside a fraction of their cells back, on their rays, to its border.

    Args:
        prompt: `[L, D]`.
        embeddings: `[L, D]` of the tokens whose cells are meant.
        exit_at: `[L]`, `cell_exit` of the prompt.
        fraction: `[]`, the part of a cell that may be used.
    """
    scale = jnp.minimum(fraction * exit_at, 1)[:, None]
    return jnp.where(scale < 1, embeddings + scale * (prompt - embeddings), prompt)


def _nearest_wall(apart: jax.Array, ahead: jax.Array, own: jax.Array, ray: jax.Array) -> jax.Array:
    """The s of the nearest wall of each vector: `[L]`.

    At s another embedding is farther by `apart - 2 s ahead`, in squares. Float32 tells so while
    that is more than the rounding of the compared numbers, `ROUNDING (s^2 ray^2 + own
    sqrt(apart))`. The wall is at the root of that quadratic equation.

    Args:
        apart: `[L, n]`, squared distances of other embeddings from the vectors' tokens; inf for
            embeddings that do not count.
        ahead: `[L, n]`, `u.(v - e)`.
        own: `[L, 1]`, the length of e.
        ray: `[L, 1]`, the length of u.
    """
    counts = jnp.isfinite(apart)
    apart = jnp.where(counts, apart, 1)
    certain = jnp.maximum(apart - ROUNDING * own * jnp.sqrt(jnp.maximum(apart, 0)), 0)
    growth = ROUNDING * jnp.square(ray)
    root = jnp.sqrt(jnp.square(ahead) + growth * certain)
    # The same root in two forms, of which one cancels where the other does not.
    behind = jnp.where(growth > TINY, (root - ahead) / jnp.maximum(growth, TINY), jnp.inf)
    wall = jnp.where(ahead > 0, certain / jnp.maximum(ahead + root, TINY), behind)
    return jnp.where(counts, jnp.where(certain > 0, wall, 0), jnp.inf).min(axis=1)
