"""The program that writes prompts for others."""

import numpy as np
import pytest

import wayward_jax as wj
from experiments import export
from tests.helpers import toy_job, toy_models
from wayward_jax import checkpoints
from wayward_jax.errors import InputError

PROMPT = np.random.default_rng(0).normal(size=(4, toy_models.WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("export")
    toy_models.make("gpt2", made)
    checkpoints.save_prompts(made / "checkpoint", {"run": PROMPT, "other": -PROMPT})
    return made


def run(folder, to, **changed):
    flags = {"model": folder / "gpt2", "cache_dir": folder, "prompt": folder / "checkpoint:run"}
    texts = toy_job.texts({**flags, "to": to, **changed})
    export.main({name: text for name, text in texts.items() if text is not None})


@pytest.mark.parametrize("format", ["peft", "safetensors", "npy"])
def test_a_checkpoint_is_written_for_others_and_comes_back(folder, tmp_path, format, capsys):
    to = tmp_path / f"prompt.{format}"
    run(folder, to, format=format)
    assert capsys.readouterr().out == f"4 vectors of gpt2: {to}\n"
    model = wj.load_model(str(folder / "gpt2"), cache_dir=folder)
    np.testing.assert_array_equal(wj.load_prompt(to, model), PROMPT)
    assert to.is_dir() == (format == "peft")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompt": None}, "prompt: give one"),
        ({"to": None}, "to: give one"),
        ({"prompt": "nowhere"}, "prompt='nowhere': there is no such file"),
        ({"format": "pickle"}, "format='pickle': give one of peft, safetensors, npy"),
    ],
    ids=str,
)
def test_bad_flags_of_an_export_get_one_line(folder, tmp_path, changed, said):
    with pytest.raises(InputError, match=said):
        run(folder, **{"to": tmp_path / "out", **changed})
    assert not (tmp_path / "out").exists()
