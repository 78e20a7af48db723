"""Readers of files from elsewhere read any content, or say in one line why they do not.

Each test takes a few seconds. `--hypothesis-profile=long` makes 1,000 times as many examples.
"""

import contextlib
import gzip
import json
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wayward_jax import targets
from wayward_jax.errors import InputError
from wayward_jax.models import conversion, families
from wayward_jax.models.formats import gguf as gguf_format
from wayward_jax.models.formats.gguf_architectures import HARMLESS, LLAMA_ENTRIES, UNDERSTOOD
from wayward_jax.models.rope import SCALINGS
from wayward_jax.targets import files
from wayward_jax.tasks import folders, readers

pytestmark = pytest.mark.slow

DIGITS, NESTED = b"9" * 5000, b"[" * 100_000
LABELS = ("bad", "good")


@pytest.fixture(scope="module")
def folder():
    """A folder whose files every example overwrites."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def reads_or_refuses(read, *arguments, **options):
    """Returns what is read, or None if it is refused in one line."""
    try:
        return read(*arguments, **options)
    except InputError as error:
        refusal = str(error)
    assert "\n" not in refusal
    return None


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


# Pieces that mean something in one of the formats, so that examples get past the first check.
PIECES = st.sampled_from(
    [
        *("\n", "\r\n", "\r", "\t", ",", '"', '""', "\\n", "{", "}", "[", "]", ":", " ", "\0"),
        *("0", "1", "2", "-1", "1e999", "NaN", "9" * 5000, "null", "true", "\ufeff", "\ud800"),
        *('"text"', '"label"', '"name"', '"kind"', '"definition"', '"\\ud800"', "sentence\tlabel"),
        *('{"text": "w", "label": 1}\n', '{"name": "a", "text": "b"}\n', "good\t1\n", "1,good\n"),
        *("bad", "good", "é", "\u2028", "[" * 2000, '{"a":' * 2000),
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=5), max_size=30).map(
    lambda pieces: "".join(pieces).encode("utf-8", "surrogatepass")
)
CONTENTS = st.binary(max_size=200) | TEXTS

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.sampled_from([0, 1, -1, 8, 10**9, 10**30])
    | st.floats()
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    content=CONTENTS,
    name=st.sampled_from(["a.tsv", "a.csv", "a.jsonl", "a.json"]),
    news=st.booleans(),
)
@example(content=b'{"text": "w", "label": %s}' % DIGITS, name="a.jsonl", news=False)
@example(content=b'{"text": "w", "label": %s' % NESTED, name="a.jsonl", news=False)
@example(content=b"%s,title,text" % DIGITS, name="a.csv", news=True)
def test_any_file_of_examples_is_read_or_refused(folder, content, name, news):
    path = written(folder, name, content)
    found = reads_or_refuses(readers.read_examples, path, LABELS, ag_news_csv=news)
    if found is not None:
        examples, unlabeled = found
        assert len(examples.texts) == len(examples.labels)
        assert len(examples) + unlabeled > 0
        assert set(examples.labels.tolist()) <= {0, 1}
        assert all(text.strip() and text.encode() for text in examples.texts)


@given(
    rows=st.lists(
        st.tuples(st.text(max_size=20).filter(str.strip), st.integers(0, 1)), min_size=1, max_size=5
    )
)
def test_json_lines_bring_any_text_back(folder, rows):
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    path = written(folder, "a.jsonl", "\n".join(lines).encode())
    found, _ = readers.read_examples(path, LABELS)
    assert list(zip(found.texts, found.labels.tolist(), strict=True)) == rows


@given(content=TEXTS.map(gzip.compress), cut=st.integers(0, 200), flipped=st.integers(0, 2000))
def test_any_compressed_file_of_examples_is_read_or_refused(folder, content, cut, flipped):
    content = bytearray(content[: len(content) - cut])
    if content:
        content[flipped // 8 % len(content)] ^= 1 << flipped % 8
    path = written(folder, "a.jsonl.gz", bytes(content))
    reads_or_refuses(readers.read_examples, path, LABELS)


@example(content=NESTED, name="t.json")
@example(content=DIGITS, name="t.jsonl")
@given(content=CONTENTS, name=st.sampled_from(["t.json", "t.jsonl", "t.txt"]))
def test_any_file_of_targets_is_read_or_refused(folder, content, name):
    found = reads_or_refuses(files.read_texts, written(folder, name, content))
    if found is not None:
        assert found
        assert all(isinstance(text, str) and text.strip() for text in found.values())


@given(value=VALUES, name=st.sampled_from(["t.json", "t.jsonl"]))
def test_any_json_for_targets_is_read_or_refused(folder, value, name):
    reads_or_refuses(files.read_texts, written(folder, name, json.dumps(value).encode()))


class Letters:
    """A tokenizer whose tokens are letters."""

    def encode(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


SPECS = st.lists(
    st.sampled_from(["code", "true", "ni", "pile_n=7", ":", "/", ",", "text=", "1", "~", ".", "x"])
    | st.text(max_size=5),
    max_size=8,
).map("".join)


@example(spec="~\0", length=None)
@given(spec=SPECS, length=st.none() | st.integers(-1, 50))
def test_any_list_of_target_sets_is_loaded_or_refused(spec, length):
    texts = reads_or_refuses(targets.load_texts, spec, task="reviews")
    if texts is not None:
        found = reads_or_refuses(targets.tokenize, texts, Letters(), length)
        if found is not None:
            assert all(target.ids for target in found)


TASK = {"templates": ["It was %s ."], "label_words": ["bad", "good"], "labels": ["0", "1"]}
EDITS = st.dictionaries(st.sampled_from([*TASK, "max_length"]) | st.text(max_size=3), VALUES)


@example(content=NESTED)
@example(content=DIGITS)
@given(content=CONTENTS | EDITS.map(lambda edits: json.dumps({**TASK, **edits}).encode()))
def test_any_description_of_a_task_is_read_or_refused(folder, content):
    written(folder, folders.TASK_FILE, content)
    found = reads_or_refuses(folders.read_task, folder)
    if found is not None:
        task, _ = found
        assert len(task.labels) == len(task.label_words) > 1


LLAMA = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 16,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 8,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
}
BYTE_LEVEL = {
    **LLAMA,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["<end>", "a", "b", "ab", "Ġ"],
    "tokenizer.ggml.token_type": [3, 1, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 0,
}
SENTENCEPIECE = {
    **LLAMA,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<end>", "a", "b", "ab", "▁"],
    "tokenizer.ggml.token_type": [2, 3, 1, 1, 1, 1],
    "tokenizer.ggml.scores": [0.0, 0.0, -1.0, -2.0, -3.0, -4.0],
    "tokenizer.ggml.eos_token_id": 1,
}


def gguf_file(path, metadata):
    """Writes metadata and a few tensors to a GGUF file."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.kv_data[0].clear()
    for name, value in metadata.items():
        kind = gguf.GGUFValueType.get_type(value)
        writer.add_key_value(name, value, kind)
    writer.add_tensor("token_embd.weight", np.ones((6, 8), np.float32))
    writer.add_tensor("rope_freqs.weight", np.ones(2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def opens(path):
    """Reads a GGUF file, and makes a module of its configuration, or sees one of them refused."""
    found = reads_or_refuses(gguf_format.read, path)
    if found is not None:
        found.tokenizer.encode("a b ab")
        module_or_error(found.config)


def module_or_error(config):
    with contextlib.suppress(*conversion.MISFIT_ERRORS):  # refused by conversion
        families.FAMILIES[config["model_type"]].module_of(config)


@pytest.mark.parametrize("metadata", [BYTE_LEVEL, SENTENCEPIECE])
def test_the_gguf_files_that_are_corrupted_below_are_good(folder, metadata):
    found = gguf_format.read(gguf_file(folder / "good.gguf", metadata))
    assert found.tokenizer.encode("ab")
    assert found.config["hidden_size"] == 8


BYTE_EDITS = st.lists(
    st.tuples(
        st.integers(0, 2**16),
        st.sampled_from([b"", b"\xff", b"\0" * 8, b"\xff" * 8, b"\0" * 7 + b"\x7f"])
        | st.binary(max_size=9),
    ),
    max_size=4,
)


@given(
    metadata=st.sampled_from([BYTE_LEVEL, SENTENCEPIECE]),
    edits=BYTE_EDITS,
    cut=st.integers(0, 99),
)
def test_any_bytes_in_a_gguf_file_are_read_or_refused(folder, metadata, edits, cut):
    path = folder / f"{metadata['tokenizer.ggml.model']}.gguf"
    if not path.exists():
        gguf_file(path, metadata)
    content = bytearray(path.read_bytes())
    for at, others in edits:
        at %= len(content)
        content[at : at + len(others)] = others
    if cut < 20:
        del content[len(content) * cut // 20 :]
    opens(written(folder, "corrupted.gguf", bytes(content)))


SCALARS = (
    st.booleans()
    | st.integers(-(2**31), 2**31 - 1)
    | st.floats(width=32)
    | st.text(st.characters(codec="utf-8"), max_size=8)
)
ENTRIES = SCALARS | st.one_of(
    *(
        st.lists(each, min_size=1, max_size=6)
        for each in (
            st.booleans(),
            st.integers(-9, 9),
            st.floats(width=32),
            st.sampled_from(["a", "b", "ab", "a b", " ", "<end>", ""]),
        )
    )
)
NAMES = sorted(
    {
        *(BYTE_LEVEL.keys() | SENTENCEPIECE.keys()),
        *(f"llama.{name}" for name in (*LLAMA_ENTRIES, *UNDERSTOOD, *HARMLESS)),
        "split.count",
    }
)


@example(metadata=SENTENCEPIECE, without=set(), others={"tokenizer.ggml.token_type": ""})
@given(
    metadata=st.sampled_from([BYTE_LEVEL, SENTENCEPIECE]),
    without=st.sets(st.sampled_from(NAMES), max_size=2),
    others=st.dictionaries(st.sampled_from(NAMES), ENTRIES, max_size=3),
)
def test_any_metadata_of_a_gguf_file_is_read_or_refused(folder, metadata, without, others):
    changed = {name: v for name, v in {**metadata, **others}.items() if name not in without}
    opens(gguf_file(folder / "other.gguf", changed))


ROTARY = {
    "vocab_size": 9,
    "max_position_embeddings": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
OPT = {"vocab_size": 9, "max_position_embeddings": 8, "hidden_size": 8, "num_attention_heads": 2}
HF_CONFIGS = {
    **dict.fromkeys(families.FAMILIES, ROTARY),
    "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 9},
    "opt": {**OPT, "num_hidden_layers": 1, "ffn_dim": 8},
}
HF_NAMES = (
    *("n_embd", "n_layer", "n_head", "n_positions", "vocab_size", "n_inner", "layer_norm_epsilon"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "mlp_bias"),
    *("activation_function", "hidden_act", "tie_word_embeddings", "sliding_window"),
    *("use_sliding_window", "max_window_layers", "layer_types", "sliding_window_pattern"),
    *("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
    *("no_rope_layers", "no_rope_layer_interval", "partial_rotary_factor", "rotary_pct"),
    *("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier"),
    *("max_position_embeddings", "original_max_position_embeddings", "word_embed_proj_dim"),
)
ROPE_NAMES = (
    *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "short_factor"),
)
ROPE = st.fixed_dictionaries(
    {"rope_type": st.sampled_from([*SCALINGS]) | VALUES},
    optional=dict.fromkeys((*ROPE_NAMES, "rope_theta"), VALUES),
)


@given(
    kind=st.sampled_from([*HF_CONFIGS]),
    others=st.dictionaries(st.sampled_from(HF_NAMES), VALUES | ROPE, max_size=4),
)
def test_any_configuration_makes_a_module_or_is_refused(kind, others):
    module_or_error({"model_type": kind, **HF_CONFIGS[kind], **others})
