"""What several tests need: assets, settings, and small models made and saved by transformers."""

import os
from pathlib import Path

import hypothesis
import jax
import pytest

from experiments import flags
from tests.helpers import toy_job
from wayward_jax import assets
from wayward_jax.jobs.settings import default_cache_dir

# For tests of meshes; without a mesh one device is used, as everywhere.
jax.config.update("jax_num_cpu_devices", 8)

# What is compiled on the way, and a busy machine, take time.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.register_profile("long", deadline=None, max_examples=100_000)
hypothesis.settings.load_profile("untimed")

CORPUS = """A film is a work of art that tells 2 or 3 stories; "don't" and it's are words, too.
\tThe café's naïve menu: 12,345 dishes, 日本語 and emoji 🙂.   Spaces, (brackets) & other signs!
"""


@pytest.fixture(scope="session")
def asset(tmp_path_factory):
    """The file of an asset: from the folder $WAYWARD_ASSETS_DIR, or already in the user's cache."""

    def find(name):
        if folder := os.environ.get("WAYWARD_ASSETS_DIR"):
            cache = tmp_path_factory.getbasetemp() / "cache"
            return assets.fetch(name, cache_dir=cache, assets_dir=Path(folder))
        cache = default_cache_dir()
        if (cache / "assets" / assets.ASSETS[name].file_name).exists():
            return assets.fetch(name, cache_dir=cache)
        pytest.skip(f"WAYWARD_ASSETS_DIR is not set, and {cache} has no {name}")

    return find


@pytest.fixture(scope="session")
def data_dir():
    """The folder with the real data sets."""
    if "WAYWARD_DATA_DIR" not in os.environ:
        pytest.skip("WAYWARD_DATA_DIR is not set: no real data sets to read")
    return Path(os.environ["WAYWARD_DATA_DIR"])


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level tokenizer of 400 tokens as transformers has it."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([CORPUS] * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


@pytest.fixture(scope="session")
def job(tmp_path_factory):
    """A finished job of two targets, two gammas and two seeds in its folder `runs`."""
    folder = toy_job.make(tmp_path_factory.mktemp("analysis"))
    (folder / "words.txt").write_text("w7 w8 w9\nw3 w3 great\n")
    flags = {"targets": folder / "words.txt", "gamma": "0,0.5", "seeds": "1,2"}
    process = toy_job.run(*toy_job.arguments(folder, **flags, out_dir=folder / "runs"))
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture(scope="session")
def analysis(job):
    """What `experiments.analyze` makes of that job."""
    out_dir = job / "analysis"
    process = toy_job.analyze(
        f"--runs={job / 'runs'}", f"--out_dir={out_dir}", f"--cache_dir={job / 'cache'}"
    )
    assert process.returncode == 0, process.stderr
    return out_dir


@pytest.fixture
def publish(tmp_path, tokenizer):
    """Makes a random model of a transformers configuration and saves it with a tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    def make(config, **save):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for parameter in model.parameters():  # biases and norms too, which are all 0 or 1
            torch.nn.init.normal_(parameter, std=min(parameter.shape[-1] ** -0.5, 0.3))
        folder = tmp_path / "published"
        model.save_pretrained(folder, **save)
        tokenizer.save_pretrained(folder)
        return folder, model

    return make


@pytest.fixture
def given():
    """Gives the settings of some flags, all others as they are by default."""

    def settings(**values):
        return flags.job_settings(toy_job.texts(values))

    return settings
