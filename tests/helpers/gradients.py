"""Losses with their gradient, by one program."""

import jax
import jax.numpy as jnp


def with_gradient(loss, total=jnp.sum):
    """A program that gives the losses of prompts, and the gradient of their total."""

    @jax.jit
    def program(prompts):
        losses, pull_back = jax.vjp(loss, prompts)
        return losses, *pull_back(jax.grad(total)(losses))

    return program
