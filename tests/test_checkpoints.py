"""Populations on their way, on disk: as they were, or the one before, or none."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.cases import slow_after
from wayward_jax import checkpoints as checkpoints_module
from wayward_jax.checkpoints import ProgressCheckpoints
from wayward_jax.constraints import AdaptiveGammaState, CellState
from wayward_jax.errors import InputError
from wayward_jax.training.optimizers import named_optimizer
from wayward_jax.training.progress import TrainProgress
from wayward_jax.training.step import Losses, TrainState

STEPS = (5, 10, 15)


def progress(step):
    """Five steps a chunk, and a point of the curve after every ten."""
    rng = np.random.default_rng(step)

    def random(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    prompts = random(3, 4, 8)
    adam = jax.vmap(named_optimizer("adamw", steps=20).init)(prompts)
    cells = CellState(jnp.asarray(rng.integers(80, size=(3, 4, 2))), random(3))
    evaluations = range(step // 10)
    return TrainProgress(
        state=TrainState(
            prompts=prompts,
            constraint_states=(
                (),
                AdaptiveGammaState(random(3), random(3), random(3) > 0, random(3) > 0, cells),
            ),
            optimizer_state=jax.tree.map(lambda x: x + jnp.asarray(rng.integers(9), x.dtype), adam),
            step=jnp.asarray(step, jnp.int32),
            diverged_at=jnp.asarray(rng.integers(9, size=3), jnp.int32),
        ),
        losses=tuple(Losses(random(5, 3), random(5, 3)) for _ in range(step // 5)),
        nll=tuple([[random(3, 7)], [random(3, 7), random(3, 5)]] for _ in evaluations),
        read=tuple(jnp.asarray(rng.integers(80, size=(3, 4))) for _ in evaluations),
        prompts=tuple(random(3, 4, 8) for _ in evaluations),
    )


def joined(found):
    """The progress with its losses in one chunk."""
    return found.replace(losses=(jax.tree.map(lambda *x: np.concatenate(x), *found.losses),))


def assert_same(found, expected):
    found, expected = joined(found), joined(expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(one).dtype == other.dtype
        np.testing.assert_array_equal(one, other, strict=False)


def restored(folder):
    """The progress that is found in a folder, and the steps that were broken."""
    broken = []
    checkpoints = ProgressCheckpoints(folder)
    tree = checkpoints.restore(broken.append)
    checkpoints.close()
    return tree and TrainProgress.from_tree(tree, progress(5).state), broken


def save(checkpoints, found):
    checkpoints.save(found.step, found.to_tree())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "in_flight"
    checkpoints = ProgressCheckpoints(folder)
    for step in STEPS:
        save(checkpoints, progress(step))
    checkpoints.close()
    return folder


@pytest.fixture
def again(saved, tmp_path):
    """Makes copies of that folder."""

    def copy():
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        return shutil.copytree(saved, tmp_path / "again")

    return copy


def test_the_last_one_comes_back_to_the_bit(saved):
    found, broken = restored(saved)
    assert found.step == 15
    assert_same(found, progress(15))
    assert broken == []


def test_a_progress_without_a_point_of_the_curve_comes_back(tmp_path):
    checkpoints = ProgressCheckpoints(tmp_path)
    save(checkpoints, progress(5))
    checkpoints.close()
    assert_same(restored(tmp_path)[0], progress(5))


def test_what_goes_on_from_a_checkpoint_is_kept_with_all_that_was_before(tmp_path):
    """Losses are in one long chunk then, which is followed by short ones."""
    checkpoints = ProgressCheckpoints(tmp_path)
    save(checkpoints, joined(progress(15)))
    checkpoints.close()
    assert_same(restored(tmp_path)[0], progress(15))


def test_what_another_version_wrote_is_refused_and_kept(again, monkeypatch):
    folder = again()
    monkeypatch.setattr(checkpoints_module, "__version__", "9.9")
    with pytest.raises(InputError, match=r"was written by version 0.* continue with that version"):
        restored(folder)
    monkeypatch.undo()
    assert restored(folder)[0].step == 15


def test_a_state_whose_leaves_have_other_names_is_not_taken_for_another(tmp_path):
    """Two leaves of the same shape that change places would go unnoticed by their order."""
    tree = progress(15).to_tree()
    state = tree["state"]["constraint_states"]["1"]
    renamed = {**state, "gamma": state["steps"], "steps": state["gamma"]}
    tree["state"]["constraint_states"]["1"] = renamed
    found = TrainProgress.from_tree(tree, progress(5).state).state.constraint_states[1]
    np.testing.assert_array_equal(found.gamma, progress(15).state.constraint_states[1].steps)
    tree["state"]["constraint_states"]["1"] = {**state, "rate": state["steps"]}
    del tree["state"]["constraint_states"]["1"]["steps"]
    with pytest.raises(ValueError, match="steps"):
        TrainProgress.from_tree(tree, progress(5).state)


def test_only_the_last_two_are_kept(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["10", "15"]


def test_an_empty_folder_has_none(tmp_path):
    assert restored(tmp_path / "new") == (None, [])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", slow_after(1, [flip, truncate, empty]))
def test_whatever_file_is_damaged_what_is_read_is_right(again, saved, damage):
    """The last one, if the damage does not matter, or the one before it."""
    files = [path.relative_to(saved) for path in (saved / "15").rglob("*") if path.is_file()]
    fallen_back = 0
    for file in files:
        folder = again()
        damage(folder / file)
        found, broken = restored(folder)
        assert_same(found, progress(found.step))
        assert (found.step, broken) in [(15, []), (10, [15])]
        fallen_back += found.step == 10
    assert fallen_back >= 2


@pytest.mark.slow
def test_every_flipped_byte_of_the_numbers_is_noticed(again, saved):
    files = [path for path in (saved / "15").rglob("*") if path.is_file()]
    size, data = max((path.stat().st_size, path.relative_to(saved)) for path in files)
    for at in range(0, size, size // 12):
        folder = again()
        content = bytearray((folder / data).read_bytes())
        content[at] ^= 1
        (folder / data).write_bytes(content)
        found, _ = restored(folder)
        assert_same(found, progress(found.step))


def test_a_broken_one_is_replaced_when_its_step_comes_again(again):
    folder = again()
    for path in (folder / "15").rglob("*"):
        if path.is_file():
            truncate(path)
    checkpoints = ProgressCheckpoints(folder)
    assert checkpoints.restore()["state"]["step"] == 10
    save(checkpoints, progress(15))
    checkpoints.close()
    assert_same(restored(folder)[0], progress(15))


def test_with_all_broken_there_is_none(again):
    folder = again()
    for path in folder.rglob("*"):
        if path.is_file():
            flip(path)
    assert restored(folder) == (None, [15, 10])


def test_a_half_written_one_is_passed_over(again):
    folder = again()
    (folder / "15").rename(folder / "15.orbax-checkpoint-tmp")
    found, broken = restored(folder)
    assert (found.step, broken) == (10, [])
