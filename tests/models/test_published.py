"""Comparison of logits with transformers on the same weights, for every supported variant."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from transformers import (
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from tests.helpers.cases import slow_after
from tests.helpers.published import (
    assert_same_gradients,
    assert_same_logits,
    compute,
    compute_published,
)
from wayward_jax import models
from wayward_jax.models.families import FAMILIES

GPT2 = {"vocab_size": 410, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4}
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
# One layer shows what all layers do alike.
GPT2_LAYER = {**GPT2, "n_layer": 1}
LLAMA_LAYER = {**LLAMA, "num_hidden_layers": 1}
NEOX = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
OPT = {
    "vocab_size": 410,
    "max_position_embeddings": 64,
    "hidden_size": 48,
    "ffn_dim": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
OPT_LAYER = {**OPT, "num_hidden_layers": 1}
GEMMA = {**LLAMA, "head_dim": 16, "sliding_window": 5}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    "long_factor": [9.0] * 6,
}

# Every switch of every family, several at a time where they do not meet.
VARIANTS = {
    "gpt2": (GPT2Config, GPT2),
    "llama": (LlamaConfig, LLAMA),
    "gpt2 with other sizes": (
        GPT2Config,
        {**GPT2_LAYER, "n_inner": 100, "layer_norm_epsilon": 0.1, "tie_word_embeddings": False},
    ),
    "gpt2 with gelu": (GPT2Config, {**GPT2_LAYER, "activation_function": "gelu"}),
    "gpt2 with tanh gelu": (GPT2Config, {**GPT2_LAYER, "activation_function": "gelu_pytorch_tanh"}),
    "gpt2 with relu": (GPT2Config, {**GPT2_LAYER, "activation_function": "relu"}),
    "gpt2 with silu": (GPT2Config, {**GPT2_LAYER, "activation_function": "silu"}),
    "llama, tied, one key head": (
        LlamaConfig,
        {**LLAMA_LAYER, "tie_word_embeddings": True, "num_key_value_heads": 1, "rms_norm_eps": 0.1},
    ),
    "llama with biases and wide heads": (
        LlamaConfig,
        {
            **LLAMA_LAYER,
            "num_key_value_heads": 4,
            "head_dim": 20,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "llama with gelu": (LlamaConfig, {**LLAMA_LAYER, "hidden_act": "gelu"}),
    "llama with another theta": (
        LlamaConfig,
        {**LLAMA_LAYER, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "llama with linear rope": (LlamaConfig, {**LLAMA_LAYER, "rope_parameters": LINEAR_ROPE}),
    "llama with llama3 rope": (LlamaConfig, {**LLAMA_LAYER, "rope_parameters": LLAMA3_ROPE}),
    "llama with dynamic rope": (
        LlamaConfig,
        {**LLAMA_LAYER, "rope_parameters": {**LINEAR_ROPE, "rope_type": "dynamic"}},
    ),
    "mistral without a window": (MistralConfig, {**LLAMA_LAYER, "sliding_window": None}),
    "mistral with a window": (MistralConfig, {**LLAMA, "sliding_window": 7}),
    "qwen2": (Qwen2Config, LLAMA),
    "qwen2 with windows in some layers": (
        Qwen2Config,
        {**LLAMA, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen2 with yarn rope": (Qwen2Config, {**LLAMA_LAYER, "rope_parameters": YARN_ROPE}),
    "qwen3": (Qwen3Config, {**LLAMA, "head_dim": 16}),
    "qwen3, tied, with biases": (
        Qwen3Config,
        {**LLAMA_LAYER, "head_dim": 16, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "phi3": (Phi3Config, LLAMA),
    "phi3 with a window": (Phi3Config, {**LLAMA_LAYER, "sliding_window": 6}),
    "phi3 with longrope": (
        Phi3Config,
        {
            **LLAMA_LAYER,
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 64,
            "rope_parameters": LONG_ROPE,
        },
    ),
    "phi3, partly rotary": (
        Phi3Config,
        {
            **LLAMA_LAYER,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "granite": (
        GraniteConfig,
        {
            **LLAMA,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.2,
        },
    ),
    "smollm3": (SmolLM3Config, {**LLAMA, "num_hidden_layers": 4}),
    "smollm3, untied, with yarn": (
        SmolLM3Config,
        {
            **LLAMA,
            "no_rope_layers": [0, 1],
            "tie_word_embeddings": False,
            "rope_parameters": YARN_ROPE,
        },
    ),
    "olmo2": (Olmo2Config, LLAMA),
    "gemma2": (
        Gemma2Config,
        {
            **GEMMA,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (Gemma3TextConfig, {**GEMMA, "sliding_window_pattern": 2}),
    "gemma3 with linear rope": (
        Gemma3TextConfig,
        {
            **GEMMA,
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": LINEAR_ROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "gpt_neox": (GPTNeoXConfig, NEOX),
    "gpt_neox without parallel residual": (
        GPTNeoXConfig,
        {
            **NEOX,
            "num_hidden_layers": 1,
            "use_parallel_residual": False,
            "attention_bias": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 1.0,
            },
        },
    ),
    "opt": (OPTConfig, OPT),
    "opt with narrow embeddings and norms after": (
        OPTConfig,
        {**OPT_LAYER, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    ),
    "opt without biases": (
        OPTConfig,
        {**OPT_LAYER, "enable_bias": False, "layer_norm_elementwise_affine": False},
    ),
}


@pytest.mark.parametrize("variant", slow_after(2, list(VARIANTS)))
def test_logits_and_gradients_are_those_of_transformers(variant, publish, tmp_path):
    kind, entries = VARIANTS[variant]
    folder, theirs = publish(kind(**entries))
    assert_same_gradients(models.load(str(folder), cache_dir=tmp_path), theirs)


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


@pytest.mark.parametrize("family", slow_after(1, list(FAMILIES)))
def test_bfloat16_is_within_one_and_a_half_percent_of_float32(family, publish, tmp_path):
    """The unit roundoff of bfloat16 is 0.4 %, and a layer rounds half a dozen times.

    The ReLU of OPT has a gradient that jumps where rounding changes a sign: 3 %.
    """
    kind, entries = next(each for each in VARIANTS.values() if each[0].model_type == family)
    depth = "n_layer" if family == "gpt2" else "num_hidden_layers"
    folder, theirs = publish(kind(**{**entries, depth: 1}))
    rounded = compute(models.load(str(folder), cache_dir=tmp_path, dtype=jnp.bfloat16), theirs)
    bound = 0.03 if family == "opt" else 0.015
    for a, b in zip(rounded, compute_published(theirs), strict=True):
        assert 1e-3 * np.linalg.norm(b) < np.linalg.norm(a - b) < bound * np.linalg.norm(b)


@pytest.mark.parametrize(
    "config", [GPT2Config(**GPT2), LlamaConfig(**LLAMA)], ids=["gpt2", "llama"]
)
def test_weights_in_several_files_are_read(config, publish, tmp_path):
    folder, theirs = publish(config, max_shard_size="50kB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert_same_logits(models.load(str(folder), cache_dir=tmp_path), theirs)


def test_a_mistral_without_an_entry_for_its_window_has_one_of_4096(publish, tmp_path):
    """Configurations of the first Mistral left the entry out; newer ones write null."""
    folder, _ = publish(MistralConfig(**LLAMA))
    config = json.loads((folder / "config.json").read_text())
    config.pop("sliding_window")
    (folder / "config.json").write_text(json.dumps(config))
    module = models.load(str(folder), cache_dir=tmp_path).module
    assert module.config.sliding_window == 4096
    assert set(module.config.layer_kinds) == {"local"}


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


@pytest.mark.slow
def test_of_a_gemma_3_that_reads_images_the_language_model_is_taken(publish, tmp_path):
    """The hub's text_config has only the entries that differ from the defaults.

    Tensors have the older of two prefixes, then the newer.
    """
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}  # the defaults
    text = {**GEMMA, **heads, "num_hidden_layers": 6}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    folder, theirs = publish(config)
    entries = json.loads((folder / "config.json").read_text())
    sparse = {name: text[name] for name in GEMMA if name not in heads}
    entries["text_config"] = {**sparse, "num_hidden_layers": 6, "model_type": "gemma3_text"}
    (folder / "config.json").write_text(json.dumps(entries))
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    assert any(name.startswith("language_model.model.") for name in tensors)
    older = models.load(str(folder), cache_dir=tmp_path / "older")
    assert_same_logits(older, theirs)

    prefix = "model.language_model."
    moved = {name.replace("language_model.model.", prefix): tensors[name] for name in tensors}
    safetensors.numpy.save_file(moved, file)
    newer = models.load(str(folder), cache_dir=tmp_path / "newer")
    assert newer.module == older.module
    jax.tree.map(np.testing.assert_array_equal, newer.params, older.params)


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
