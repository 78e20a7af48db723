"""The documents are true for the code: commands, flags, links, and every example is run."""

import functools
import importlib
import json
import re
import shlex
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
import safetensors.numpy
from rich.console import Console

import wayward_jax as wj
from experiments import flags
from tests.helpers import pages, toy_job, toy_models
from tests.helpers.toy_models import WORDS
from wayward_jax import api, models
from wayward_jax.jobs.job import run_job
from wayward_jax.jobs.progress_bar import ProgressReporter
from wayward_jax.jobs.settings import (
    AnalysisSettings,
    AuditSettings,
    CalibrationSettings,
    ExportSettings,
    ForecastSettings,
)
from wayward_jax.models.families import FAMILIES

ROOT = pages.ROOT
README, EXTENDING = ROOT / "README.md", ROOT / "docs" / "extending.md"
USAGE = ROOT / "docs" / "usage.md"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]

pytestmark = pytest.mark.usefixtures("one_shape")

# Flags of other programs that the pages name.
OTHER_FLAGS = {
    *("help", "logdir"),
    *("array", "kill-on-bad-exit", "ntasks", "cpus-per-task", "mem", "gpus-per-node", "time"),
    "gpus-per-task",
    *("signal", "requeue", "open-mode", "output", "job-name", "nodes", "ntasks-per-node"),
}


def text(page):
    return page.read_text(encoding="utf-8")


def commands(page, program):
    """The arguments of each command of a page that starts a program."""
    for block in pages.blocks(text(page)):
        for line in block.code.replace("\\\n", " ").splitlines():
            if block.language == "sh" and f"python -m experiments.{program}" in line:
                words = shlex.split(line.partition(f"experiments.{program}")[2], comments=True)
                yield [word for word in words if word.startswith("--")]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder of a small published model `gpt2`."""
    folder = tmp_path_factory.mktemp("published")
    toy_models.make("gpt2", folder)
    return folder


@pytest.fixture
def toy(published, tmp_path, monkeypatch):
    """An empty folder, in which the names of a built-in model and task stand for small ones."""
    # Words that the small vocabulary lacks are its special token.
    model = models.load(str(published / "gpt2"), cache_dir=published, readable="all")
    load_task = api.load_task
    monkeypatch.setattr(api, "load_model", lambda name: model)
    monkeypatch.setattr(
        api,
        "load_task",
        lambda name: toy_models.toy_data() if name == "reviews" else load_task(name),
    )
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run_section(name):
    """Writes the files of a section of `extending.md`, runs its other blocks, returns its names."""
    sections = pages.sections(text(EXTENDING))
    namespace = {}
    for block in pages.blocks(sections[""]) + pages.blocks(sections[name]):
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            exec(block.code, namespace)
    return namespace


def import_beside(package, folder, monkeypatch):
    """Lets a package have the modules of a folder, too."""
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    importlib.invalidate_caches()


def test_the_readme_is_short():
    assert len(text(README).splitlines()) <= 130


def test_the_readme_has_the_two_commands():
    blocks = [block.code for block in pages.blocks(text(README)) if block.language == "sh"]
    assert "pip install -e . && python -m experiments.run\n" in blocks[0]
    assert blocks[1] == "pip install -e '.[test]' && python -m pytest\n"


@pytest.mark.slow
def test_the_library_in_the_readme_runs(toy):
    six_lines, with_lists = (b for b in pages.blocks(text(README)) if b.language == "python")
    assert len([line for line in six_lines.code.splitlines() if line]) <= 6
    names = {}
    exec(six_lines.code, names)
    assert names["result"].run.target_text == "How to bake a cake"
    exec(with_lists.code, names)
    assert len(names["results"]) == 3 * 2 * 4


@pytest.mark.slow
def test_the_library_in_usage_runs(toy):
    names = {}
    exec(pages.blocks(pages.sections(text(USAGE))["The library"])[0].code, names)
    assert names["gradient"].shape == names["prompts"].shape
    assert np.abs(names["gradient"]).max() > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_flag_that_a_page_names_exists(page):
    kinds = (
        AuditSettings,
        AnalysisSettings,
        CalibrationSettings,
        ExportSettings,
        ForecastSettings,
    )
    known = {setting.name for kind in kinds for setting in kind.settings()}
    programs = text(ROOT / "launch_tpu.sh") + text(ROOT / "experiments/benchmark/__main__.py")
    known |= set(re.findall(r"--([a-z_]+)", programs)) | set(
        re.findall(r'DEFINE_\w+\(\s*"(\w+)', programs)
    )
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z_-]*)", text(page)))
    assert named <= known | OTHER_FLAGS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_can_be_parsed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    programs = {
        "run": flags.job_settings,
        "forecast": functools.partial(flags.job_settings, kind=ForecastSettings),
        "analyze": AnalysisSettings.parse,
        "audit": AuditSettings.parse,
        "export": ExportSettings.parse,
    }
    for program, parse in programs.items():
        for words in commands(page, program):
            given = dict(word.removeprefix("--").split("=", 1) for word in words)
            for folder in (given.get("data_dir"), *given.get("reuse", "").split(",")):
                if folder:
                    Path(folder).mkdir(parents=True, exist_ok=True)
            parse(
                {name: value.replace("$SLURM_ARRAY_TASK_ID", "0") for name, value in given.items()}
            )


def test_usage_has_every_flag_with_its_default():
    rows = re.findall(r"^\| ((?:`--\w+`(?:, )?)+) \| (?:`(.*?)`)? ?\|", text(USAGE), re.MULTILINE)
    documented = {
        name: default for names, default in rows for name in re.findall(r"--(\w+)", names)
    }
    declared = {setting.name: setting.default or "" for setting in ForecastSettings.settings()}
    del declared["cache_dir"], documented["cache_dir"]  # a path of the user's
    assert documented == declared


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_of_a_page_resolves(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), link
        headings = re.findall(r"^#+ (.+)$", text(there), re.MULTILINE) if anchor else []
        anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
        assert not anchor or anchor in anchors, link


@pytest.mark.slow
def test_a_task_can_be_added_as_extending_says(toy):
    names = run_section("A task")
    assert names["mood"].task.labels == ("bad", "good")
    assert names["result"].n_eval == 2


@pytest.mark.slow
def test_targets_can_be_added_as_extending_says(toy):
    assert [r.run.target_name for r in run_section("Targets")["results"]] == [
        "slogans/tea",
        "slogans/rust",
    ]


@pytest.mark.slow
def test_a_constraint_of_ones_own_takes_at_most_25_lines_and_holds(toy):
    code = pages.blocks(pages.sections(text(EXTENDING))["A constraint"])[0].code
    assert len(code.splitlines()) <= 25
    names = {}
    exec(pages.blocks(text(EXTENDING))[0].code + code, names)
    result, table = names["result"], np.asarray(names["model"].embedding_table())
    offsets = result.prompt - table[list(result.run.target_ids)]
    assert np.linalg.norm(offsets, axis=1).max() <= 0.5 * (1 + 1e-6)
    assert result.run.constraint == "Ball(radius=0.5)"


@pytest.mark.slow
def test_a_penalty_of_ones_own_is_tuned_with(toy):
    names = run_section("A constraint")
    assert names["result"].final_gamma == np.float32(0.3)
    assert names["result"].run.constraint == "Worst()"


@pytest.mark.slow
def test_an_optimizer_of_ones_own_is_tuned_with(toy):
    names = run_section("An optimizer")
    assert names["result"].run.optimizer == "custom"
    assert [r.run.learning_rate for r in names["results"]] == [0.01, 0.03]


@pytest.mark.slow
def test_a_reading_of_ones_own_takes_at_most_40_lines_and_is_deceived(toy):
    code = pages.blocks(pages.sections(text(EXTENDING))["A reading"])[0].code
    assert len(code.splitlines()) <= 40
    names = run_section("A reading")
    result, table = names["result"], np.asarray(names["model"].embedding_table())[: len(WORDS)]
    spread = np.asarray(names["model"].embedding_table()).std(axis=0)
    far = np.square((result.prompt[:, None] - table) / spread).sum(axis=-1)
    assert result.token_ids == tuple(far.argmin(axis=1))
    assert (result.reading, result.run.constraint) == ("Standardized()", "Standardized()")


@pytest.mark.slow
def test_an_experiment_can_be_added_as_extending_says(toy, monkeypatch):
    run_section("An experiment")
    import experiments

    import_beside(experiments, "experiments", monkeypatch)
    experiment = importlib.import_module("experiments.steps").EXPERIMENT
    folder = toy_job.make(toy)
    finished = run_job(
        toy_job.settings(folder, folder / "out", steps=4),
        experiment,
        folder / "out",
        ProgressReporter(Console(quiet=True)),
    )
    assert sorted({record.run.steps for record in finished.records}) == [1, 2, 4]


@pytest.mark.slow
def test_a_model_family_can_be_added_as_extending_says(toy, published, tmp_path, monkeypatch):
    run_section("A model family")
    import_beside(models, "wayward_jax/models", monkeypatch)
    family = importlib.import_module("wayward_jax.models.parallel.params").PARALLEL_FAMILY
    monkeypatch.setitem(FAMILIES, "parallel", family)

    folder = tmp_path / "published"
    width, inner = 16, 24
    config = {
        "model_type": "parallel",
        "vocab_size": 96,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 64,
    }
    shapes = {"embed_tokens": (96, width), "norm": (width,)}
    for layer in ("layers.0", "layers.1"):
        shapes |= {
            f"{layer}.norm": (width,),
            f"{layer}.attention.q": (16, width),
            f"{layer}.attention.k": (8, width),
            f"{layer}.attention.v": (8, width),
            f"{layer}.attention.out": (width, 16),
            f"{layer}.mlp.up": (inner, width),
            f"{layer}.mlp.down": (width, inner),
        }
    rng = np.random.default_rng(0)
    weights = {
        f"model.{name}.weight": rng.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    for file in (published / "gpt2").glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    model = models.load(str(folder), cache_dir=tmp_path)
    assert model.digest
    record = wj.tune(model, toy_models.toy_data(), toy_models.TARGET, steps=2, progress=False)
    assert record.prompt.shape == (4, width)

    # The last token of a text attends to all before it, whatever comes after.
    ids = np.arange(8)[None]
    logits = jax.jit(functools.partial(model.module.apply, method="text_logits"))
    whole, half = logits(model.params, ids), logits(model.params, ids[:, :4])
    np.testing.assert_allclose(whole[:, :4], half, atol=1e-5)


def test_the_notebook_is_made_of_the_script():
    script = text(pages.EXAMPLES / "first_prompt.py")
    kept = json.loads(text(pages.EXAMPLES / "first_prompt.ipynb"))
    assert kept == pages.notebook(script), "run python -m tests.helpers.pages"


@pytest.mark.slow
def test_the_notebook_runs(toy, capsys):
    cells = json.loads(text(pages.EXAMPLES / "first_prompt.ipynb"))["cells"]
    code = "".join(
        "".join([*each["source"], "\n"]) for each in cells if each["cell_type"] == "code"
    )
    for own, of_toy in {"How to bake a cake": "w7 w8 w9", "STEPS = 60": "STEPS = 2"}.items():
        assert code.count(own) == 1
        code = code.replace(own, of_toy)
    names = {}
    exec(code, names)
    plt.close("all")
    assert names["wayward"].text == "w7 w8 w9"
    assert "The text itself is right" in capsys.readouterr().out
    assert (toy / "first_prompt.png").stat().st_size > 0
