"""Comparison of logits with transformers on the same weights, for every supported variant."""

import dataclasses
import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from transformers import GPT2Config, LlamaConfig, MistralConfig

from tests.helpers.published import assert_same_logits
from wayward_jax import models

GPT2 = {"vocab_size": 410, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4}
LLAMA = {
    "vocab_size": 410,
    "max_position_embeddings": 64,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"n_inner": 100},
        {"activation_function": "gelu"},
        {"activation_function": "gelu_pytorch_tanh"},
        {"activation_function": "relu"},
        {"activation_function": "silu"},
        {"layer_norm_epsilon": 0.1},
        {"tie_word_embeddings": False},
    ],
    ids=str,
)
def test_logits_of_gpt2_are_those_of_transformers(variant, publish, tmp_path):
    folder, theirs = publish(GPT2Config(**GPT2, **variant))
    assert_same_logits(models.load(str(folder), cache_dir=tmp_path), theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4},
        {"head_dim": 20},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"rms_norm_eps": 0.1},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}},
        {"rope_parameters": LLAMA3_ROPE},
    ],
    ids=str,
)
def test_logits_of_llama_are_those_of_transformers(variant, publish, tmp_path):
    folder, theirs = publish(LlamaConfig(**{**LLAMA, **variant}))
    assert_same_logits(models.load(str(folder), cache_dir=tmp_path), theirs)


def test_mistral_without_a_window_is_computed_as_a_llama(publish, tmp_path):
    folder, theirs = publish(MistralConfig(**LLAMA, sliding_window=None))
    assert_same_logits(models.load(str(folder), cache_dir=tmp_path), theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(**{**GPT2, "n_embd": 1280, "n_head": 20, "n_inner": 1000}),
        LlamaConfig(
            **{
                **LLAMA,
                "hidden_size": 2048,
                "intermediate_size": 1000,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
            }
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_logits_at_the_width_of_real_models_are_those_of_transformers(config, publish, tmp_path):
    folder, theirs = publish(config)
    assert_same_logits(models.load(str(folder), cache_dir=tmp_path), theirs)


@pytest.mark.parametrize(
    "config", [GPT2Config(**GPT2), LlamaConfig(**LLAMA)], ids=["gpt2", "llama"]
)
def test_weights_in_several_files_are_read(config, publish, tmp_path):
    folder, theirs = publish(config, max_shard_size="50kB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert_same_logits(models.load(str(folder), cache_dir=tmp_path), theirs)


def test_rope_entries_of_transformers_4_are_read(publish, tmp_path):
    folder, theirs = publish(LlamaConfig(**LLAMA, rope_parameters=LLAMA3_ROPE))
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (folder / "config.json").write_text(json.dumps(config))
    assert_same_logits(models.load(str(folder), cache_dir=tmp_path), theirs)


def test_gpt2_files_without_prefix_and_with_causal_masks_are_read(publish, tmp_path):
    """The tensors of the hub's gpt2 lack the prefix `transformer.` and include causal masks."""
    folder, theirs = publish(GPT2Config(**GPT2))
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), bool))
    tensors["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    tensors["lm_head.weight"] = tensors["wte.weight"]
    safetensors.numpy.save_file(tensors, file)
    assert_same_logits(models.load(str(folder), cache_dir=tmp_path), theirs)


def test_bfloat16_weights_are_the_rounded_published_ones(publish, tmp_path):
    folder, _ = publish(LlamaConfig(**LLAMA))
    for _ in range(2):  # converted, then from the cache
        model = models.load(str(folder), cache_dir=tmp_path, dtype=jnp.bfloat16)
        kernel = model.params["params"]["layers_1"]["up_proj"]["kernel"]
        assert kernel.dtype == ml_dtypes.bfloat16
        published = safetensors.numpy.load_file(folder / "model.safetensors")
        expected = published["model.layers.1.mlp.up_proj.weight"].T.astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(kernel, expected)


def test_bfloat16_files_are_read(publish, tmp_path):
    folder, theirs = publish(LlamaConfig(**LLAMA))
    theirs.bfloat16().save_pretrained(folder)
    assert_same_logits(models.load(str(folder), cache_dir=tmp_path), theirs.float())


def test_a_model_is_converted_again_only_after_a_file_changed(publish, tmp_path):
    folder, theirs = publish(GPT2Config(**GPT2))
    cache = tmp_path / "cache"
    models.load(str(folder), cache_dir=cache)
    (converted,) = (cache / "models").glob("published*")
    made = (converted / "config.json").stat().st_mtime_ns
    models.load(str(folder), cache_dir=cache)
    assert (converted / "config.json").stat().st_mtime_ns == made

    with pytest.importorskip("torch").no_grad():
        theirs.transformer.wpe.weight.mul_(2)
    theirs.save_pretrained(folder)
    assert_same_logits(models.load(str(folder), cache_dir=cache), theirs)


def test_the_embedding_table_may_have_more_rows_than_the_tokenizer_has_tokens(
    publish, tokenizer, tmp_path
):
    folder, _ = publish(GPT2Config(**GPT2))
    model = models.load(str(folder), cache_dir=tmp_path)
    assert model.tokenizer.vocab_size == len(tokenizer) < model.module.config.vocab_size


def test_equal_modules_are_equal_as_static_arguments_of_jit(publish, tmp_path):
    folder, _ = publish(LlamaConfig(**LLAMA, rope_parameters=LLAMA3_ROPE))
    one = models.load(str(folder), cache_dir=tmp_path).module
    two = models.load(str(folder), cache_dir=tmp_path).module
    assert one == two
    assert hash(one) == hash(two)
    assert hash(dataclasses.astuple(one.config)) is not None
