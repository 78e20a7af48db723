"""Models in GGUF files: small ones that the tests write, in many quantizations, and SmolLM2."""

import itertools
import json

import gguf
import numpy as np
import pytest
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from tests.helpers.gguf_files import read_into_memory
from tests.helpers.published import assert_same_logits
from tests.helpers.toy_models import random_weights
from wayward_jax import models
from wayward_jax.errors import InputError

LLAMA = {
    "vocab_size": 410,
    "max_position_embeddings": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# One layer shows what all layers do alike.
LAYER = {**LLAMA, "num_hidden_layers": 1}
QUANTIZATIONS = [
    gguf.GGMLQuantizationType[name]
    for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
]
F32 = gguf.GGMLQuantizationType.F32


def permute(weights, heads):
    """Reorders the rows of Q or K as llama.cpp's convert_hf_to_gguf.py does."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def describe(writer, config):
    """Writes the metadata of a model as llama.cpp's converter does."""
    if config.model_type == "gpt2":
        writer.add_block_count(config.n_layer)
        writer.add_context_length(config.n_positions)
        writer.add_embedding_length(config.n_embd)
        writer.add_feed_forward_length(4 * config.n_embd)
        writer.add_head_count(config.n_head)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if config.model_type in ("llama", "phi3"):
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    if config.model_type in ("gemma2", "gemma3_text", "phi3") and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def weights_of(model):
    """The weights of a model of transformers by name, in its own memory."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def write_gguf(path, config, weights, tokenizer, kinds=(F32,), extra=lambda writer: None):
    """Writes published weights as llama.cpp's converter does, and rounds `weights` alike.

    The matrices are quantized to `kinds` in turn. The arrays of `weights` are filled with the
    dequantized ones, so that the logits of a model of them are those expected of the file. The
    names of tensors come from llama.cpp's library.
    """
    architecture = config.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(path, architecture)
    describe(writer, config)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(0)
    extra(writer)

    (kind_of,) = (k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind_of, config.num_hidden_layers)
    kinds = itertools.cycle(kinds)
    for name, array in weights.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        kind = next(kinds) if array.ndim == 2 else F32
        stored = array
        if architecture == "llama" and "self_attn.q_proj" in name:
            stored = permute(array, config.num_attention_heads)
        elif architecture == "llama" and "self_attn.k_proj" in name:
            stored = permute(array, config.num_key_value_heads)
        elif architecture.startswith("gemma") and name.endswith("norm.weight"):
            stored = array + 1
        elif architecture == "gpt2" and ".h." in name and array.ndim == 2:
            stored = np.ascontiguousarray(array.T)
        stored = gguf.quantize(stored, kind)
        if kind != F32:
            array[...] = gguf.dequantize(gguf.quantize(array, kind), kind)
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(theirs, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.slow
def test_logits_of_every_quantization_are_those_of_the_dequantized_weights(
    publish, tokenizer, tmp_path
):
    """Each matrix has another quantization, since llama.cpp's files mix them as well."""
    _, theirs = publish(LlamaConfig(**LLAMA))
    file = write_gguf(
        tmp_path / "model.gguf", theirs.config, weights_of(theirs), tokenizer, kinds=QUANTIZATIONS
    )
    assert {tensor.tensor_type for tensor in gguf.GGUFReader(file).tensors} == set(QUANTIZATIONS)
    assert_same_logits(models.load(str(file), cache_dir=tmp_path), theirs)


GEMMA = {**LLAMA, "head_dim": 32, "sliding_window": 5}
OTHERS = {
    "llama": LlamaConfig(**LAYER, tie_word_embeddings=True),
    "llama with biases": LlamaConfig(**{**LAYER, "num_key_value_heads": 4}, attention_bias=True),
    "llama with wide heads": LlamaConfig(
        **{**LAYER, "num_key_value_heads": 1, "rms_norm_eps": 0.1}, head_dim=32, mlp_bias=True
    ),
    "llama with another theta": LlamaConfig(
        **LAYER, rope_parameters={"rope_type": "default", "rope_theta": 500.0}
    ),
    "qwen2": Qwen2Config(**LAYER),
    "qwen3": Qwen3Config(**LAYER, head_dim=32),
    "gemma2": Gemma2Config(**GEMMA, query_pre_attn_scalar=32, attn_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(**{**GEMMA, "num_hidden_layers": 6}, query_pre_attn_scalar=32),
    "phi3": Phi3Config(**LAYER, pad_token_id=0),
    "phi3 with a window": Phi3Config(**LAYER, pad_token_id=0, sliding_window=6),
    "olmo2": Olmo2Config(**LAYER, pad_token_id=0),
    "gpt2": GPT2Config(vocab_size=410, n_positions=64, n_embd=64, n_layer=1, n_head=4),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", OTHERS)
def test_logits_of_every_architecture_are_those_of_transformers(
    variant, publish, tokenizer, tmp_path
):
    _, theirs = publish(OTHERS[variant])
    file = write_gguf(tmp_path / "model.gguf", theirs.config, weights_of(theirs), tokenizer)
    assert_same_logits(models.load(str(file), cache_dir=tmp_path), theirs)


@pytest.mark.slow
def test_a_file_with_an_output_table_of_its_own_is_read_as_llama_cpp_does(
    publish, tokenizer, tmp_path
):
    """Qwen's files hold the tied table twice, quantized in two ways: each is used as it is."""
    _, theirs = publish(Qwen2Config(**LLAMA))
    q4, q8 = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0
    theirs.lm_head.weight.data.copy_(theirs.model.embed_tokens.weight.data)
    file = write_gguf(
        tmp_path / "model.gguf",
        theirs.config,
        weights_of(theirs),
        tokenizer,
        kinds=(q4, *[F32] * 14, q8),
    )
    assert not np.array_equal(
        *(x.weight.detach() for x in (theirs.lm_head, theirs.model.embed_tokens))
    )
    assert_same_logits(models.load(str(file), cache_dir=tmp_path), theirs)


def test_metadata_that_change_nothing_are_read_over(publish, tokenizer, tmp_path):
    _, theirs = publish(LlamaConfig(**LLAMA))

    def extra(writer):
        writer.add_tensor_data_layout("Meta AI original pth")
        writer.add_expert_count(0)
        writer.add_float32("llama.rope.scale_linear", 1.0)

    file = write_gguf(
        tmp_path / "model.gguf", theirs.config, weights_of(theirs), tokenizer, extra=extra
    )
    assert_same_logits(models.load(str(file), cache_dir=tmp_path), theirs)


def test_a_file_of_unrounded_weights_has_the_digest_of_the_folder(write_model, tokenizer, tmp_path):
    config = LlamaConfig(**LLAMA)
    digest = models.load(str(write_model(config)), cache_dir=tmp_path).digest
    weights = random_weights(config)
    file = write_gguf(tmp_path / "model.gguf", config, weights, tokenizer)
    assert models.load(str(file), cache_dir=tmp_path).digest == digest
    file = write_gguf(tmp_path / "rounded.gguf", config, weights, tokenizer, kinds=QUANTIZATIONS)
    assert models.load(str(file), cache_dir=tmp_path).digest != digest


def test_linear_rope_scaling_is_read(publish, tokenizer, tmp_path):
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
    _, theirs = publish(LlamaConfig(**LLAMA, rope_parameters=rope))

    def scaling(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(3.0)

    file = write_gguf(
        tmp_path / "model.gguf", theirs.config, weights_of(theirs), tokenizer, extra=scaling
    )
    assert_same_logits(models.load(str(file), cache_dir=tmp_path), theirs)


def test_llama3_rope_scaling_is_recovered_from_its_divisors(publish, tokenizer, tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    _, theirs = publish(LlamaConfig(**LLAMA, rope_parameters=rope))
    plain = 500000.0 ** -(np.arange(0, 16, 2) / 16)
    divisors = (plain / theirs.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    assert divisors.min() == pytest.approx(1)
    assert divisors.max() == pytest.approx(32)

    def scaling(writer):
        writer.add_tensor("rope_freqs.weight", divisors)

    file = write_gguf(
        tmp_path / "model.gguf", theirs.config, weights_of(theirs), tokenizer, extra=scaling
    )
    loaded = models.load(str(file), cache_dir=tmp_path)
    assert_same_logits(loaded, theirs)
    assert loaded.module.config.rope.factor == pytest.approx(32)

    divisors[-3] *= 1.1  # no longer Llama 3's scaling
    file = write_gguf(
        tmp_path / "other.gguf", theirs.config, weights_of(theirs), tokenizer, extra=scaling
    )
    with pytest.raises(InputError, match=r"rope_freqs\.weight"):
        models.load(str(file), cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (lambda w: w.add_string("llama.rope.scaling.type", "ntk"), "ntk"),
        (lambda w: w.add_expert_count(8), r"llama\.expert_count"),
        (lambda w: w.add_logit_scale(2.0), r"llama\.logit_scale"),
        (lambda w: w.add_value_length(8), r"llama\.attention\.value_length"),
        (lambda w: w.add_uint16("split.count", 2), "part"),
        (lambda w: w.add_tensor("blk.0.ffn_gate_inp.weight", np.ones((2, 64), "f4")), "no place"),
        (lambda w: w.add_tensor("blk.9.attn_k.weight", np.ones((2, 64), "f4")), "no place"),
    ],
    ids=["scaling", "expert_count", "unknown", "value_length", "part", "experts", "layers"],
)
def test_models_with_unsupported_mathematics_are_refused(extra, message, tokenizer, tmp_path):
    config = LlamaConfig(**LLAMA)
    file = write_gguf(
        tmp_path / "model.gguf", config, random_weights(config), tokenizer, extra=extra
    )
    with pytest.raises(InputError, match=message) as refusal:
        models.load(str(file), cache_dir=tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.9, 0.999])
def test_files_cut_short_are_refused_and_named(share, tokenizer, tmp_path):
    config = LlamaConfig(**LLAMA)
    file = write_gguf(tmp_path / "model.gguf", config, random_weights(config), tokenizer)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"model\.gguf") as refusal:
        models.load(str(file), cache_dir=tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_logits_of_smollm2_are_those_of_its_published_configuration_in_transformers(
    asset, tmp_path
):
    """llama.cpp's library reads and dequantizes the weights; transformers would read them twice."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaForCausalLM

    file = asset("smollm2-135m")
    config = LlamaConfig(
        vocab_size=49152,
        max_position_embeddings=8192,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    with read_into_memory():
        tensors = gguf.GGUFReader(file).tensors
    stored = {each.name: gguf.dequantize(each.data, each.tensor_type) for each in tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    weights = {}
    with torch.device("meta"):
        wanted = set(LlamaForCausalLM(config).state_dict()) - {"lm_head.weight"}  # which is tied
    for name in wanted:
        array = stored.pop(names.get_name(name, try_suffixes=(".weight",)))
        for part, count in (("q_proj", 9), ("k_proj", 3)):
            if part in name:
                array = array[np.argsort(permute(np.arange(len(array)), count))]
        weights[name] = torch.from_numpy(array.copy())
    assert not stored
    theirs = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=weights).eval()
    ours = models.load(str(file), cache_dir=tmp_path)
    assert ours.tokenizer.eos_id == config.eos_token_id
    assert_same_logits(ours, theirs)
