"""Settings: their texts, what they refuse, and the commands made of them."""

import json
import shlex

import pytest

from tests.helpers import fork_server
from wayward_jax.errors import InputError
from wayward_jax.jobs.kept_flags import differing, read_flags, repeating_command
from wayward_jax.jobs.layout import JobLayout
from wayward_jax.jobs.setting import Gamma
from wayward_jax.jobs.settings import (
    AnalysisSettings,
    AuditSettings,
    ExportSettings,
    Settings,
)

# A value for each setting that is not its default.
OTHERS = {
    "experiment": "gamma",
    "model": 'a/gpt2,"b,c/llama"',
    "dtype": "float32",
    "task": "plots,mood",
    "data_dir": "FOLDER",
    "text_column": "review",
    "label_column": "stars",
    "truncate": "head",
    "readable": "all",
    "bos": "no",
    "targets": "text=w1, w2",
    "gamma": "0,0.0001,auto,a/gpt2:3e+20",
    "constraint": "penalty,cell",
    "verbal_templates": "a {prompt} b|{prompt} c",
    "margin": "0.5",
    "seeds": "0,4294967295",
    "steps": "2000",
    "batch_size": "10000",
    "learning_rate": "1e-05,0.3",
    "optimizer": "adafactor",
    "warmup": "5",
    "weight_decay": "0.01",
    "keep": "best",
    "method": "channel",
    "template": "0",
    "init": "vocab,random",
    "prompt_length": "4,7",
    "k_shot": "16",
    "data_seed": "1,2",
    "n_dev": "0",
    "n_eval": "0",
    "population": "12",
    "mesh": "runs:4,data:2,model:1",
    "checkpoint_every": "7",
    "out_dir": "gs://bucket/job",
    "tensorboard": "true",
    "profile": "3",
    "only": "0123456789ab,ba9876543210",
    "shard": "1/3",
    "coordinator": "10.0.0.1:1234",
    "num_processes": "4",
    "process_id": "3",
    "reuse": "FOLDER",
    "cache_dir": "elsewhere",
    "assets_dir": "FOLDER",
    "select": "test",
}


@pytest.fixture
def others(tmp_path):
    texts = {name: text.replace("FOLDER", str(tmp_path)) for name, text in OTHERS.items()}
    return {**texts, "batch_size": "100"}  # so many fit with the steps


def test_every_setting_comes_back_from_its_text(others):
    assert others.keys() == {setting.name for setting in Settings.settings()}
    settings, defaults = Settings.parse(others), Settings()
    assert settings.texts() == others
    for name in others:
        assert getattr(settings, name) != getattr(defaults, name)
    assert Settings.parse(defaults.texts()) == defaults


def test_a_setting_that_is_not_given_has_no_text():
    texts = Settings().texts()
    assert {name for name, text in texts.items() if text is None} == {
        *("data_dir", "prompt_length", "population", "mesh", "out_dir", "only", "shard", "reuse"),
        *("coordinator", "num_processes", "process_id", "assets_dir"),
        *("text_column", "label_column", "template", "verbal_templates"),
    }


@pytest.fixture
def program(fork, tmp_path):
    """Runs a program that says which flags it was given."""

    def run(kind, *words):
        arguments = [kind.__name__, *words]
        module = "tests.helpers.print_flags"
        return fork_server.start(fork, module, arguments, tmp_path, limit=60).finish()

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Settings, AnalysisSettings, AuditSettings, ExportSettings])
def test_help_has_a_flag_with_form_and_default_for_every_setting(program, kind):
    ended = program(kind, "--help")
    assert ended.code == 0
    shown = ended.out
    flags = {part.partition(":")[0]: " ".join(part.split()) for part in shown.split("\n  --")}
    flags = {name.removeprefix("[no]"): text for name, text in flags.items()}
    for setting in kind.settings():
        text = flags[setting.name]
        assert setting.help in text.replace("- ", "-")
        assert setting.name == "tensorboard" or setting.kind.form in text.replace("- ", "-")
        assert not setting.default or f"(default: '{setting.default}')" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "given"),
    [
        ([], {}),
        (["--tensorboard", "--steps=7"], {"tensorboard": "true", "steps": "7"}),
        (["--notensorboard"], {"tensorboard": "false"}),
        (["--tensorboard=true", "--gamma", "0,auto"], {"tensorboard": "true", "gamma": "0,auto"}),
        (["--seeds=1", "--targets=text=a, b"], {"seeds": "1", "targets": "text=a, b"}),
        # A list that is given several times has all values.
        (["--seeds=1", "--seeds=2,3"], {"seeds": "1,2,3"}),
        (["--init=vocab", "--init", "random"], {"init": "vocab,random"}),
        (["--only=", "--only=a", "--only=b"], {"only": "a,b"}),
    ],
)
def test_only_flags_on_the_command_line_are_given(program, words, given):
    assert json.loads(program(Settings, *words).out) == given


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--steps=7", "--steps=8"], "--steps=8: is given a second time, after 7: give it once"),
        (["--steps=7", "--steps=7"], "--steps=7: is given a second time"),
        (["--tensorboard", "--notensorboard"], "--tensorboard=false: is given a second time"),
        (["--targets=a", "--targets=b"], "--targets=b: is given a second time"),
        (["--mesh=runs:2", "--mesh=data:2"], "--mesh=data:2: is given a second time"),
    ],
)
def test_other_flags_are_given_once(program, words, flag):
    ended = program(Settings, *words)
    assert ended.code == 2
    assert ended.err.startswith(f"error: {flag}")


def test_values_are_what_their_texts_mean(others):
    settings = Settings.parse(others)
    assert settings.model == ("a/gpt2", "b,c/llama")
    assert settings.gamma == (Gamma(0.0), Gamma(0.0001), Gamma(None), Gamma(3e20, "a/gpt2"))
    assert settings.targets == "text=w1, w2"
    assert settings.mesh == {"runs": 4, "data": 2, "model": 1}
    assert settings.shard == (1, 3)
    assert settings.tensorboard is True
    assert settings.place == {
        "coordinator_address": "10.0.0.1:1234",
        "num_processes": 4,
        "process_id": 3,
    }


def test_a_kept_job_differs_in_what_decides_results(others):
    then = Settings.parse(others).texts()
    now = {**then, "steps": "3000", "model": "gpt2", "select": "dev", "cache_dir": "/cache"}
    assert differing(then, now, "results") == ["--steps was 2000 and is 3000"]
    assert differing(then, now, "results by content") == [
        '--model was a/gpt2,"b,c/llama" and is gpt2'
    ]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"models": ["gpt2"], "gammas": [0.1], "steps": 20},
        {**Settings().texts(), "another": "1"},
        {**Settings().texts(), "steps": 20},
        {name: text for name, text in Settings().texts().items() if name != "keep"},
    ],
    ids=["empty", "old", "another", "number", "lacking"],
)
def test_flags_of_another_version_are_refused_in_one_line(flags, tmp_path):
    (tmp_path / "flags.json").write_text(json.dumps(flags))
    with pytest.raises(InputError, match=r"flags.json: was written by another version") as error:
        read_flags(JobLayout(tmp_path))
    assert "\n" not in str(error.value)


def test_kept_flags_come_back(others, tmp_path):
    texts = Settings.parse(others).texts()
    (tmp_path / "flags.json").write_text(json.dumps(texts))
    assert read_flags(JobLayout(tmp_path)) == texts


def test_the_command_of_a_run_has_its_model_and_task_and_what_decides_results(others):
    command = shlex.split(repeating_command(others, "gpt2", "mood"))
    assert command[:3] == ["python", "-m", "experiments.run"]
    given = dict(word.removeprefix("--").split("=", maxsplit=1) for word in command[3:])
    nothing = {setting.name for setting in Settings.settings() if setting.decides == "nothing"}
    assert given == {
        **{name: text for name, text in others.items() if name not in nothing},
        "model": "a/gpt2",
        "task": "mood",
        "gamma": "0,0.0001,auto,3e+20",
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": "1000000", "batch_size": "1000"}, "--steps=1000000: with --batch_size=1000"),
        ({"warmup": "160"}, "--warmup=160: give fewer than the --steps=160"),
        ({"shard": "0/2"}, "--out_dir: give one, the same for all parts of --shard"),
        ({"shard": "2/2", "out_dir": "x"}, "--shard=2/2: give a part from 0 to 1"),
        ({"coordinator": "a:1", "process_id": "0"}, "--coordinator=a:1: give all three of --coord"),
        ({"num_processes": "2"}, "--coordinator: give all three of --coordinator, --num_proc"),
        ({"coordinator": "a:1"}, "--out_dir: give one: several processes share one folder"),
        (
            {"coordinator": "a:1", "num_processes": "2", "process_id": "0"},
            "--out_dir: give one: several processes share one folder",
        ),
        (
            {"coordinator": "a:1", "num_processes": "2", "process_id": "2", "out_dir": "x"},
            "--process_id=2: give a number from 0 on that is below --num_processes=2",
        ),
        ({"model": "a,b", "gamma": "a:0.1"}, "--gamma: there is none for --model=b"),
        ({"gamma": "a:0.1"}, "--gamma=a:0.1: name this model in --model"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(given, said):
    with pytest.raises(InputError) as error:
        Settings.parse(given)
    assert error.value.as_flag().startswith(said)
