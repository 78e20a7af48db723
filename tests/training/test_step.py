"""The trainer against torch's, and the independence of the runs of a population."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import toy_models
from tests.helpers.cases import slow_after
from wayward_jax.constraints import AdaptiveGamma, Constraint, Target
from wayward_jax.projection import c_proj, d_proj
from wayward_jax.runs import Run
from wayward_jax.segments import example_order, gold_segments
from wayward_jax.shapes import PackedShape
from wayward_jax.sharding import make_mesh
from wayward_jax.training.calls import iter_calls
from wayward_jax.training.optimizers import named_optimizer
from wayward_jax.training.planning import plan_populations
from wayward_jax.training.starting import init_population
from wayward_jax.training.step import Population, _penalty_gradients, train_steps

EXAMPLES = toy_models.examples(10, n_labels=2, seed=0)
TRAIN = {100: gold_segments(EXAMPLES, [1] * len(EXAMPLES), range(2))}
BATCH_SIZE = 3
STEPS = 20
OPTIMIZER = named_optimizer("adamw", STEPS)
LARGEST = (5, 176, 2, 64, 64)
"""Sizes of a pack that are enough for three steps of five runs."""


def random_run(length, seed, **settings):
    """A run with a random target."""
    ids = np.random.default_rng(seed).integers(0, len(toy_models.WORDS), length)
    return Run(
        model="tiny",
        task="none",
        prompt_length=length,
        target_ids=tuple(ids.tolist()),
        seed=seed,
        init=f"start {seed}",
        steps=STEPS,
        batch_size=BATCH_SIZE,
        **settings,
    )


RUNS = [
    random_run(3, seed=1, gamma=0.02, learning_rate=0.02),
    random_run(3, seed=2, gamma=10.0, learning_rate=0.1),
    random_run(3, seed=3, gamma=0.5, learning_rate=0.03),
    random_run(5, seed=4, learning_rate=0.03),
    random_run(5, seed=5, learning_rate=0.005),
]


def start_of(run):
    """The random prompt `[L, D]` that a run of these tests starts at."""
    rng = np.random.default_rng(run.seed)
    return rng.normal(size=(run.prompt_length, toy_models.WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def together(model):
    """Takes three and two of five steps, in a program of three."""
    own = in_one_shape(planned(RUNS))
    assert [end - begin for begin, end in own.calls] == [3, 2] * 4
    return tuned(model, own)


def planned(runs, pack_tokens=10**6):
    """`runs` as one population, and that as one pack, unless `pack_tokens` are few."""
    (own,) = plan_populations(
        {"none": TRAIN}, runs, population=len(runs), pack_tokens=pack_tokens, mesh=make_mesh()
    )
    return own


def in_one_shape(own, steps_per_call=3):
    """The same plan with less to compile: tests of as many runs have one program."""
    own = dataclasses.replace(own, steps_per_call=steps_per_call)
    most = np.max([*own.shapes, LARGEST], axis=0).tolist()
    shape = PackedShape(*most)._replace(copies=own.runs[0].batch_size)
    return dataclasses.replace(own, shapes=(shape,), call_shapes=(0,) * len(own.calls))


def tuned(model, own, start_of=start_of):
    """State and losses `[STEPS, R]` after tuning a population."""
    starts = {run.init: start_of(run) for run in own.runs}
    population, state = init_population(model, own, make_mesh(), OPTIMIZER, starts)
    losses = []
    for call in iter_calls(TRAIN, own):
        state, loss = take_steps(model, population, state, call)
        losses.append(jax.tree.map(lambda x, taken=call.steps: x[:taken], loss))
    return state, jax.tree.map(lambda *x: np.concatenate(x), *losses)


def take_steps(model, population, state, call, steps=STEPS):
    """The state after the steps of a call, and their losses."""
    optimizer, mesh = named_optimizer("adamw", steps), make_mesh()
    return train_steps(
        model.module, model.params, population, state, *call[:2], optimizer, steps, mesh
    )


def torch_tuned(theirs, run):
    """The prompt, and task losses `[STEPS]`, of the same run in plain PyTorch."""
    torch = pytest.importorskip("torch")
    embeddings = theirs.get_input_embeddings()
    prompt = torch.nn.Parameter(torch.tensor(start_of(run)))
    optimizer = torch.optim.AdamW([prompt], lr=run.learning_rate, eps=1e-8, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    order = example_order(len(EXAMPLES), STEPS * BATCH_SIZE, run.seed)
    task_losses = []
    for examples in order.reshape(STEPS, BATCH_SIZE):
        nll = [
            toy_models.published_nll(
                theirs, prompt, EXAMPLES[i].contexts[1], EXAMPLES[i].continuations[1]
            )
            for i in examples
        ]
        task_losses.append(torch.stack(nll).mean())
        target = embeddings(torch.tensor(run.target_ids))
        distance = (prompt - target).square().sum(1).mean()
        optimizer.zero_grad()
        (task_losses[-1] + run.gamma * distance).backward()
        torch.nn.utils.clip_grad_norm_([prompt], 1.0)
        optimizer.step()
        schedule.step()
    return prompt.detach().numpy(), [loss.item() for loss in task_losses]


@pytest.mark.slow
@pytest.mark.parametrize("r", range(len(RUNS)))
def test_a_trajectory_of_20_steps_in_calls_of_three_or_fewer_is_that_of_torch(theirs, together, r):
    state, losses = together
    prompt, task_losses = torch_tuned(theirs, RUNS[r])
    error = np.abs(state.prompts[r, : len(prompt)] - prompt).max()
    assert (state.step, len(losses.task)) == (STEPS, STEPS)
    assert error < 1e-3 * np.abs(prompt - start_of(RUNS[r])).max()
    np.testing.assert_allclose(losses.task[:, r], task_losses, rtol=1e-3)


@pytest.mark.slow
def test_a_run_of_a_population_ends_as_it_does_alone(model, together):
    """Also where it is padded to the length of others."""
    r = 1
    own = planned([RUNS[r]])
    (alone,), length = tuned(model, in_one_shape(own))[0].prompts, RUNS[r].prompt_length
    np.testing.assert_allclose(together[0].prompts[r, :length], alone, rtol=0, atol=1e-5)
    assert (np.asarray(together[0].prompts[r, length:]) == 0).all()


@pytest.mark.slow
def test_runs_divided_among_packs_of_several_shapes_end_the_same(model, together, monkeypatch):
    """A run may have rows in several packs."""
    monkeypatch.setattr("wayward_jax.training.planning.MAX_SHAPES", 2)  # each is a program
    own = planned(RUNS, pack_tokens=80)
    assert own.packs_per_shard > 1
    assert len(own.shapes) > 1
    state, losses = tuned(model, own)
    np.testing.assert_allclose(state.prompts[:5], together[0].prompts, rtol=0, atol=1e-5)
    np.testing.assert_allclose(losses.task[:, :5], together[1].task, rtol=1e-4)
    np.testing.assert_allclose(losses.distance[:, :5], together[1].distance, rtol=1e-4)
    assert (np.asarray(state.diverged_at) == -1).all()


@pytest.mark.slow
def test_a_diverged_run_stays_as_it_was_and_disturbs_no_other(model, together):
    """Also where it is the first, to which all unused tokens and predictions point."""
    broken = list(RUNS)
    broken[1] = dataclasses.replace(RUNS[1], learning_rate=1e30)

    def start_at_nan(run):
        return np.nan * start_of(run) if run == RUNS[0] else start_of(run)

    state, losses = tuned(model, in_one_shape(planned(broken)), start_at_nan)
    healthy, healthy_losses = together
    np.testing.assert_array_equal(healthy.diverged_at, [-1] * 5)
    np.testing.assert_array_equal(state.diverged_at, [0, 1, -1, -1, -1])
    assert np.isnan(losses.task[0:, 0]).all()
    assert np.isnan(losses.task[1:, 1]).all()
    assert np.isnan(state.prompts[0, :3]).all()
    np.testing.assert_allclose(np.abs(state.prompts[1, :3]), 1e30, rtol=1e-3)  # Adam's first step
    others = np.array([2, 3, 4])
    np.testing.assert_array_equal(state.prompts[others], healthy.prompts[others])
    np.testing.assert_array_equal(losses.task[:, others], healthy_losses.task[:, others])


@pytest.mark.slow
def test_hard_cells_hold_at_every_step_and_leave_other_runs_alone(model, together):
    """Also those of a prompt that would move far away."""
    confined = [
        dataclasses.replace(RUNS[0], constraint="cell", gamma=0.0, margin=0.05),
        dataclasses.replace(RUNS[3], constraint="cell", margin=0.3, learning_rate=0.3),
    ]
    own = in_one_shape(planned([*confined, *RUNS[1:3]]), steps_per_call=1)
    table = np.float64(model.embedding_table()[: model.tokenizer.vocab_size])
    starts = {run.init: start_of(run) for run in own.runs}
    population, state = init_population(model, own, make_mesh(), OPTIMIZER, starts)
    steps = 0
    for call in iter_calls(TRAIN, own):
        for r, run in enumerate(own.runs):
            if run.constraint == "cell":
                prompt = np.float64(state.prompts[r, : run.prompt_length])
                far = np.square(prompt[:, None] - table).sum(axis=2)
                assert far.argmin(axis=1).tolist() == list(run.target_ids)
        state, _ = take_steps(model, population, state, call)
        steps += 1
    assert steps == STEPS
    r = own.runs.index(confined[1])
    assert np.abs(state.prompts[r] - table[list(confined[1].target_ids)]).max() > 0.1
    for run in RUNS[1:3]:
        alike = state.prompts[own.runs.index(run), :3], together[0].prompts[RUNS.index(run), :3]
        np.testing.assert_allclose(*alike, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_gamma_that_is_found_has_the_prompt_read_as_its_target(model):
    """From wherever it starts; other gammas stay as they are given."""
    held = {"constraint": "dual", "gamma": 1.0, "margin": 0.01, "learning_rate": 0.1}
    adaptive = [
        dataclasses.replace(random_run(4, seed=seed, **held), init=init, steps=60)
        for seed in (1, 2)
        for init in ("vocab", "target")
    ]
    fixed = dataclasses.replace(adaptive[0], constraint="penalty", gamma=20.0, margin=0.0)
    own = in_one_shape(planned([*adaptive, fixed]))
    population, state = init_population(model, own, make_mesh(), named_optimizer("adamw", 60))
    for call in iter_calls(TRAIN, own):
        state, _ = take_steps(model, population, state, call, steps=60)
    nearest = np.asarray(d_proj(model.embedding_table(), state.prompts, model.valid_tokens()))
    np.testing.assert_array_equal(nearest[:4], [run.target_ids for run in adaptive])
    of_dual, of_penalty = state.constraint_states  # in this order
    assert (np.asarray(of_dual.gamma[:4]) <= 10).all()
    assert (np.asarray(of_dual.gamma[:4]) != 1).all()
    assert of_penalty.gamma[4] == 20


@pytest.mark.slow
def test_a_gamma_goes_up_outside_and_down_inside_worked_by_hand():
    """One vector; the cell of the token at 0 ends at 2, and at 1 by its margin."""
    target = Target(
        ids=np.zeros(1, np.int32),
        embeddings=np.zeros((1, 1), np.float32),
        mask=np.ones(1, bool),
        table=np.float32([[0], [4]]),
    )
    constraint = AdaptiveGamma()

    @jax.jit
    def stepped(target, gamma, prompt):
        state = constraint.init(target, gamma, jnp.float32(0.5), steps=300)
        same, after = constraint.project(state, prompt, target, remaining=0.65)
        return same, after.gamma, constraint.penalty(state, prompt, target)

    for at, gamma, expected in ((0.9, 1, np.exp(-0.04)), (1.1, 1, np.exp(0.3)), (1.1, 9, 10)):
        prompt = np.full((1, 1), at, np.float32)
        same, after, penalty = stepped(target, np.float32(gamma), prompt)
        np.testing.assert_array_equal(same, prompt)
        np.testing.assert_allclose(after, expected, rtol=1e-6)
        np.testing.assert_allclose(penalty, gamma * at**2, rtol=1e-6)


@pytest.mark.slow
def test_after_the_last_step_an_adaptive_gamma_puts_vectors_outside_back_worked_by_hand():
    """The cell as above; whether the vector ever left it, and was outside at the end, is kept."""
    target = Target(
        ids=np.zeros(1, np.int32),
        embeddings=np.zeros((1, 1), np.float32),
        mask=np.ones(1, bool),
        table=np.float32([[0], [4]]),
    )
    constraint = AdaptiveGamma()
    state = constraint.init(target, jnp.float32(1), jnp.float32(0.5), steps=3)
    project = jax.jit(constraint.project)
    for at, remaining, expected, left, outside in (
        *((0.9, 1, 0.9, False, False), (1.1, 2 / 3, 1.1, True, True)),
        *((1.1, 1 / 3, 1.0, True, True), (0.9, 1 / 3, 0.9, True, False)),
    ):
        prompt, state = project(state, np.full((1, 1), at, np.float32), target, remaining)
        np.testing.assert_allclose(prompt, expected, rtol=1e-5)
        assert (bool(state.left), bool(state.outside)) == (left, outside)


@pytest.mark.slow
def test_the_distance_term_pulls_the_prompt_to_its_target(model):
    table, readable = model.embedding_table(), model.valid_tokens()
    run = random_run(5, seed=1, learning_rate=0.2)
    gammas = [0.0, 0.01, 0.1, 1.0, 10.0]
    runs = [dataclasses.replace(run, gamma=gamma) for gamma in gammas]
    state, _ = tuned(model, in_one_shape(planned(runs)))
    target = np.array(run.target_ids)
    far = np.square(state.prompts - c_proj(table, target)).sum(axis=2).mean(axis=1)
    assert (np.diff(far) < 0).all()
    assert (np.asarray(d_proj(table, start_of(run), readable)) != target).all()
    unconstrained, *_, pulled = np.asarray(d_proj(table, state.prompts, readable))
    assert (unconstrained != target).any()
    np.testing.assert_array_equal(pulled, target)


@dataclasses.dataclass(frozen=True)
class Wave(Constraint):
    """A penalty whose gradient is known, computed for a few runs at once."""

    runs_at_once: int | None

    def penalty(self, state, prompt, target):
        return state * (jnp.sin(prompt) * target.embeddings).sum()


@pytest.mark.parametrize("at_once", slow_after(2, [None, 2, 1, 4, 100]))
def test_penalties_move_their_own_runs_alone_however_many_are_computed_at_once(at_once):
    rng = np.random.default_rng(0)
    prompts, embeddings = np.float32(rng.normal(size=(2, 6, 3, 4)))
    states, own = np.float32(rng.normal(size=6)), np.array([True, False, True, True, False, False])
    population = Population(
        target_ids=np.zeros((6, 3), np.int32),
        mask=np.ones((6, 3), bool),
        learning_rate=np.ones(6, np.float32),
        constraint=np.where(own, 1, 0),
        constraints=(Constraint(), Wave(at_once)),
        vocab_size=1,
    )
    targets = Target(population.target_ids, embeddings, population.mask, None)
    found = jax.jit(_penalty_gradients)(prompts, population, targets, ((), states))
    expected = np.where(own[:, None, None], states[:, None, None] * np.cos(prompts) * embeddings, 0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
