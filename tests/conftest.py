"""Fixtures that several tests share: assets, a finished job, and models that transformers makes."""

import contextlib
import gc
import os
import signal
import sys
from pathlib import Path

import hypothesis
import jax
import pytest

import experiments.run
from experiments import flags
from tests.helpers import fork_server, toy_job, toy_models
from wayward_jax import assets
from wayward_jax.jobs.settings import default_cache_dir
from wayward_jax.jobs.signals import STOPPING

# The programs of tests are compiled for longer than they run. What the user asks of XLA comes last.
FAST_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # Later versions end at a flag that they do not know.
    FAST_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{FAST_TO_COMPILE} {os.environ.get('XLA_FLAGS', '')}"

# Tests of meshes use these devices. A test without a mesh uses one of them.
jax.config.update("jax_num_cpu_devices", 8)

# Importing the tests makes no garbage, and looking for it takes seconds.
gc.disable()

# Deadlines would fail examples that compile a program, and all on a busy machine.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.register_profile("long", deadline=None, max_examples=100_000)
hypothesis.settings.load_profile("untimed")

CORPUS = """A film is a work of art that tells 2 or 3 stories; "don't" and it's are words, too.
\tThe café's naïve menu: 12,345 dishes, 日本語 and emoji 🙂.   Spaces, (brackets) & other signs!
"""


def pytest_configure(config):
    """Keeps compiled programs for all workers, and for the next time, in the cache of pytest.

    The programs that tests start do so, too.
    """
    keep = {
        "jax_compilation_cache_dir": str(config.cache.mkdir("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in keep.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


def pytest_collection_finish():
    """Has the garbage collector pass over what was imported: that takes a seventh of all time."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def programs_are_dropped():
    """Drops compiled programs after each file. All files' together need more than memory has."""
    yield
    jax.clear_caches()


@contextlib.contextmanager
def having_one_shape():
    """Has all packs of a population have one shape, so that each population takes one program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wayward_jax.training.planning.MAX_SHAPES", 1)
        yield


@pytest.fixture(scope="module")
def one_shape():
    """See `having_one_shape`."""
    with having_one_shape():
        yield


@pytest.fixture(scope="session")
def asset(tmp_path_factory):
    """Finds the file of an asset in the folder $WAYWARD_ASSETS_DIR or in the user's cache."""

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
def fork():
    """Starts the server that programs are forked from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        return fork_server.serve()


@pytest.fixture
def no_signal_ignored():
    """Has programs of a test heed all signals that ask to stop.

    Programs inherit ignored signals, and `nohup`, or a shell in the background, may have started
    the tests.
    """
    ignored = [each for each in STOPPING if signal.getsignal(each) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def data_dir():
    """Returns the folder with the real data sets."""
    if "WAYWARD_DATA_DIR" not in os.environ:
        pytest.skip("WAYWARD_DATA_DIR is not set: no real data sets to read")
    return Path(os.environ["WAYWARD_DATA_DIR"])


@pytest.fixture(scope="session")
def tokenizer():
    """Makes a byte-level tokenizer of 400 tokens, in transformers' form."""
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


@pytest.fixture(scope="module")
def family():
    """The family of the fixture `model`. Modules that test several families override it."""
    return "gpt2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which the fixture `model` is published."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def model(family, folder):
    """A random model of two layers, of `toy_models`."""
    return toy_models.make(family, folder)


@pytest.fixture(scope="module")
def theirs(model, family, folder):
    """The same model in transformers; tests that use it are skipped without PyTorch."""
    return toy_models.load_published(family, folder)


@pytest.fixture(scope="session")
def job(tmp_path_factory):
    """Runs a job of two targets, two gammas and two seeds; its folder `runs` has the results."""
    folder = toy_job.make(tmp_path_factory.mktemp("analysis"))
    (folder / "words.txt").write_text("w7 w8 w9\nw3 w3 great\n")
    changed = {"targets": folder / "words.txt", "gamma": "0,0.5", "seeds": "1,2", "mesh": "runs:1"}
    texts = toy_job.texts(toy_job.flags(folder, **changed, out_dir=folder / "runs"))
    with having_one_shape():
        experiments.run.main(texts)
    return folder


@pytest.fixture(scope="session")
def analysis(job):
    """Analyzes that job, and returns the folder of the analysis."""
    out_dir = job / "analysis"
    toy_job.analyze_here(runs=job / "runs", out_dir=out_dir, cache_dir=job / "cache")
    return out_dir


@pytest.fixture(scope="session")
def write_model(tmp_path_factory, tokenizer):
    """Returns a function that writes a random GPT-2 or Llama with a tokenizer, without PyTorch.

    Each is in a folder `published` of its own.
    """

    def write(config):
        folder = tmp_path_factory.mktemp("published") / "published"
        toy_models.publish(config, folder)
        tokenizer.save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def publish(tmp_path_factory, tokenizer):
    """Returns a function that makes a random model in transformers and saves it with a tokenizer.

    Each is in a folder `published` of its own.

    Tests that use it are skipped without PyTorch.
    """
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    def make(config, **save):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for parameter in model.parameters():  # also biases and norms, which start at 0 or 1
            torch.nn.init.normal_(parameter, std=min(parameter.shape[-1] ** -0.5, 0.3))
        folder = tmp_path_factory.mktemp("published") / "published"
        model.save_pretrained(folder, **save)
        tokenizer.save_pretrained(folder)
        return folder, model

    return make


@pytest.fixture
def given():
    """Returns a function that makes settings of some flags, with defaults for all others."""

    def settings(**values):
        return flags.job_settings(toy_job.texts(values))

    return settings
