"""Named optimizers against PyTorch's, and their schedule against transformers'."""

import jax.numpy as jnp
import numpy as np
import pytest

from wayward_jax.errors import InputError
from wayward_jax.training.optimizers import named_optimizer

STEPS = 10


def trajectory(optimizer, gradients):
    """Where a vector of ones gets by gradients `[STEPS, n]`: `[STEPS, n]`."""
    x = jnp.ones(gradients.shape[1])
    state, found = optimizer.init(x), []
    for gradient in gradients:
        updates, state = optimizer.update(jnp.asarray(gradient), state, x)
        x = x + updates
        found.append(x)
    return np.stack(found)


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize(
    ("name", "weight_decay", "theirs"),
    [
        ("adamw", 0.0, lambda torch, p: torch.optim.AdamW(p, lr=1.0, weight_decay=0.0)),
        ("adamw", 0.1, lambda torch, p: torch.optim.AdamW(p, lr=1.0, weight_decay=0.1)),
        ("adam", 0.0, lambda torch, p: torch.optim.Adam(p, lr=1.0)),
        ("sgd", 0.0, lambda torch, p: torch.optim.SGD(p, lr=1.0)),
    ],
)
def test_a_named_optimizer_takes_the_steps_of_torchs(name, weight_decay, theirs, warmup):
    torch = pytest.importorskip("torch")
    from transformers import get_linear_schedule_with_warmup

    gradients = np.random.default_rng(0).normal(size=(STEPS, 3)).astype(np.float32)
    found = trajectory(named_optimizer(name, STEPS, warmup, weight_decay), gradients)
    x = torch.nn.Parameter(torch.ones(3))
    optimizer = theirs(torch, [x])
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, STEPS)
    for step, gradient in enumerate(gradients):
        x.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_([x], 1.0)
        optimizer.step()
        schedule.step()
        np.testing.assert_allclose(found[step], x.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_adafactor_goes_downhill():
    optimizer = named_optimizer("adafactor", 100)
    x = jnp.full(3, 5.0)
    state = optimizer.init(x)
    for _ in range(100):
        updates, state = optimizer.update(2 * x, state, x)
        x = x + 0.3 * updates
    assert np.abs(x).max() < 1


def test_equal_arguments_are_one_optimizer():
    assert named_optimizer("adam", 5) is named_optimizer("adam", 5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("magic", 5), "--optimizer=magic: choose one of adamw, adam, sgd, adafactor"),
        (("adam", 5, 5), "--warmup=5: give 0 to 4"),
        (("adam", 5, -1), "--warmup=-1: give 0 to 4"),
        (("adam", 5, 0, 0.1), "--weight_decay=0.1: only --optimizer=adamw"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, said):
    with pytest.raises(InputError) as error:
        named_optimizer(*arguments)
    assert error.value.as_flag().startswith(said)
