"""Models that cannot be used are refused in one line that names the file and the fault."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from transformers import (
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen3Config,
)

from tests.helpers.toy_models import split_weights
from wayward_jax import models
from wayward_jax.errors import InputError

LLAMA = {
    "vocab_size": 400,
    "max_position_embeddings": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
GPT2 = {"vocab_size": 400, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}


def assert_refused(name, tmp_path, *parts, **load):
    """Asserts that loading fails with one line that has all `parts`, and converts nothing."""
    with pytest.raises(InputError) as refusal:
        models.load(str(name), cache_dir=tmp_path / "cache", **load)
    message = refusal.value.as_flag()
    assert "\n" not in message
    assert "\n" not in str(refusal.value)
    for part in parts:
        assert part in message
    assert not list(tmp_path.glob("cache/models/[!.]*"))


def edit_config(folder, **entries):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize("name", ["no-such-model", "no/such/folder", "no/such.gguf"])
def test_unknown_names_are_refused(name, tmp_path):
    assert_refused(name, tmp_path, f"--model={name}: ", "smollm2-135m, gpt2,", ".gguf")


def test_files_of_other_formats_are_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\x80")
    assert_refused(tmp_path / "model.bin", tmp_path, "model.bin", "give the folder")


@pytest.mark.parametrize("name", ["gpt2", "some-organisation/some-model"])
def test_hub_names_without_network_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert_refused(name, tmp_path, "--model=", name, "Hugging Face hub", "network")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "consolidated.00.pth", "model.ckpt"])
def test_pickled_weights_are_refused(file, write_model, tmp_path):
    folder = write_model(GPT2Config(**GPT2))
    (folder / "model.safetensors").rename(folder / file)
    assert_refused(folder, tmp_path, str(folder), file, "pickled", "save_pretrained")


def test_an_adapter_is_named_as_what_it_is(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    entries = {"peft_type": "PROMPT_TUNING", "base_model_name_or_path": "some/base"}
    (folder / "adapter_config.json").write_text(json.dumps(entries))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    assert_refused(folder, tmp_path, str(folder), "PEFT adapter", "some/base")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_folder_without_a_needed_file_is_refused(file, write_model, tmp_path):
    folder = write_model(GPT2Config(**GPT2))
    (folder / file).unlink()
    assert_refused(folder, tmp_path, str(folder), file)


@pytest.mark.parametrize("config", [GPT2Config(**GPT2), LlamaConfig(**LLAMA)])
def test_a_folder_without_a_tokenizer_is_refused(config, write_model, tmp_path):
    folder = write_model(config)
    (folder / "tokenizer.json").unlink()
    assert_refused(folder, tmp_path, str(folder), "tokenizer.json")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_files_cut_short_are_refused(file, share, write_model, tmp_path):
    folder = write_model(GPT2Config(**GPT2))
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: int(len(content) * share)])
    assert_refused(folder, tmp_path, str(folder))


def test_a_missing_part_of_the_weights_is_refused(write_model, tmp_path):
    folder = write_model(GPT2Config(**GPT2))
    shard = split_weights(folder)[1]
    shard.unlink()
    assert_refused(folder, tmp_path, "model.safetensors.index.json", shard.name)


def test_a_part_of_the_weights_outside_of_the_folder_is_refused(write_model, tmp_path):
    folder = write_model(GPT2Config(**GPT2))
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"weight_map": {"wte.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(folder, tmp_path, "../elsewhere.safetensors")


@pytest.mark.parametrize(
    ("config", "entries", "named"),
    [
        (GPT2Config(**GPT2), {"model_type": "bert"}, "'bert'"),
        (GPT2Config(**GPT2), {"activation_function": "tanh"}, "activation_function"),
        (GPT2Config(**GPT2), {"scale_attn_weights": False}, "scale_attn_weights"),
        (GPT2Config(**GPT2), {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx"),
        (GPT2Config(**GPT2), {"add_cross_attention": True}, "add_cross_attention"),
        (LlamaConfig(**LLAMA), {"hidden_act": "tanh"}, "hidden_act"),
        (LlamaConfig(**LLAMA), {"rope_parameters": {"rope_type": "ntk"}}, "'ntk'"),
        (LlamaConfig(**LLAMA), {"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        (LlamaConfig(**LLAMA), {"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        (LlamaConfig(**LLAMA), {"hidden_size": 0}, "hidden_size"),
        (Phi3Config(**LLAMA, pad_token_id=0), {"rope_scaling": {"rope_type": "longrope"}}, "short"),
        (Qwen3Config(**LLAMA, head_dim=4), {"head_dim": "4"}, "head_dim"),
        (Gemma2Config(**LLAMA, head_dim=4), {"layer_types": ["full_attention"] * 3}, "3 entries"),
        (Gemma2Config(**LLAMA, head_dim=4), {"layer_types": ["chunked"]}, "chunked"),
        (Gemma2Config(**LLAMA, head_dim=4), {"use_bidirectional_attention": True}, "bidirectional"),
        (LlamaConfig(**LLAMA), {"rope_parameters": {"rope_type": "linear"}}, "factor"),
        (LlamaConfig(**LLAMA), {"rope_parameters": {"partial_rotary_factor": 0.5}}, "0.5"),
        (MistralConfig(**LLAMA), {"sliding_window": 0}, "sliding_window is 0"),
        (LlamaConfig(**LLAMA), {"num_attention_heads": 3}, "o_proj.weight has the shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_mathematics_is_refused(config, entries, named, write_model, tmp_path):
    """The weights, which are those of a Llama where it is no GPT-2, are not looked at before."""
    folder = write_model(config if isinstance(config, GPT2Config) else LlamaConfig(**LLAMA))
    edit_config(folder, **{**config.to_dict(), **entries})
    assert_refused(folder, tmp_path, str(folder), named)


EDITS = {
    "missing": (lambda t: t.pop("transformer.h.0.ln_1.bias"), "h.0.ln_1.bias"),
    "unknown": (lambda t: t.update(score=np.ones(2)), "score"),
    "shape": (lambda t: t.update({"transformer.wpe.weight": np.ones((9, 8), "f4")}), "(9, 8)"),
    "integers": (lambda t: t.update({"transformer.ln_f.bias": np.ones(8, "i1")}), "int8"),
    "nan": (lambda t: t["transformer.wte.weight"].__setitem__((3, 1), np.nan), "wte.weight"),
    "infinite": (lambda t: t["transformer.ln_f.bias"].__setitem__(1, -np.inf), "ln_f.bias"),
    "head": (lambda t: t.update({"lm_head.weight": np.ones((400, 8), "f4")}), "tie_word"),
}


@pytest.mark.parametrize(("edit", "named"), EDITS.values(), ids=EDITS)
def test_tensors_that_do_not_fit_are_refused(edit, named, write_model, tmp_path):
    folder = write_model(GPT2Config(**GPT2))
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    edit(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    assert_refused(folder, tmp_path, str(folder), named)


def test_weights_too_large_for_the_dtype_are_refused(write_model, tmp_path):
    folder = write_model(GPT2Config(**GPT2))
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["transformer.ln_f.weight"][0] = 1e5
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    assert_refused(folder, tmp_path, "ln_f.weight", "float16", dtype=jnp.float16)


def test_an_embedding_table_smaller_than_the_tokenizer_is_refused(write_model, tokenizer, tmp_path):
    tokens = len(tokenizer)
    folder = write_model(GPT2Config(**{**GPT2, "vocab_size": tokens - 1}))
    assert_refused(folder, tmp_path, str(folder), f"{tokens} tokens", f"only {tokens - 1}")


def test_an_added_token_without_a_row_is_text_like_any_other(write_model, tokenizer, tmp_path):
    """transformers makes the id of the added token, for which the published table has no row."""
    folder = write_model(GPT2Config(**{**GPT2, "vocab_size": len(tokenizer)}))
    before = models.load(str(folder), cache_dir=tmp_path / "before").tokenizer
    file = json.loads((folder / "tokenizer.json").read_text())
    padding = {**file["added_tokens"][0], "content": "<pad>", "id": len(tokenizer)}
    file["added_tokens"].append(padding)
    (folder / "tokenizer.json").write_text(json.dumps(file))
    loaded = models.load(str(folder), cache_dir=tmp_path / "cache")
    for text in ("a <pad> b", "<pad>", "<|endoftext|>"):
        assert loaded.tokenizer.encode(text) == before.encode(text)
    assert loaded.tokenizer.vocab_size == len(tokenizer) == len(loaded.valid_tokens())


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "params/wpe.embedding.npy"])
def test_a_broken_converted_model_is_refused(file, write_model, tmp_path):
    folder = write_model(GPT2Config(**GPT2))
    models.load(str(folder), cache_dir=tmp_path)
    (converted,) = (tmp_path / "models").glob("published*")
    content = (converted / file).read_bytes()
    (converted / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"published.*delete it"):
        models.load(str(folder), cache_dir=tmp_path)


def test_a_cache_that_cannot_be_written_is_refused(write_model, tmp_path):
    folder = write_model(GPT2Config(**GPT2))
    (tmp_path / "cache").touch()
    assert_refused(folder, tmp_path, "cache/models/published", "cannot be written", "--cache_dir")


CODE = "open(__file__ + '.ran', 'w')\nclass Mine: pass\n"


def test_code_in_the_folder_of_a_model_is_never_run(write_model, tmp_path):
    folder = write_model(GPT2Config(**GPT2))
    (folder / "code.py").write_text(CODE)
    edit_config(folder, auto_map={"AutoConfig": "code.Mine", "AutoTokenizer": ["code.Mine"] * 2})
    own = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine"] * 2}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", **own}))
    models.load(str(folder), cache_dir=tmp_path / "other")
    edit_config(folder, model_type="mine")
    assert_refused(folder, tmp_path, str(folder), "code of its own, which is never run")
    assert not list(tmp_path.rglob("*.ran"))


def test_bos_is_what_the_tokenizer_says_or_what_is_asked_for(write_model, tmp_path):
    """The published tokenizer begins no text with BOS, as GPT-2's, and the folder names one."""
    folder = write_model(GPT2Config(**GPT2, bos_token_id=7, eos_token_id=0))
    bos = {
        each: models.load(str(folder), cache_dir=tmp_path / "cache", bos=each).bos_ids
        for each in ("auto", "yes", "no")
    }
    assert bos == {"auto": (), "yes": (7,), "no": ()}
    edit_config(folder, bos_token_id=None)
    with pytest.raises(InputError, match=r"^bos='yes': .* use bos=no, or name one as bos_token_id"):
        models.load(str(folder), cache_dir=tmp_path / "cache", bos="yes")
    with pytest.raises(InputError, match=r"^bos=.maybe.: choose one of auto"):
        models.load(str(folder), cache_dir=tmp_path / "cache", bos="maybe")
