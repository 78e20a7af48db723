"""The name and the digest under which results refer to a model."""

import functools
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from transformers import GPT2Config, LlamaConfig

from tests.helpers.cases import slow_after
from tests.helpers.toy_models import split_weights
from wayward_jax import models

CONFIGS = {
    "gpt2": GPT2Config(vocab_size=410, n_positions=16, n_embd=16, n_layer=2, n_head=2),
    "llama": LlamaConfig(
        vocab_size=410,
        max_position_embeddings=16,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    ),
}


@pytest.fixture(params=slow_after(1, list(CONFIGS)))
def published(request, write_model):
    """The folder of a small published model."""
    return write_model(CONFIGS[request.param])


def digest_of(folder, tmp_path, **load):
    return models.load(str(folder), cache_dir=tmp_path / "cache", **load).digest


def edit_tensors(folder, edit):
    file = folder / "model.safetensors"
    tensors = edit(safetensors.numpy.load_file(file))
    safetensors.numpy.save_file(tensors, file)


def cast(tensors, dtype):
    return {name: array.astype(dtype) for name, array in tensors.items()}


def test_a_digest_is_sixteen_hexadecimal_digits_and_kept_in_the_cache(published, tmp_path):
    folder = published
    digest = digest_of(folder, tmp_path)
    assert len(digest) == 16
    int(digest, 16)
    assert digest_of(folder, tmp_path) == digest
    (converted,) = (tmp_path / "cache" / "models").glob("published*")
    assert json.loads((converted / "config.json").read_text())["digest"] == digest


def test_a_digest_does_not_depend_on_the_folder(published, tmp_path):
    folder = published
    digest = digest_of(folder, tmp_path)
    assert digest_of(shutil.copytree(folder, tmp_path / "elsewhere"), tmp_path) == digest


def test_a_digest_does_not_depend_on_how_weights_are_split_into_files(published, tmp_path):
    folder = published
    split = shutil.copytree(folder, tmp_path / "split")
    assert len(split_weights(split)) == 3
    assert digest_of(split, tmp_path) == digest_of(folder, tmp_path)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_digest_does_not_depend_on_the_dtype_of_the_run(dtype, published, tmp_path):
    folder = published
    assert digest_of(folder, tmp_path, dtype=dtype) == digest_of(folder, tmp_path)


def test_a_digest_does_not_depend_on_the_prefix_of_the_family(published, tmp_path):
    folder = published
    digest = digest_of(folder, tmp_path)

    def without_prefix(tensors):
        return {
            name.removeprefix("transformer.").removeprefix("model."): array
            for name, array in tensors.items()
        }

    edit_tensors(folder, without_prefix)
    assert digest_of(folder, tmp_path) == digest


def test_the_same_values_in_a_wider_dtype_have_the_same_digest(published, tmp_path):
    folder = published
    edit_tensors(folder, functools.partial(cast, dtype=jnp.bfloat16))
    digest = digest_of(folder, tmp_path)
    edit_tensors(folder, functools.partial(cast, dtype=np.float32))
    assert digest_of(folder, tmp_path) == digest


def test_rounded_weights_have_another_digest(published, tmp_path):
    folder = published
    digest = digest_of(folder, tmp_path)
    edit_tensors(folder, functools.partial(cast, dtype=jnp.bfloat16))
    assert digest_of(folder, tmp_path) != digest


def test_a_single_changed_weight_changes_the_digest(published, tmp_path):
    folder = published
    names = sorted(safetensors.numpy.load_file(folder / "model.safetensors"))
    digests = {digest_of(folder, tmp_path)}
    for changed in (names[0], names[-1]):

        def nudge(tensors, changed=changed):
            last = tensors[changed].reshape(-1)[-1:]
            last[:] = np.nextafter(last, np.float32(np.inf))
            return tensors

        edit_tensors(folder, nudge)
        digests.add(digest_of(folder, tmp_path))
    assert len(digests) == 3


def test_exchanged_tensors_change_the_digest(write_model, tmp_path):
    """The digest covers the names of tensors, not only their values."""
    folder = write_model(CONFIGS["llama"])
    digest = digest_of(folder, tmp_path)

    def exchange(tensors):
        gate, up = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up"))
        return {**tensors, gate: tensors[up], up: tensors[gate]}

    edit_tensors(folder, exchange)
    assert digest_of(folder, tmp_path) != digest


def test_a_model_from_a_path_is_named_by_its_last_component(write_model, tmp_path, monkeypatch):
    folder = write_model(CONFIGS["gpt2"])
    monkeypatch.chdir(folder)
    for name in (str(folder), f"{folder}/", "../published", "."):
        assert models.load(name, cache_dir=tmp_path / "cache").name == "published"


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("gpt2", "gpt2"),
        ("smollm2-135m", "smollm2-135m"),
        ("some-organisation/some-model", "some-organisation/some-model"),
        ("files/some.model-Q4.gguf", "some.model-Q4"),
        ("files/v1.5", "v1.5"),
    ],
)
def test_built_in_and_hub_names_stay_and_paths_are_shortened(name, short, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files" / "v1.5").mkdir(parents=True)
    (tmp_path / "files" / "some.model-Q4.gguf").touch()
    assert models.sources.short_name(name) == short
