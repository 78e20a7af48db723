"""Comparison of token ids with transformers, on text that is hard to tokenize."""

import copy
import hashlib
import json
import time

import gguf
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, GPT2Config, Qwen2Tokenizer

from tests.helpers.gguf_files import read_into_memory
from wayward_jax import models
from wayward_jax.models.formats import gguf as gguf_format
from wayward_jax.models.formats.gguf_tokenizer import build_tokenizer
from wayward_jax.models.tokenizer import Tokenizer
from wayward_jax.tasks import TASKS, Task, encode
from wayward_jax.tasks.encoding import METHODS

AWKWARD = {
    "empty": "",
    "space": " ",
    "spaces": "   two  and   three ",
    "tabs and newlines": "\t\ta\n\n \r\n\tb \n",
    "control": "\x00\x01\x07\x1b[31m\x7f\u200b\ufeff",
    "emoji": "🙂👩‍👩‍👧🏽 🇫🇷",
    "cjk": "日本語のテキスト、中文。한국어",
    "right to left": "שלום العربية",
    "combining": "e\u0301 n\u0303 \u0f40\u0fb5",
    "contractions": "don't it's we'LL I'm",
    "special": "<|im_start|>user\n<|endoftext|> <s> </s> <|im_end|",
    "digits": "1 22 333 4444 12,345.678",
    "digits after spaces": "in  1984,   42",
    "other digits": "x² ½ ٣٤ Ⅻ",
    "one letter": "a" * 100_000,
    "one emoji": "🙂" * 10_000,
}
texts = pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD.keys())


@pytest.fixture(scope="module")
def smollm2(asset):
    """SmolLM2's tokenizer as we and as transformers read it from the same file."""
    pytest.importorskip("torch")  # by which transformers reads GGUF files
    file = asset("smollm2-135m")
    with read_into_memory():
        theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return gguf_format.read(file).tokenizer, theirs


@pytest.fixture(scope="module")
def published_cut(smollm2):
    """transformers' tokenizer, changed to cut text as SmolLM2's `tokenizer.json` says."""
    theirs = copy.deepcopy(smollm2[1])
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return theirs


@pytest.mark.slow
@texts
def test_ids_of_smollm2_are_those_of_its_published_tokenizer(smollm2, published_cut, text):
    ours, _ = smollm2
    assert ours.encode(text) == published_cut.encode(text, add_special_tokens=False)
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.slow
def test_smollm2_differs_from_transformers_only_before_digits(smollm2):
    """transformers uses GPT-2's rule alone; the published tokenizer separates digits first."""
    ours, theirs = smollm2
    different = {
        name
        for name, text in AWKWARD.items()
        if ours.encode(text) != theirs.encode(text, add_special_tokens=False)
    }
    assert different == {"digits after spaces", "other digits"}
    assert [ours.decode([i]) for i in ours.encode("in  1984")] == ["in", "  ", "1", "9", "8", "4"]


@pytest.mark.slow
def test_special_tokens_of_smollm2_are_known(smollm2):
    ours, theirs = smollm2
    assert ours.vocab_size == len(theirs) == 49152
    assert ours.eos_id == theirs.convert_tokens_to_ids("<|im_end|>")
    assert ours.special_ids == set(range(17))
    assert ours.decode(ours.encode("<|im_end|> .")) == "<|im_end|> ."


@pytest.mark.slow
def test_examples_of_the_paper_keep_their_tokens(smollm2):
    """A digest of the tokens of every task, method and template, as the first version had them."""
    ours, _ = smollm2
    examples = [
        encode(task, [text for text in AWKWARD.values() if text], ours, template=i, method=method)
        for task in TASKS.values()
        for method in METHODS
        for i in range(len(task.templates))
    ]
    digest = hashlib.sha256(json.dumps(examples).encode()).hexdigest()
    assert digest[:16] == "93c75ab20f6c2d6c"


@pytest.mark.slow
def test_long_words_are_encoded_quickly(smollm2):
    ours, _ = smollm2
    start = time.perf_counter()
    for letter in "a1 \n🙂":
        ours.encode(letter * 100_000)
    assert time.perf_counter() - start < 10


@texts
def test_ids_of_a_folder_are_those_of_transformers(text, write_model, tokenizer, tmp_path):
    config = GPT2Config(vocab_size=400, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    folder = write_model(config)
    for _ in range(2):  # converted, then from the cache
        ours = models.load(str(folder), cache_dir=tmp_path).tokenizer
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ours.encode(text) == ids
        assert ours.encode_batch([text, "a", ""]) == [ids, ours.encode("a"), []]
        assert ours.decode(ids) == text


def test_tokenizer_settings_that_change_text_are_ignored(write_model, tokenizer, tmp_path):
    """A published tokenizer may add tokens, pad and truncate; ours never does."""
    config = GPT2Config(vocab_size=400, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    folder = write_model(config)
    theirs = AutoTokenizer.from_pretrained(folder)
    theirs.backend_tokenizer.enable_truncation(3)
    theirs.backend_tokenizer.enable_padding(length=50)
    theirs.backend_tokenizer.save(str(folder / "tokenizer.json"))
    ours = models.load(str(folder), cache_dir=tmp_path).tokenizer
    text = "A story , and another ."
    assert ours.encode(text) == tokenizer.encode(text)


def sentencepiece_metadata():
    """Makes a small vocabulary of Llama 2's kind: bytes, letters, and merged tokens."""
    letters = "▁abcdehilnorstw.,é日"
    merged = ["▁t", "he", "▁the", "in", "▁s", "on", "▁▁", "er", "▁w", "▁wh", "or", "the"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens = [*pieces, *merged, *letters, "[PAD0]", "[PAD1]"]
    kind = gguf.TokenType
    kinds = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL, *[kind.BYTE] * 256]
    kinds += [kind.NORMAL] * (len(merged) + len(letters)) + [kind.UNUSED] * 2
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)],
        "tokenizer.ggml.token_type": [int(k) for k in kinds],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def write_metadata(path, metadata):
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for name, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif name != "general.architecture":
            writer.add_string(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def test_sentencepiece_ids_are_those_of_transformers(tmp_path):
    pytest.importorskip("torch")  # by which transformers reads GGUF files
    metadata = sentencepiece_metadata()
    write_metadata(tmp_path / "tokenizer.gguf", metadata)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tokenizer.gguf")
    ours = build_tokenizer(metadata)
    for name, text in AWKWARD.items():
        if not text.startswith(" ") and "<s>" not in text:  # see the next test
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), name
            assert ours.decode(ours.encode(text)) == text
    assert ours.vocab_size == len(metadata["tokenizer.ggml.tokens"]) - 2
    assert ours.special_ids == {0, 1, 2}


def test_sentencepiece_always_puts_a_space_first():
    """SentencePiece does so, too; transformers leaves the space out before another space."""
    metadata = sentencepiece_metadata()
    ours = build_tokenizer(metadata)
    tokens = [metadata["tokenizer.ggml.tokens"][i] for i in ours.encode("  the")]
    assert tokens == ["▁▁", "▁the"]
    without = build_tokenizer({**metadata, "tokenizer.ggml.add_space_prefix": False})
    tokens = [metadata["tokenizer.ggml.tokens"][i] for i in without.encode("  the")]
    assert tokens == ["▁", "▁the"]
    assert without.decode(without.encode("  the")) == "  the"


@pytest.mark.parametrize(
    ("entries", "first"),
    [
        ({}, (1,)),  # llama.cpp's default for SentencePiece
        ({"tokenizer.ggml.add_bos_token": True}, (1,)),
        ({"tokenizer.ggml.add_bos_token": False}, ()),
    ],
)
def test_texts_of_gguf_files_begin_with_bos_as_in_llama_cpp(entries, first):
    ours = build_tokenizer({**sentencepiece_metadata(), **entries})
    assert ours.first_ids == first
    assert ours.bos_id == 1
    without = sentencepiece_metadata()
    del without["tokenizer.ggml.bos_token_id"]
    assert build_tokenizer({**without, **entries}).first_ids == ()


@pytest.mark.parametrize(
    ("rule", "entries", "begins"),
    [
        ("gpt-2", {}, False),
        ("smollm", {}, False),
        ("llama-bpe", {}, True),
        ("gpt-2", {"tokenizer.ggml.add_bos_token": True}, True),
        ("llama-bpe", {"tokenizer.ggml.add_bos_token": False}, False),
    ],
)
def test_byte_level_texts_of_gguf_files_begin_with_bos_as_in_llama_cpp(
    tokenizer, rule, entries, begins
):
    metadata = byte_level_metadata(tokenizer, rule)
    ours = build_tokenizer({**metadata, "tokenizer.ggml.bos_token_id": 0, **entries})
    assert ours.first_ids == ((0,) if begins else ())


def byte_level_metadata(tokenizer, cut):
    """Describes a byte-level transformers tokenizer, whose token 0 is special, as GGUF does."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cut,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, *[1] * (len(tokens) - 1)],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.eos_token_id": 0,
    }


@pytest.mark.parametrize("cut", ["gpt-2", "llama-bpe"])
def test_byte_level_ids_are_those_of_transformers(cut, tokenizer, tmp_path):
    pytest.importorskip("torch")  # by which transformers reads GGUF files
    metadata = byte_level_metadata(tokenizer, cut)
    write_metadata(tmp_path / "tokenizer.gguf", metadata)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tokenizer.gguf")
    ours = build_tokenizer(metadata)
    for name, text in AWKWARD.items():
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), name
        assert ours.decode(ours.encode(text)) == text


def test_qwens_rule_is_that_of_its_tokenizer_in_transformers(tokenizer):
    """Every digit is a word, and characters are composed."""
    metadata = byte_level_metadata(tokenizer, "qwen2")
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    special = metadata["tokenizer.ggml.tokens"][0]
    theirs = Qwen2Tokenizer(vocab, merges, *[special] * 4)
    ours = build_tokenizer(metadata)
    for name, text in {**AWKWARD, "accents apart": "e\u0301 cafe\u0301 in 1984"}.items():
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), name


@pytest.mark.parametrize("cut", ["llama3", "llama-v3", "dbrx", "smaug-bpe"])
def test_other_names_of_llama3s_rule_cut_text_alike(cut, tokenizer):
    llama3, ours = (build_tokenizer(byte_level_metadata(tokenizer, c)) for c in ("llama-bpe", cut))
    for name, text in AWKWARD.items():
        assert ours.encode(text) == llama3.encode(text), name


def test_words_that_are_tokens_stay_whole_in_llama3(tokenizer):
    """Llama 3 looks for a word in the vocabulary before it applies merges; GPT-2 does not."""
    metadata = byte_level_metadata(tokenizer, "llama-bpe")
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "Ġqxz"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1]
    assert len(build_tokenizer(metadata).encode(" qxz")) == 1
    assert len(build_tokenizer({**metadata, "tokenizer.ggml.pre": "gpt-2"}).encode(" qxz")) == 4


@pytest.mark.parametrize("cut", [None, "default", "chatglm-bpe"])
def test_unknown_rules_to_cut_text_are_refused(cut, tokenizer):
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.pre"):
        build_tokenizer(byte_level_metadata(tokenizer, cut))


def test_user_defined_tokens_stay_whole_but_are_not_special(tokenizer):
    metadata = byte_level_metadata(tokenizer, "gpt-2")
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<think>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 4]
    ours = build_tokenizer(metadata)
    assert len(ours.encode("<think>")) == 1
    assert ours.special_ids == {0}


@pytest.mark.parametrize("make", [sentencepiece_metadata, None])
def test_a_file_without_an_end_of_text_says_how_to_name_one(make, tokenizer):
    metadata = make() if make else byte_level_metadata(tokenizer, "gpt-2")
    del metadata["tokenizer.ggml.eos_token_id"]
    with pytest.raises(ValueError, match=r"ends a text: name one with .* eos ID OLD\.gguf"):
        build_tokenizer(metadata)


def test_gguf_and_folder_give_a_template_the_tokens_of_the_joined_text():
    """With Prepend, as in GGUF files, and with Metaspace, as in newer folders of SentencePiece."""
    metadata = sentencepiece_metadata()
    ours = build_tokenizer(metadata)
    description = json.loads(ours.backend.to_str())
    description["normalizer"] = None
    cut = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    description["pre_tokenizer"] = cut
    folder = Tokenizer(Backend.from_str(json.dumps(description)), ours.eos_id)
    task = Task("own", ("a", "b"), ("the %s .",), ("end", "shore"))
    for text in ("the whole tower", "the", "in the inner town."):
        for method in METHODS:
            (encoded,) = encode(task, [text], ours, template=0, method=method)
            assert encode(task, [text], folder, template=0, method=method) == [encoded]
            joined = f"{text} the end ." if method == "direct" else f"the end . {text}"
            assert [*encoded.contexts[0], *encoded.continuations[0]] == [*ours.encode(joined), 2]


@pytest.mark.parametrize("name", ["llama", "smollm"])
def test_chats_are_those_of_transformers(name, tokenizer):
    """A message, and the start of the answer, by templates as they are published."""
    template = {
        "llama": "{{ bos_token }}{% for message in messages %}\n"
        "    {% if message['role'] == 'user' %}\n"
        "[INST] {{ message['content'] | trim }} [/INST]\n    {% endif %}\n{% endfor %}",
        "smollm": "{% for message in messages %}{% if loop.first and messages[0]['role'] != "
        "'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    }[name]
    theirs = copy.deepcopy(tokenizer)
    theirs.bos_token = theirs.eos_token
    eos = theirs.eos_token_id
    ours = Tokenizer(theirs.backend_tokenizer, eos, eos, template)
    messages = [{"role": "user", "content": " What does {prompt} mean? "}]
    assert ours.chat(messages[0]["content"]) == theirs.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )


def test_chat_templates_are_read_from_folders(write_model, tmp_path):
    folder = write_model(GPT2Config(vocab_size=410, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    file = folder / "tokenizer_config.json"
    entries = json.loads(file.read_text())

    def found(number):
        return models.load(str(folder), cache_dir=tmp_path / str(number)).tokenizer.chat_template

    assert found(0) == ""
    file.write_text(json.dumps({**entries, "chat_template": "one"}))
    assert found(1) == "one"
    several = [{"name": "tools", "template": "two"}, {"name": "default", "template": "three"}]
    file.write_text(json.dumps({**entries, "chat_template": several}))
    assert found(2) == "three"
    (folder / "chat_template.jinja").write_text("four")
    assert found(3) == "four"
