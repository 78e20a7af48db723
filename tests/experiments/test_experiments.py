"""Experiments as jobs: lists of models, starts and lengths, and runs taken over from other jobs."""

import dataclasses
import importlib
import itertools
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import flags, grid, length, main
from tests.helpers import toy_job
from tests.helpers.toy_models import WORDS, make
from wayward_jax import checkpoints
from wayward_jax.errors import InputError
from wayward_jax.initialization import STARTS
from wayward_jax.jobs import job, records
from wayward_jax.jobs.setting import Gamma
from wayward_jax.jobs.settings import EXPERIMENTS, Settings
from wayward_jax.readings import Verbal
from wayward_jax.targets import Target

pytestmark = pytest.mark.usefixtures("one_shape")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = toy_job.make(tmp_path_factory.mktemp("experiments"))
    make("llama", made)
    (made / "words.txt").write_text("w7 w8 w9 w3 w1\nw3 w3 great\nw3 w1\n")
    return made


def run_job(folder, out_dir, chosen=main.EXPERIMENT, **changed):
    """The rows of the job, and how many steps it took.

    Populations are of two, so that they share one program, whichever runs a job has.
    """
    settings = toy_job.settings(folder, out_dir, **{"population": 2, **changed})
    with toy_job.CountingReporter() as watch:
        finished = job.run_job(settings, chosen, out_dir, watch)
        return toy_job.rows(finished.records), watch.steps


@pytest.fixture(scope="module")
def first(folder):
    """The rows of a job in the folder `first`, whose runs others take over."""
    rows, _ = run_job(folder, folder / "first", gamma=(0.5,))
    return rows


@dataclasses.dataclass
class Named:
    """As much of a model as lists of runs take."""

    name: str
    digest: str = "0123456789abcdef"
    module = SimpleNamespace(config=SimpleNamespace(depth=6))
    tokenizer = SimpleNamespace(chat_template="")


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "audit"])
def test_every_experiment_has_runs_tables_and_defaults_that_flags_take(given, name):
    found = flags.find_experiment(name)
    assert found.tables
    settings = given(experiment=name)
    assert settings.experiment == name
    expected = Settings.parse({**settings.texts(), **found.defaults})
    assert settings == expected
    assert found.defaults.keys() <= settings.texts().keys()
    targets = [Target(f"own/{i}", "two words", (i, 1)) for i in range(2)]
    runs = [
        run
        for model in settings.model
        for run in found.runs(settings.of_model(model), Named(model), settings.task[0], targets)
    ]
    assert len({run.id for run in runs}) == len(runs) > 0
    assert all(run.target_ids or run.gamma == 0 for run in runs)
    assert given().experiment == "main"
    assert all(given().texts()[flag] != text for flag, text in found.defaults.items())


def test_what_the_user_gives_comes_before_an_experiments_defaults(given):
    assert given(experiment="length").prompt_length == (4, 7, 14, 28, 56)
    assert given(experiment="length", prompt_length=["5"]).prompt_length == (5,)
    assert given(experiment="length").targets != given(experiment="length", targets="code").targets


def test_gammas_may_be_for_one_model(given):
    settings = given(model=["a", "b:c"], gamma=["0.5", "a:0.1", "b:c:0.2", "a:0.50"])
    assert settings.of_model("a").gamma == (Gamma(0.5), Gamma(0.1))
    assert settings.of_model("b:c").gamma == (Gamma(0.5), Gamma(0.2))


@pytest.mark.parametrize(
    ("gamma", "said"),
    [
        (["a:0.1"], "none for --model=b"),
        (["a:0.1", "b:0.2", "c:0.3"], "=c:0.3: name this model in --model"),
        (["a:much", "b:0.2"], "much"),
        (["0.1", "a:0.2", "a:0.20"], "twice"),
    ],
)
def test_gammas_of_models_that_do_not_fit_are_refused(given, gamma, said):
    with pytest.raises(InputError) as error:
        given(model=["a", "b"], gamma=gamma)
    assert error.value.as_flag().startswith("--gamma")
    assert said in error.value.as_flag()


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x"])
def test_prompt_lengths_are_whole_numbers(given, value):
    with pytest.raises(InputError, match="prompt_length"):
        given(prompt_length=["4", value])


def test_the_grid_has_each_target_in_every_way_and_a_p_star_of_each_length(folder):
    settings = toy_job.settings(
        folder, None, gamma=(0.0, 0.5), init=("target", "vocab"), seeds=(1, 2)
    )
    targets = [Target("one", "a b", (1, 2)), Target("two", "a b c", (1, 2, 3))]
    runs = grid.runs(settings, Named("gpt2"), "mood", targets)
    p_star = [run for run in runs if not run.target_ids]
    assert sorted((run.prompt_length, run.seed) for run in p_star) == [
        *((2, 1), (2, 2), (3, 1), (3, 2))
    ]
    assert {run.init for run in p_star} == {"vocab"}
    aimed = {(r.target_name, r.init, r.gamma, r.seed) for r in runs if r.target_ids}
    assert len(aimed) == len(runs) - 4 == 2 * 2 * 2 * 2
    assert {(run.model, run.model_digest) for run in runs} == {("gpt2", "0123456789abcdef")}


def test_every_target_and_p_star_is_tuned_at_every_learning_rate(folder):
    settings = toy_job.settings(folder, None, learning_rate=(0.01, 0.3), seeds=(1, 2))
    runs = grid.runs(settings, Named("gpt2"), "mood", [Target("one", "a b", (1, 2))])
    found = [(run.target_name, run.learning_rate, run.seed) for run in runs]
    names = itertools.product(("p_star", "one", "one"), (0.01, 0.3), (1, 2))
    assert sorted(found) == sorted(names)


def test_p_star_has_as_many_attempts_as_a_target_has_gammas(folder):
    settings = toy_job.settings(folder, None, gamma=(0.0, 0.1, 0.2), seeds=(1, 2))
    runs = grid.runs(settings, Named("gpt2"), "mood", [Target("one", "a b", (1, 2))])
    p_star = [run for run in runs if not run.target_ids]
    assert [run.attempt for run in p_star] == [0, 0, 1, 1]
    assert [run.seed for run in p_star] == [1, 2, 1, 2]
    table = np.random.default_rng(0).normal(size=(100, 4))
    starts = [STARTS[run.init](run, table) for run in p_star]
    assert not any(np.array_equal(*pair) for pair in itertools.combinations(starts, 2))
    assert {run.gamma for run in runs if run.target_ids} == {0.0, 0.1, 0.2}


def test_readings_are_held_with_every_gamma_and_p_star_has_as_many_attempts(folder):
    constraint = ("penalty", "cell", "lens", "lens:6", "verbal")
    settings = toy_job.settings(folder, None, gamma=(0.0, 0.1, 2.0), constraint=constraint)
    runs = grid.runs(settings, Named("gpt2"), "mood", [Target("one", "a b", (1, 2))])
    held = [(run.constraint, run.gamma) for run in runs if run.target_ids]
    verbal = str(Verbal())
    each = itertools.product(("penalty", "lens:3", "lens:6", verbal), (0.1, 2.0))
    assert sorted(held) == sorted([*each, ("cell", 0.0), ("penalty", 0.0)])
    assert {run.margin for run in runs if run.constraint != "cell"} == {0}
    assert [run.attempt for run in runs if not run.target_ids] == [0, 1]


@pytest.mark.parametrize("constraint", ["lens:", "lens:-1", "lens:x", "wall", "verbal:1"])
def test_constraints_that_are_not_there_are_refused(given, constraint):
    with pytest.raises(InputError, match="give penalty, cell, lens, lens:LAYER, verbal or inspect"):
        given(constraint=[constraint])


def test_a_gamma_that_is_found_is_refused_with_a_reading(given):
    with pytest.raises(InputError, match="give numbers with"):
        given(constraint=["penalty", "lens"], gamma=["auto"])


@pytest.mark.parametrize("gamma", [(0.1,), (0.1, 0.2), (0.0, 0.1)])
def test_each_target_has_a_run_of_its_start_without_a_constraint(folder, gamma):
    starts = ("target", "vocab", "random", "checkpoint:ab")
    settings = toy_job.settings(folder, None, gamma=gamma, init=starts, seeds=(1, 2))
    targets = [Target("one", "a b", (1, 2)), Target("two", "c d", (3, 4))]
    runs = grid.runs(settings, Named("gpt2"), "mood", targets)
    free = [(r.init, r.target_name, r.seed) for r in runs if r.is_unconstrained and not r.attempt]
    asked = starts if 0 in gamma else ("target",)
    own = itertools.product(asked, ("one", "two"), (1, 2))
    shared = itertools.product(starts[1:], ("p_star",), (1, 2))
    assert sorted(free) == sorted([*own, *shared])


def test_p_star_starts_where_all_starts_are_random(folder):
    settings = toy_job.settings(folder, None, gamma=(0.1,), init=("random",))
    runs = grid.runs(settings, Named("gpt2"), "mood", [Target("one", "a b", (1, 2))])
    assert [(run.init, run.gamma) for run in runs] == [("random", 0), ("random", 0.1)]


def test_how_prompts_are_optimized_is_part_of_every_run(folder):
    chosen = {"optimizer": "sgd", "warmup": 1, "weight_decay": 0.25, "keep": "best"}
    settings = toy_job.settings(folder, None, **chosen)
    runs = grid.runs(settings, Named("gpt2"), "mood", [Target("one", "a b", (1, 2))])
    assert len(runs) == 3
    for run in runs:
        assert {name: getattr(run, name) for name in chosen} == chosen


@pytest.mark.slow
def test_several_models_are_tuned_in_one_job_as_each_alone(folder, tmp_path):
    models = ("gpt2", "llama")
    paths = [folder / model for model in models]
    together, _ = run_job(folder, tmp_path / "both", model=paths)
    assert [row["model"] for row in together] == [models[0]] * 3 + [models[1]] * 3
    for model in models:
        alone, _ = run_job(folder, tmp_path / model, model=folder / model)
        own = [row for row in together if row["model"] == model]
        assert [{**row, "seconds": 0} for row in alone] == [{**row, "seconds": 0} for row in own]


def test_a_model_that_is_not_there_is_refused_before_the_others_are_tuned(folder, tmp_path):
    with pytest.raises(InputError, match=r"model=.?nothing"):
        run_job(folder, tmp_path / "refused", model=(str(folder / "gpt2"), "nothing"))
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
def test_every_target_is_cut_to_every_length_that_it_has(folder, tmp_path):
    rows, _ = run_job(
        folder,
        tmp_path / "lengths",
        length.EXPERIMENT,
        targets=str(folder / "words.txt"),
        prompt_length=(2, 3),
    )
    aimed = [row for row in rows if row["gamma"]]
    assert sorted((row["target_name"], row["target_text"]) for row in aimed) == [
        ("words/1", "w7 w8"),
        ("words/1", "w7 w8 w9"),
        ("words/2", "w3 w3"),
        ("words/2", "w3 w3 great"),
        ("words/3", "w3 w1"),
    ]
    assert sorted(row["prompt_length"] for row in rows if not row["target_ids"]) == [2, 3]


@pytest.mark.slow
def test_runs_of_earlier_jobs_are_taken_over_and_the_rest_is_tuned(folder, first, tmp_path):
    again, steps = run_job(folder, tmp_path / "again", gamma=(0.5, 0.1), reuse=(folder / "first",))
    assert steps == 2
    elsewhere = {"checkpoint": ""}
    assert [row | elsewhere for row in again[:3]] == [row | elsewhere for row in first]
    new = [(row["attempt"], row["gamma"]) for row in again[len(first) :]]
    assert sorted(new) == [(0, 0.1), (1, 0.0)]  # p_star has a second attempt
    for taken, given in zip(again, first, strict=False):
        np.testing.assert_array_equal(
            toy_job.prompt(tmp_path / "again", taken), toy_job.prompt(folder / "first", given)
        )


@pytest.mark.slow
def test_a_job_of_which_others_have_all_runs_tunes_none(folder, first, tmp_path):
    run_job(folder, tmp_path / "second", gamma=(0.5,), learning_rate=0.1)
    shutil.copytree(folder / "first", tmp_path / "copy")
    both = (folder / "first", tmp_path / "second", tmp_path / "copy")
    given = {"gamma": (0.5,), "learning_rate": (0.03, 0.1)}
    rows, steps = run_job(folder, tmp_path / "third", **given, reuse=both)
    assert (len(rows), steps) == (6, 0)
    expected = {
        row["id"]: row for each in both for row in records.read_lines(each / "results.jsonl")
    }
    incidental = {"seconds": 0, "checkpoint": ""}
    assert [row | incidental for row in rows] == [expected[row["id"]] | incidental for row in rows]


@pytest.mark.slow
def test_runs_evaluated_on_other_examples_are_not_taken_over(folder, first, tmp_path):
    with pytest.raises(InputError, match=r"reuse=.*n_dev=12 there and 5 here"):
        run_job(folder, tmp_path / "again", reuse=(folder / "first",), n_dev=5)
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_runs_of_weights_of_another_precision_are_not_taken_over(folder, first, tmp_path):
    with pytest.raises(InputError, match=r"first.: .* dtype=float32 there and bfloat16 here"):
        run_job(folder, tmp_path / "again", dtype="bfloat16", reuse=(folder / "first",))
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_runs_of_other_examples_in_the_same_numbers_are_not_taken_over(folder, first, tmp_path):
    shutil.copytree(folder / "mood", tmp_path / "mood")
    path = tmp_path / "mood" / "test.jsonl"
    path.write_text(path.read_text().replace("w5", "w6"))
    with pytest.raises(InputError, match=r"reuse=.*: run .* has examples_digest="):
        run_job(folder, tmp_path / "again", task=tmp_path / "mood", reuse=(folder / "first",))
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_runs_without_their_checkpoints_are_not_taken_over(folder, first, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    records.append_lines(bare / "results.jsonl", first)
    with pytest.raises(InputError, match=r"reuse=.*bare.*: lacks .*checkpoints"):
        run_job(folder, tmp_path / "again", reuse=(bare,))


def test_a_start_of_another_width_is_refused(folder, tmp_path):
    checkpoints.save_prompts(tmp_path / "start", {"p": np.zeros((3, 5), np.float32)})
    with pytest.raises(InputError, match="start: has vectors of width 5"):
        run_job(folder, tmp_path / "refused", init=("target", str(tmp_path / "start")))


@pytest.mark.slow
def test_targets_that_nothing_can_read_as_are_refused(folder, tmp_path):
    """The embedding of w9 is made that of w8, so both read as w8, the first of the two.

    Cells, and gammas that are found, then reach every other target.
    """
    twins = shutil.copytree(folder / "gpt2", tmp_path / "twins")
    weights = load_file(twins / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("wte.weight"))
    w8, w9 = WORDS.index("w8"), WORDS.index("w9")
    weights[name][w9] = weights[name][w8]
    save_file(weights, twins / "model.safetensors", {"format": "pt"})
    cell, auto = {"constraint": ("cell",)}, {"gamma": ("auto",)}
    for held in (cell, auto):
        changed = {"model": (str(twins),), "targets": "text=w7 w8 w9", **held}
        with pytest.raises(InputError, match=rf"^targets=.*: nothing reads as 'w9' \(token {w9}\)"):
            run_job(folder, tmp_path / "out", **changed)
        assert not (tmp_path / "out").exists()
    changed = {"targets": "text=w7 w8", "constraint": ("cell", "penalty"), **auto}
    rows, _ = run_job(folder, tmp_path / "out", model=(str(twins),), population=4, **changed)
    found = {row["constraint"]: row["prompt_f1"] for row in rows if row["constraint"] != "penalty"}
    assert found == {"cell": 1, "dual": 1}


def test_modules_of_experiments_say_what_they_show():
    for name in EXPERIMENTS:
        module = importlib.import_module(f"experiments.{name}")
        assert module.__doc__.startswith(f"`{name}`: ")
