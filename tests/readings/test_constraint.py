"""Readings in place of the distance: what prompts are tuned to, and what their rows say."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

import wayward_jax as wj
from tests.helpers import toy_models
from wayward_jax.errors import InputError
from wayward_jax.initialization import STARTS
from wayward_jax.readings import Lens, Verbal

pytestmark = pytest.mark.usefixtures("one_shape")

TARGETS = {"long": "w3 w1 w4 w1 w5", "short": "w7 w8"}
READINGS = [Lens(1), Verbal(("w1 w2 {prompt} w3", "{prompt} w9"), ((1, 0), (2, 1)))]
GRADIENT_DESCENT = optax.sgd(1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = toy_models.make("llama", tmp_path_factory.mktemp("held"))
    return dataclasses.replace(model, bos_ids=(4, 5))


def tune(model, constraint, **changed):
    """Runs of two lengths in one population, by plain gradient descent."""
    settings = {
        "targets": TARGETS,
        "init": "vocab",
        "steps": 1,
        "batch_size": 4,
        "gammas": [0.0, 0.7],
        "optimizer": GRADIENT_DESCENT,
        "template": 0,
        "progress": False,
        **changed,
    }
    return wj.tune(model, toy_models.toy_data(), constraint=constraint, **settings)


@pytest.fixture(scope="module")
def after_a_step(model):
    """The records of a step, by the reading that they are tuned to."""
    return functools.cache(lambda reading: tune(model, reading))


@pytest.mark.slow
@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_a_step_also_goes_down_the_loss_of_the_reading(model, after_a_step, reading):
    """Two runs that differ in gamma alone are apart by gamma times the gradient after a step."""
    found = after_a_step(reading)
    assert {record.reading for record in found} == {str(reading)}
    for free, held in zip(found[::2], found[1::2], strict=True):
        ids = np.array([held.run.target_ids])
        start = STARTS["vocab"](held.run, np.asarray(model.embedding_table()))

        def loss(prompts, ids=ids):
            return reading.loss(model, prompts, ids)[0]

        gradient = jax.jit(jax.grad(loss))(start[None])[0]
        np.testing.assert_allclose(
            free.prompt - held.prompt, 0.7 * gradient, atol=1e-4 * np.abs(gradient).max()
        )
    # The shorter one, which is padded beside the others.
    assert held.token_ids == tuple(np.asarray(reading.read(model, held.prompt[None]))[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lens", "verbal", "inspect"])
def test_prompts_come_to_read_as_their_targets_by_a_reading_that_is_named(model, name):
    free, held = tune(
        model,
        name,
        targets={"long": TARGETS["long"]},
        gammas=[0.0, 10.0],
        steps=200,
        optimizer=optax.adam(0.1),
    )
    assert held.prompt_f1 == 1 > free.prompt_f1
    assert held.text == TARGETS["long"]
    nearest = wj.read(model, held.prompt)["euclidean"]
    assert nearest.text != held.text


@pytest.mark.slow
def test_readings_are_the_same_on_any_mesh(model, after_a_step):
    from wayward_jax.sharding import make_mesh, place_params

    mesh = make_mesh(runs=2, data=2)
    params = place_params(model.params, mesh, model.family.partition_spec)
    shared = dataclasses.replace(model, params=params)
    reading = READINGS[1]  # with hidden states of the prompts, which a plain one does not compute
    for own, other in zip(after_a_step(reading), tune(shared, reading), strict=True):
        np.testing.assert_allclose(own.prompt, other.prompt, rtol=0, atol=1e-4)
        assert own.token_ids == other.token_ids


def test_a_layer_that_is_not_there_is_refused(model):
    with pytest.raises(InputError, match="constraint='lens:3': give a layer from 0 to 2"):
        tune(model, "lens:3")
    with pytest.raises(InputError, match="constraint='lens:x': give a layer from 0 to 2"):
        tune(model, "lens:x")


@pytest.mark.parametrize("template", ["w1", "{prompt} w1 {prompt}", "w1 {prompt} "])
def test_a_template_needs_the_prompt_once_and_text_after_it(template):
    with pytest.raises(InputError, match="into it once, and text after it"):
        Verbal((template,))
