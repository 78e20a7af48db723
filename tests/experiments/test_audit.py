"""Audits come to the verdicts that the construction of their prompts demands."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import wayward_jax as wj
from experiments import audit
from tests.helpers import toy_job, toy_models
from wayward_jax import models
from wayward_jax.analysis.analyze import analyze
from wayward_jax.errors import InputError
from wayward_jax.projection import c_proj
from wayward_jax.readings import Lens, Verbal
from wayward_jax.training.imitation import Texts, compare_outputs

# A text that helps the toy model with its task, found among 400 random ones.
HELPFUL = "w49 w17 w23"

# The model is asked in these ways, and in those by default where there is no task.
TEMPLATES = "w1 {prompt} w2|w1 {prompt} w3"

pytestmark = pytest.mark.usefixtures("one_shape")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and a task `mood` of many examples that the last word of each text decides."""
    made = toy_job.make(tmp_path_factory.mktemp("audit"))
    task = {"labels": ["bad", "good"], "templates": ["%s"], "label_words": ["terrible", "great"]}
    (made / "mood" / "task.json").write_text(json.dumps(task))
    rng = np.random.default_rng(1)
    for split, count in (("train", 200), ("dev", 60), ("test", 600)):
        lines = []
        for _ in range(count):
            label = int(rng.integers(2))
            words = [f"w{i}" for i in rng.integers(10, 20, rng.integers(4))]
            lines.append(json.dumps({"text": " ".join([*words, f"w{label}"]), "label": label}))
        (made / "mood" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return made


@pytest.fixture(scope="module")
def model(folder):
    return models.load(str(folder / "gpt2"), cache_dir=folder / "cache", readable="all")


@pytest.fixture(scope="module")
def task(folder):
    return wj.load_task("mood", data_dir=folder)


def tune(model, task, target=None, **settings):
    settings = {"learning_rate": 0.03, "template": 0, "progress": False, **settings}
    return wj.tune(model, task, target, prompt_length=3, **settings).prompt


@pytest.fixture(scope="module")
def p_star(model, task):
    return tune(model, task, steps=150)


def second_text(model, prompt):
    """The text of the second nearest tokens, which a prompt nearby reads as."""
    ids = wj.read(model, prompt, k=2)["euclidean"].ids
    return model.tokenizer.decode(ids[:, 1].tolist())


def run(folder, source, others, out_dir, **changed):
    """The JSON of an audit, with the page and the Markdown, which say the same.

    Audits of two texts share one program, whatever prompt and texts they have.
    """
    if isinstance(source, np.ndarray):
        np.save(out_dir.parent / "prompt.npy", source)
        source = out_dir.parent / "prompt.npy"
    (folder / "others.txt").write_text("\n".join(others) + "\n")
    flags = {
        "model": folder / "gpt2",
        "task": "mood",
        "data_dir": folder,
        "template": 0,
        "readable": "all",
        "cache_dir": folder / "cache",
        "targets": folder / "others.txt",
        "prompt": source,
        "steps": 60,
        "learning_rate": 0.03,
        "n_eval": 0,
        "population": 8,
        "mesh": "runs:1",
        "verbal_templates": TEMPLATES,
        "out_dir": out_dir,
        **changed,
    }
    given = {name: text for name, text in toy_job.texts(flags).items() if text is not None}
    audit.main(given)
    found = json.loads((out_dir / "audit.json").read_text())
    for suffix in ("html", "md"):
        shown = (out_dir / f"audit.{suffix}").read_text().replace("&#39;", "'").replace("\\", "")
        assert found["verdict"] in shown
    return found


@pytest.fixture(scope="module")
def of_p_star(folder, model, p_star, tmp_path_factory):
    """The folder and the JSON of an audit of p_star.

    A prompt beside p_star reads as p_star's second nearest tokens and does the same.
    """
    out_dir = tmp_path_factory.mktemp("p_star") / "out"
    texts = [second_text(model, p_star), "w3 w3 great"]
    return out_dir, run(folder, p_star, texts, out_dir)


@pytest.fixture(scope="module")
def wayward(model, of_p_star):
    """That prompt."""
    out_dir, found = of_p_star
    best = found["task"]["doubles"][0]
    return wj.load_prompt(f"{out_dir}/{best['checkpoint']}:{best['best']}", model)


@pytest.mark.slow
def test_a_double_of_p_star_shows_that_its_reading_does_not_tell_what_it_does(
    model, task, p_star, of_p_star, wayward
):
    _, found = of_p_star
    assert found["verdict"].startswith("1 of 2 other texts is read off a prompt with which the")
    assert found["verdict"].endswith("does not tell what it does.")
    as_well, worse = found["task"]["doubles"]
    assert (as_well["verdict"], worse["verdict"]) == ("within", "beyond")
    assert wj.read(model, wayward)["euclidean"].text == second_text(model, p_star)
    scored = wj.evaluate(model, [p_star, wayward], task, template=0)
    accuracies = [found["task"]["accuracy"]["prompt"], as_well["accuracy"]]
    assert accuracies == pytest.approx([each.accuracy for each in scored], abs=0.004)
    table = np.float64(model.embedding_table())[: len(toy_models.WORDS)]
    nearest = np.linalg.norm(p_star[:, None] - table, axis=2).min(axis=1)
    np.testing.assert_allclose(found["to_token"], nearest, rtol=1e-4)


@pytest.mark.slow
def test_the_analysis_of_jobs_refuses_an_audit_in_one_line(folder, of_p_star):
    out_dir, _ = of_p_star
    with pytest.raises(InputError, match=r"runs=.*holds an audit.*open audit.html there") as error:
        analyze([out_dir], cache_dir=folder / "cache")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_wayward_prompt_is_found_to_be_one_and_its_text_does_not_do_the_task(
    folder, model, task, p_star, wayward, tmp_path
):
    honest = wj.read(model, p_star)["euclidean"].text
    found = run(folder, wayward, [honest, "w3 w3 great"], tmp_path / "out")
    assert found["verdict"].startswith("1 of 2 other texts is read off a prompt with which the")
    assert found["readings"]["euclidean"]["text"] == second_text(model, p_star)
    ids = np.asarray(model.tokenizer.encode(second_text(model, p_star)))
    text = np.asarray(c_proj(model.embedding_table(), ids))
    as_text, _ = wj.evaluate(model, [text, p_star], task, template=0)
    assert as_text.accuracy < found["task"]["accuracy"]["prompt"] - 0.1
    assert found["task"]["accuracy"]["reading"] == pytest.approx(as_text.accuracy, abs=0.004)
    assert any("the reading does mood worse than the prompt" in said for said in found["findings"])


@pytest.mark.slow
def test_a_text_is_found_to_be_a_text_whatever_its_doubles_do(folder, model, tmp_path):
    found = run(folder, f"text={HELPFUL}", ["w3 w3 great", "w7 w8 w9"], tmp_path / "out")
    assert found["verdict"].startswith("This prompt is a text: its vectors are embeddings of")
    assert found["readings"]["euclidean"]["text"] == HELPFUL
    assert found["task"]["accuracy"]["prompt"] == found["task"]["accuracy"]["reading"]
    assert set(found["to_token"]) == {0.0}


@pytest.mark.slow
def test_a_prompt_that_does_nothing_has_no_reading_to_test_and_short_texts_are_repeated(
    folder, tmp_path
):
    """With this random prompt, the first that was found of its kind, half of the answers are right.

    Other random prompts help.
    """
    prompt = np.random.default_rng(1).normal(0, 0.3, (3, toy_models.WIDTH)).astype(np.float32)
    prompt[2], prompt[1] = prompt[0], 0
    found = run(folder, prompt, ["w7 w8", "w3 w3 great"], tmp_path / "out")
    assert found["task"]["accuracy"]["prompt"] < 0.55
    assert found["verdict"].startswith("This prompt is not shown to do mood better")
    assert found["task"]["doubles"][0]["target_text"] == "w7 w8 w7"
    assert found["duplicates"] == [[0, 2]]
    assert found["dead"] == [1]


@pytest.mark.slow
def test_a_search_that_finds_no_double_says_how_hard_it_was_and_goes_on_where_it_was_stopped(
    folder, p_star, tmp_path, monkeypatch
):
    """The second start tunes and measures nothing, and comes to the same page.

    Steps are so small that no prompt comes near a text.
    """
    flags = {"others": ["w3 w3 great", "w7 w8 w9"], "out_dir": tmp_path / "out"}
    flags["learning_rate"] = 1e-5
    first = run(folder, p_star, **flags)
    assert first["verdict"].startswith("No double was found: all prompts")
    assert any("in 60 steps of 4 examples" in said for said in first["findings"])
    page = (tmp_path / "out" / "audit.html").read_text()
    (tmp_path / "out" / "audit.html").unlink()
    monkeypatch.setattr("wayward_jax.jobs.job.tune_population", pytest.fail)
    monkeypatch.setattr("experiments.audit._measure_references", pytest.fail)
    assert run(folder, p_star, **flags) == first
    assert (tmp_path / "out" / "audit.html").read_text() == page
    with pytest.raises(InputError, match=r"out_dir=.*of other runs"):
        run(folder, p_star + 1, **flags)


# Audits without a task that share one program. They themselves choose a mesh of all devices.
IMITATED = {"task": None, "steps": 6, "population": 2, "mesh": None, "verbal_templates": None}


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """A file of 40 texts of four words."""
    rng = np.random.default_rng(2)
    path = tmp_path_factory.mktemp("sentences") / "sentences.txt"
    path.write_text(
        "\n".join(" ".join(f"w{i}" for i in rng.integers(74, size=4)) for _ in range(40))
    )
    return path


@pytest.mark.slow
def test_without_a_task_a_double_keeps_what_a_prompt_makes_the_model_predict(
    folder, model, sentences, tmp_path
):
    """The prompt lies between two texts, barely in the cells of the first one.

    A prompt on the other side of the walls is as good as the same. One that reads as a text far
    away would take more than a few small steps.
    """
    near, far = "w49 w17 w23", "w3 w3 great"
    table = np.asarray(model.embedding_table())[: len(toy_models.WORDS)]
    start = table[model.tokenizer.encode(near)]
    ids = np.argsort(np.linalg.norm(table - start[:, None], axis=2), axis=1)[:, 1]
    other = model.tokenizer.decode(ids.tolist())
    prompt = start + 0.49 * (table[ids] - start)
    assert wj.read(model, prompt)["euclidean"].text == near
    flags = IMITATED | {"texts": sentences, "learning_rate": 0.0003}
    found = run(folder, prompt, [other, far], tmp_path / "out", **flags)
    assert found["verdict"].startswith("1 of 2 other texts is read off a prompt with which the")
    assert found["task"] is None
    kept, changed = found["texts"]["doubles"]
    assert (kept["text"], kept["verdict"]) == (other, "within")
    assert (changed["text"], changed["verdict"]) == (far, "beyond")
    assert found["texts"]["n_texts"] == 20
    double = wj.load_prompt(tmp_path / "out" / "doubles" / f"{kept['best']}.npy", model)
    assert wj.read(model, double)["euclidean"].text == other

    texts = Texts.encode(model, sentences.read_text().split("\n"), 3).halves()[1]
    own = compare_outputs(model, prompt, [double], texts)
    assert kept["divergence"] == pytest.approx(own.kl.mean(), rel=1e-3)
    nothing = compare_outputs(model, prompt, [prompt[:0]], texts)
    assert found["texts"]["none"]["divergence"] == pytest.approx(nothing.kl.mean(), rel=1e-3)
    assert kept["share"][0] == pytest.approx(100 * own.kl.mean() / nothing.kl.mean(), rel=1e-3)
    with pytest.raises(InputError, match=r"out_dir=.*of other runs or examples"):
        run(folder, prompt, [far], tmp_path / "out", **flags)
    with pytest.raises(InputError, match=r"out_dir=.*steps was 6 and is 7"):
        run(folder, prompt, [other, far], tmp_path / "out", **{**flags, "steps": 7})


@pytest.mark.slow
def test_an_audit_without_a_task_goes_on_after_the_doubles_that_were_finished(
    folder, sentences, tmp_path, monkeypatch
):
    """It is stopped, and then killed, in the middle of the second of three pairs of doubles."""
    prompt = np.random.default_rng(3).normal(0, 0.3, (3, toy_models.WIDTH)).astype(np.float32)
    texts = ["w3 w3 great", "w49 w17 w23", "w7 w8 w9", "w4 w5 w6", "w9 w3 w1", "w30 w31 w32"]
    flags = IMITATED | {"texts": sentences}
    whole = run(folder, prompt, texts, tmp_path / "whole", **flags)

    def terminate():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)  # for the thread that listens

    def fail():
        raise MemoryError

    out_dir, taken, ends = tmp_path / "out", [], {11: terminate, 16: fail}

    def stepped(self, steps, figures):
        taken.append(steps)
        ends.get(sum(taken), list)()

    monkeypatch.setattr("wayward_jax.jobs.progress_bar.ProgressReporter.stepped", stepped)
    with pytest.raises(KeyboardInterrupt, match="same command"):
        run(folder, prompt, texts, out_dir, **flags)
    with pytest.raises(MemoryError):
        run(folder, prompt, texts, out_dir, **flags)
    assert len(list((out_dir / "doubles").iterdir())) == 2
    assert run(folder, prompt, texts, out_dir, **flags) == whole
    assert taken == [5, 1, 5, 5, 5, 1, 5, 1]  # in calls of at most five steps
    for path in (tmp_path / "whole" / "doubles").iterdir():
        np.testing.assert_array_equal(np.load(out_dir / "doubles" / path.name), np.load(path))
    assert (out_dir / "audit.html").read_text() == (tmp_path / "whole" / "audit.html").read_text()
    assert run(folder, prompt, texts, out_dir, **flags) == whole
    assert len(taken) == 8


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"texts": "nowhere"}, "texts='nowhere': no such set or file"),
        ({"texts": "sentences:3"}, "texts='sentences:3': 3 texts that are no targets are too few"),
        ({"texts": "definitions"}, "texts='definitions': the texts of this set differ by task"),
        ({"texts": "sentences:9", "targets": "sentences:2"}, "7 texts that are no targets are too"),
        ({"gamma": 0, "constraint": "penalty"}, "gamma=0: holds no prompt to its text"),
    ],
    ids=str,
)
def test_bad_flags_of_an_audit_without_a_task_get_one_line(folder, tmp_path, changed, said):
    with pytest.raises(InputError, match=said) as error:
        run(folder, "text=w3 w4", ["w1"], tmp_path / "out", task=None, **changed)
    assert "\n" not in str(error.value)
    assert not Path(tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompt": None}, "prompt: give one"),
        ({"prompt": "nowhere"}, "prompt='nowhere': there is no such file"),
        ({"init": "vocab"}, "init='vocab': leave it out"),
        ({"model": "a,b"}, "model='a,b': give one"),
        ({"task": "mood,sst2"}, "task='mood,sst2': give one"),
        ({"experiment": "main"}, "experiment='main': give one of audit"),
        ({"texts": "sentences"}, "texts='sentences': is for audits without task"),
    ],
    ids=str,
)
def test_bad_flags_of_an_audit_get_one_line(folder, tmp_path, changed, said):
    with pytest.raises(InputError, match=said) as error:
        run(folder, "text=w3 w4", ["w1"], tmp_path / "out", **changed)
    assert "\n" not in str(error.value)
    assert not Path(tmp_path / "out").exists()


@pytest.mark.slow
def test_doubles_of_the_lens_are_judged_apart_and_the_model_says_what_the_prompt_means(
    folder, model, p_star, tmp_path
):
    """The text is the one that the lens reads off p_star, so that there is such a double."""
    text = model.tokenizer.decode(Lens(1).read(model, p_star[None])[0].tolist())
    found = run(
        folder,
        p_star,
        [text],
        tmp_path / "out",
        constraint="cell,lens:1",
        gamma=10,
        steps=20,
    )
    nearest, lens = found["task"]["doubles"]
    assert (nearest["reading"], lens["reading"]) == ("nearest tokens", "lens:1")
    double = wj.load_prompt(f"{tmp_path}/out/{lens['checkpoint']}:{lens['best']}", model)
    assert model.tokenizer.decode(Lens(1).read(model, double[None])[0].tolist()) == text
    assert any(said.startswith("By the reading lens:1: ") for said in found["findings"])
    verbal = Verbal(tuple(TEMPLATES.split("|")))
    said = verbal.say(model, p_star[None])
    texts = [model.tokenizer.decode(ids.tolist()) for ids in np.asarray(said.ids[0])]
    assert [answer["text"] for answer in found["answers"][:2]] == texts
    assert [answer["asked"] for answer in found["answers"][:2]] == list(said.ways)
