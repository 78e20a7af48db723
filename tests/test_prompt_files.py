"""Prompts in files, against PEFT itself: what it saves, and what it loads."""

import dataclasses
import json
import shlex
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    Qwen2Config,
)

import wayward_jax as wj
from tests.helpers import toy_models
from tests.helpers.cases import slow_after
from tests.helpers.published import assert_close
from wayward_jax import checkpoints, models, prompt_files

LLAMA = {
    "vocab_size": 410,
    "max_position_embeddings": 64,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
}
PUBLISHED = {
    "gpt2": (
        GPT2Config,
        {"vocab_size": 410, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4},
    ),
    "llama": (LlamaConfig, LLAMA),
    "qwen2": (Qwen2Config, LLAMA),
    "gemma2": (Gemma2Config, {**LLAMA, "head_dim": 16}),
    "gemma3": (Gemma3TextConfig, {**LLAMA, "head_dim": 16}),
    "granite": (GraniteConfig, {**LLAMA, "embedding_multiplier": 3.0}),
}
WIDTH = toy_models.WIDTH
PROMPT = np.random.default_rng(3).normal(size=(5, WIDTH)).astype(np.float32)


def logits_behind(model, prompt, ids):
    """Our logits of a text behind BOS and a prompt."""
    x = np.concatenate([model.with_bos(prompt), np.asarray(model.embedding_table())[ids]])
    causal = jnp.tril(jnp.ones((1, len(x), len(x)), bool))

    @jax.jit
    def compute(params):
        hidden = model.module.apply(params, jnp.asarray(x), jnp.arange(len(x)), causal)
        return model.module.apply(params, hidden, method="logits")

    return np.asarray(compute(model.params))


@pytest.mark.parametrize(
    ("name", "bos"), slow_after(2, [("gpt2", ()), *((name, (7,)) for name in PUBLISHED)])
)
def test_peft_computes_our_logits_and_no_bit_is_lost(publish, tmp_path, name, bos):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    kind, sizes = PUBLISHED[name]
    folder, theirs = publish(kind(**sizes))
    model = dataclasses.replace(models.load(str(folder), cache_dir=tmp_path), bos_ids=bos)
    prompt = np.random.default_rng(0).normal(size=(5, 48)).astype(np.float32)
    wj.save_prompt(tmp_path / "adapter", prompt, model)
    ids = np.random.default_rng(1).integers(0, 410, 12)

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = loaded(torch.from_numpy(ids)[None]).logits[0].numpy()
    assert_close(logits_behind(model, prompt, ids), expected)

    back = wj.load_prompt(tmp_path / "adapter", model)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, prompt)


def peft_model(config, folder):
    """The toy model with an adapter, as PEFT makes it, after a few steps of training by it."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(toy_models.load_published("gpt2", folder), config)
    optimizer = torch.optim.Adam(adapted.parameters(), 0.1)
    ids = torch.arange(8)[None]
    task = {"task_ids": torch.zeros(1, dtype=torch.long)} if hasattr(config, "num_tasks") else {}
    for _ in range(3):
        loss = adapted(ids, labels=ids, **task).loss
        loss.backward()
        optimizer.step()
    return adapted.eval(), task


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig", "multitask"])
def test_a_prompt_that_peft_trained_comes_with_the_logits_that_it_has_there(
    model, folder, tmp_path, kind
):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    settings = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    if kind == "multitask":
        config = peft.MultitaskPromptTuningConfig(**settings, num_tasks=1, num_ranks=2)
    else:
        config = getattr(peft, kind)(**settings)
    adapted, task = peft_model(config, folder)
    ids = np.arange(3, 12)
    with torch.no_grad():
        expected = adapted(torch.from_numpy(ids)[None], **task).logits[0].numpy()
    adapted.save_pretrained(tmp_path)
    prompt = wj.load_prompt(tmp_path, model)
    assert prompt.shape == (4, WIDTH)
    assert_close(logits_behind(model, prompt, ids), expected)
    assert prompt_files.read_prompt(tmp_path).base_model == str(folder / "gpt2")


def test_adapters_that_are_no_prompts_are_named(folder, tmp_path):
    peft = pytest.importorskip("peft")
    many = peft.MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, num_tasks=3, num_ranks=2
    )
    for number, (config, said) in enumerate(
        [
            (peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "PREFIX_TUNING"),
            (peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"]), "LORA"),
            (many, "has the prompts of 3 tasks"),
        ]
    ):
        place = tmp_path / str(number)
        base = toy_models.load_published("gpt2", folder)
        peft.get_peft_model(base, config).save_pretrained(place)
        with pytest.raises(wj.InputError, match=said) as error:
            prompt_files.read_prompt(place)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("format", prompt_files.FORMATS)
def test_a_saved_prompt_comes_back_to_the_bit_and_nothing_is_overwritten(model, tmp_path, format):
    path = tmp_path / "deep" / f"prompt.{format}"
    wj.save_prompt(path, PROMPT, model, format)
    np.testing.assert_array_equal(wj.load_prompt(path, model), PROMPT)
    with pytest.raises(wj.InputError, match="exists already"):
        wj.save_prompt(path, PROMPT, model, format)


def write_arrays(path, **arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        safetensors.numpy.save_file(arrays, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_an_array_is_chosen_by_being_the_only_one_or_by_name(model, tmp_path, suffix):
    bias = np.ones(3, np.float32)
    one = write_arrays(tmp_path / f"one{suffix}", bias=bias, soft=PROMPT)
    np.testing.assert_array_equal(wj.load_prompt(one, model), PROMPT)
    two = write_arrays(tmp_path / f"two{suffix}", soft=PROMPT, other=PROMPT[:2])
    np.testing.assert_array_equal(wj.load_prompt(f"{two}:other", model), PROMPT[:2])
    with pytest.raises(wj.InputError, match=r"has 2 arrays \[L, D\] \(other, soft\)"):
        wj.load_prompt(two, model)
    with pytest.raises(wj.InputError, match="has no array hard: choose from other, soft"):
        wj.load_prompt(f"{two}:hard", model)


def test_checkpoints_texts_and_short_floats_are_prompts(model, tmp_path):
    checkpoints.save_prompts(tmp_path / "checkpoint", {"run": PROMPT})
    np.testing.assert_array_equal(wj.load_prompt(tmp_path / "checkpoint", model), PROMPT)
    table = np.asarray(model.embedding_table())
    ids = model.tokenizer.encode("w3 w1 great")
    np.testing.assert_array_equal(wj.load_prompt("text=w3 w1 great", model), table[ids])
    half = PROMPT.astype(ml_dtypes.bfloat16)
    file = write_arrays(tmp_path / "half.safetensors", soft=half)
    np.testing.assert_array_equal(wj.load_prompt(file, model), half.astype(np.float32))


def test_of_the_prompts_of_a_checkpoint_the_id_of_a_run_chooses_one(model, tmp_path):
    path = tmp_path / "checkpoint"
    checkpoints.save_prompts(path, {f"run{i}": i * PROMPT[: i + 1] for i in range(3)})
    np.testing.assert_array_equal(wj.load_prompt(f"{path}:run2", model), 2 * PROMPT[:3])
    with pytest.raises(wj.InputError, match=r"3 arrays \[L, D\] \(run0, .*: choose one as .*:NAME"):
        wj.load_prompt(path, model)
    with pytest.raises(wj.InputError, match="has no array run3: choose from run0, run1, run2"):
        wj.load_prompt(f"{path}:run3", model)


@pytest.mark.slow
def test_the_line_that_a_pickle_is_refused_with_converts_it(model, tmp_path):
    torch = pytest.importorskip("torch")
    prompt = torch.from_numpy(PROMPT)
    for number, content in enumerate([{"soft": prompt}, prompt]):
        path = tmp_path / "prompt.pt"
        torch.save(content, path)
        with pytest.raises(wj.InputError, match="can run code: convert it by python -c") as error:
            wj.load_prompt(path, model)
        words = shlex.split(str(error.value).partition("convert it by ")[2])
        assert words[:2] == ["python", "-c"]
        if number == 0:
            subprocess.run([sys.executable, *words[1:]], check=True)
        else:  # the same line again, without the seconds that Python takes to import torch
            path.with_suffix(".safetensors").unlink()
            exec(*words[2:], {})
        found = wj.load_prompt(path.with_suffix(".safetensors"), model)
        np.testing.assert_array_equal(found, PROMPT)


def write_adapter(folder, arrays=None, **config):
    folder.mkdir(parents=True)
    content = {"peft_type": "PROMPT_TUNING", "base_model_name_or_path": "other/gpt2", **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    if arrays is not None:
        write_arrays(folder / "adapter_model.safetensors", **arrays)
    return folder


BAD = {
    "another width": (np.ones((3, 31)), "has vectors of width 31, and those of gpt2 have 32"),
    "NaN": (np.full((3, WIDTH), np.nan), "not finite"),
    "too large for float32": (np.full((3, WIDTH), 1e300), "not finite"),
    "empty": (np.ones((0, WIDTH)), r"shape \(0, 32\)"),
    "a vector": (np.ones(WIDTH), r"shape \(32,\)"),
    "whole numbers": (np.ones((3, WIDTH), int), "numbers of type int64"),
    "objects": (np.array([["a"]], object), "not a readable file of arrays"),
    "100,000 vectors": (np.ones((10**5, WIDTH)), "has 100000 vectors, and gpt2 reads 64 tokens"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_array_gets_one_line(model, tmp_path, name):
    array, said = BAD[name]
    np.save(tmp_path / "prompt.npy", array)
    with pytest.raises(wj.InputError, match=said) as error:
        wj.load_prompt(tmp_path / "prompt.npy", model)
    assert str(tmp_path / "prompt.npy") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".txt"])
@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04broken", b"\xff" * 100])
def test_a_broken_file_gets_one_line(model, tmp_path, suffix, content):
    path = tmp_path / f"prompt{suffix}"
    path.write_bytes(content)
    with pytest.raises(wj.InputError, match=r"not a readable file|of no known kind") as error:
        wj.load_prompt(path, model)
    assert "\n" not in str(error.value)


def test_a_bad_adapter_gets_one_line(model, tmp_path):
    soft = {"prompt_embeddings": PROMPT}
    seq2seq = write_adapter(tmp_path / "t5", soft, num_transformer_submodules=2)
    pickled = write_adapter(tmp_path / "old")
    (pickled / "adapter_model.bin").write_bytes(b"pickle")
    for path, said in [
        (seq2seq, "for an encoder and a decoder"),
        (pickled, "adapter_model.bin: is a pickle"),
        (write_adapter(tmp_path / "bare"), "adapter_model.safetensors: is missing"),
        (write_adapter(tmp_path / "odd", {"lora_A": PROMPT}), "has no array prompt_embeddings"),
        (write_adapter(tmp_path / "kind", soft, peft_type=None), "of the kind None"),
        (
            write_adapter(tmp_path / "large", {"prompt_embeddings": np.ones((3, 64))}),
            "give the model that it was tuned for, other/gpt2",
        ),
        (tmp_path / "nowhere", "there is no such file or folder"),
    ]:
        with pytest.raises(wj.InputError, match=said) as error:
            wj.load_prompt(path, model)
        assert "\n" not in str(error.value)
    (tmp_path / "kind" / "adapter_config.json").write_text("[")
    with pytest.raises(wj.InputError, match="is no configuration of an adapter"):
        wj.load_prompt(tmp_path / "kind", model)


def test_a_prompt_that_names_another_model_is_loaded_with_a_warning(model, tmp_path):
    other = write_adapter(
        tmp_path / "other", {"prompt_embeddings": PROMPT}, base_model_name_or_path="o/pythia"
    )
    with pytest.warns(UserWarning, match="was tuned for o/pythia and is used with gpt2"):
        np.testing.assert_array_equal(wj.load_prompt(other, model), PROMPT)
    same = write_adapter(tmp_path / "same", {"prompt_embeddings": PROMPT})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wj.load_prompt(same, model)


def test_bad_prompts_are_not_saved(model, tmp_path):
    for prompt, format, said in [
        (PROMPT[:, :5], "npy", r"\[L, 32\]"),
        (PROMPT * np.nan, "npy", "not finite"),
        (PROMPT, "pickle", "choose one of peft, safetensors, npy"),
    ]:
        with pytest.raises(wj.InputError, match=said):
            wj.save_prompt(tmp_path / "prompt", prompt, model, format)
    with pytest.raises(wj.InputError, match="cannot be written"):
        wj.save_prompt("/proc/prompt.npy", PROMPT, model, "npy")
    assert not list(tmp_path.iterdir())
