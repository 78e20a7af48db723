"""The trainer against torch's, and the independence of the runs of a population."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch

from wayward_jax.batching import example_order, gold_pieces, to_batch
from wayward_jax.projection import c_proj, d_proj
from wayward_jax.tuning import Population, start, tune

EXAMPLES = tiny.examples(10, n_labels=2, seed=0)
BATCH_SIZE = 3
STEPS = 20


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A run of these tests: what it is tuned for, and its start `[L, D]`."""

    start: np.ndarray
    target: np.ndarray
    gamma: float = 0.0
    learning_rate: float = 0.03
    seed: int = 0


def random_run(length, seed, **settings):
    rng = np.random.default_rng(seed)
    start = rng.normal(size=(length, tiny.WIDTH)).astype(np.float32)
    return Tuned(start, rng.integers(0, len(tiny.WORDS), length), seed=seed, **settings)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return tiny.pair("gpt2", tmp_path_factory.mktemp("tiny"))


RUNS = [
    random_run(5, seed=1),
    random_run(3, seed=2, gamma=0.02, learning_rate=0.02),
    random_run(5, seed=3, learning_rate=0.005),
    random_run(3, seed=4, gamma=10.0, learning_rate=0.1),
    random_run(3, seed=5, gamma=0.5),
]


@pytest.fixture(scope="module")
def together(pair):
    return tuned(pair[0], RUNS)


def tuned(model, runs):
    """State and losses `[STEPS, R]` after tuning `runs` as one population, five steps at a time."""
    length = max(len(run.target) for run in runs)

    def padded(array):
        return np.pad(array, [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1))

    population = Population(
        targets=jnp.asarray(np.stack([padded(run.target) for run in runs]), jnp.int32),
        mask=jnp.asarray(np.stack([padded(np.ones(len(run.target), bool)) for run in runs])),
        gamma=jnp.asarray([run.gamma for run in runs], jnp.float32),
        learning_rate=jnp.asarray([run.learning_rate for run in runs], jnp.float32),
    )
    pieces = gold_pieces(EXAMPLES, [1] * len(EXAMPLES))
    by_run = [
        to_batch([[pieces[i] for i in step] for step in order(run.seed)], 64, 16) for run in runs
    ]
    batches = jax.tree.map(lambda *x: np.stack(x, axis=1)[:, :, None], *by_run)
    state = start(jnp.asarray(np.stack([padded(run.start) for run in runs])), STEPS)
    losses = []
    for first in range(0, STEPS, 5):
        five = jax.tree.map(lambda x: x[first : first + 5], batches)  # noqa: B023
        state, loss = tune(model.module, model.params, population, state, five, STEPS)
        losses.append(loss)
    return state, jax.tree.map(lambda *x: np.concatenate(x), *losses)


def order(seed):
    """Example numbers `[STEPS, BATCH_SIZE]`."""
    return example_order(len(EXAMPLES), STEPS * BATCH_SIZE, seed).reshape(STEPS, BATCH_SIZE)


def torch_tuned(theirs, run):
    """The prompt, and task losses `[STEPS]`, of the same run in plain PyTorch."""
    embeddings = theirs.get_input_embeddings()
    prompt = torch.nn.Parameter(torch.tensor(run.start))
    optimizer = torch.optim.AdamW([prompt], lr=run.learning_rate, eps=1e-8, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    task_losses = []
    for examples in order(run.seed):
        nll = [
            tiny.published_nll(
                theirs, prompt, EXAMPLES[i].contexts[1], EXAMPLES[i].continuations[1]
            )
            for i in examples
        ]
        task_losses.append(torch.stack(nll).mean())
        distance = (prompt - embeddings(torch.tensor(run.target))).square().sum(1).mean()
        optimizer.zero_grad()
        (task_losses[-1] + run.gamma * distance).backward()
        torch.nn.utils.clip_grad_norm_([prompt], 1.0)
        optimizer.step()
        schedule.step()
    return prompt.detach().numpy(), [loss.item() for loss in task_losses]


@pytest.mark.parametrize("r", range(len(RUNS)))
def test_a_trajectory_of_20_steps_is_that_of_torch(pair, together, r):
    state, losses = together
    prompt, task_losses = torch_tuned(pair[1], RUNS[r])
    error = np.abs(state.prompts[r, : len(prompt)] - prompt).max()
    assert state.step == STEPS
    assert error < 1e-3 * np.abs(prompt - RUNS[r].start).max()
    np.testing.assert_allclose(losses.task[:, r], task_losses, rtol=1e-3)


def test_runs_of_a_population_end_as_they_do_alone(pair, together):
    for run, prompt in zip(RUNS, together[0].prompts, strict=True):
        (alone,), length = tuned(pair[0], [run])[0].prompts, len(run.target)
        np.testing.assert_allclose(prompt[:length], alone, rtol=0, atol=1e-5)
        assert (np.asarray(prompt[length:]) == 0).all()


def test_a_diverged_run_stays_as_it_was_and_disturbs_no_other(pair, together):
    broken = list(RUNS)
    broken[1] = dataclasses.replace(RUNS[1], start=np.full_like(RUNS[1].start, np.nan))
    broken[3] = dataclasses.replace(RUNS[3], learning_rate=1e30)
    healthy, healthy_losses = together
    state, losses = tuned(pair[0], broken)
    np.testing.assert_array_equal(healthy.diverged_at, [-1] * 5)
    np.testing.assert_array_equal(state.diverged_at, [-1, 0, -1, 1, -1])
    assert np.isnan(state.prompts[1, :3]).all()
    np.testing.assert_allclose(np.abs(state.prompts[3, :3]), 1e30, rtol=1e-3)  # Adam's first step
    others = np.array([0, 2, 4])
    np.testing.assert_array_equal(state.prompts[others], healthy.prompts[others])
    np.testing.assert_array_equal(losses.task[:, others], healthy_losses.task[:, others])


def test_the_distance_term_pulls_the_prompt_to_its_target(pair):
    model = pair[0]
    table, readable = model.table(), model.readable()
    run = random_run(5, seed=1, learning_rate=0.2)
    gammas = [0.0, 0.01, 0.1, 1.0, 10.0]
    state, _ = tuned(model, [dataclasses.replace(run, gamma=gamma) for gamma in gammas])
    far = np.square(state.prompts - c_proj(table, run.target)).sum(axis=2).mean(axis=1)
    assert (np.diff(far) < 0).all()
    assert (np.asarray(d_proj(table, run.start, readable)) != run.target).all()
    unconstrained, *_, pulled = np.asarray(d_proj(table, state.prompts, readable))
    assert (unconstrained != run.target).any()
    np.testing.assert_array_equal(pulled, run.target)
