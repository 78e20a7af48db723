"""Tokenizers of folders: `tokenizer.json` is read as it is, and continuations join up."""

import functools
import itertools
import json

import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from wayward_jax.errors import InputError
from wayward_jax.models.formats import safetensors as folders
from wayward_jax.models.tokenizer import Tokenizer

CORPUS = [
    "It was great . It was terrible . The film's plot, in 1984, isn't thin; it's    dull!",
    "Don't ask: 12,345.678 viewers (all 4321 of them) said: « Déjà vu ». 日本語のテキスト",
    "It was all in all a good one , exactly . Was it terrible ? No, it was great .\n\tIt\twas.",
] * 3

AWKWARD = (
    *("", " ", "   two  and   three ", "\t\ta\n\n \r\n\tb \n", "\x00\x07\u200b\ufeff", "🙂👩🏽"),
    *("日本語のテキスト、中文。한국어", "שלום العربية", "e\u0301 n\u0303", "don't it's we'LL"),
    *("in  1984,   42", "<eos>a <eos> [UNK]", "x² ½ ٣٤ Ⅻ", "Ünïcödé ﬁ Ａ", "▁a ▁ ▁▁", "a_b-c/d.e"),
    "IT WAS",
)  # fmt: skip
texts = st.one_of(st.sampled_from(AWKWARD), st.text(max_size=40))

BYTES = pre_tokenizers.ByteLevel
PRE_TOKENIZERS = {
    "gpt-2": BYTES(add_prefix_space=False),
    "gpt-2 with a space first": BYTES(add_prefix_space=True),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTES(False)]),
    "llama 3": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\s+(?!\S)| ?\p{L}+"), "isolated"),
            BYTES(add_prefix_space=False, use_regex=False),
        ]
    ),
    "metaspace": pre_tokenizers.Metaspace(),
    "metaspace first": pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
    "metaspace never": pre_tokenizers.Metaspace(prepend_scheme="never"),
    "bert": pre_tokenizers.BertPreTokenizer(),
    "whitespace": pre_tokenizers.Whitespace(),
    "whitespace split": pre_tokenizers.WhitespaceSplit(),
    "punctuation": pre_tokenizers.Punctuation(),
    "scripts": pre_tokenizers.UnicodeScripts(),
    "delimiter": pre_tokenizers.CharDelimiterSplit("_"),
    "none": None,
}  # fmt: skip
UNCUT = ["none", "metaspace first"]  # whole texts go through the model
BYTE_LEVEL = ["gpt-2", "smollm", "llama 3"]
NORMALIZERS = {
    "none": None,
    "nfc": normalizers.NFC(),
    "nfkc lower": normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
    "accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "bert": normalizers.BertNormalizer(),
    "llama 2": normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    ),
    "nmt": normalizers.Sequence([normalizers.Nmt(), normalizers.Replace(Regex(" {2,}"), " ")]),
    "strip": normalizers.Strip(),
}  # fmt: skip
SPECIAL = ["<eos>", "[UNK]"]
MODELS = {
    "bpe": (models.BPE, trainers.BpeTrainer),
    "wordpiece": (models.WordPiece, trainers.WordPieceTrainer),
    "wordlevel": (models.WordLevel, trainers.WordLevelTrainer),
    "unigram": (models.Unigram, trainers.UnigramTrainer),
}
KINDS = [
    *(("bpe", normalizer, "gpt-2") for normalizer in NORMALIZERS),
    *(("bpe", "none", cut) for cut in PRE_TOKENIZERS),
    *(
        (model, "nfkc lower", cut)
        for model in ("wordpiece", "wordlevel", "unigram")
        for cut in ("metaspace", "bert", "gpt-2")
    ),
    ("bpe", "llama 2", "none"),
    ("unigram", "nmt", "metaspace"),
]
CLASSES = ("GPT2Tokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast")


def train(model, normalizer, cut):
    """Trains a small tokenizer. No token joins words, as in published vocabularies."""
    make, make_trainer = MODELS[model]
    backend = tokenizers.Tokenizer(make() if model == "unigram" else make(unk_token="[UNK]"))
    if normalizer != "llama 2" and NORMALIZERS[normalizer] is not None:
        backend.normalizer = NORMALIZERS[normalizer]
    backend.pre_tokenizer = PRE_TOKENIZERS["metaspace" if cut in UNCUT else cut]
    options = {"unk_token": "[UNK]"} if model == "unigram" else {}
    if model != "wordlevel" and cut in BYTE_LEVEL:
        options["initial_alphabet"] = BYTES.alphabet()
    trainer = make_trainer(vocab_size=450, special_tokens=SPECIAL, show_progress=False, **options)
    backend.train_from_iterator(CORPUS, trainer)
    description = json.loads(backend.to_str())
    for part, found in (
        ("normalizer", NORMALIZERS[normalizer]),
        ("pre_tokenizer", PRE_TOKENIZERS[cut]),
    ):
        description[part] = None if found is None else json.loads(found.__getstate__())
    return tokenizers.Tokenizer.from_str(json.dumps(description))


def write_folder(folder, backend, **tokenizer_config):
    """Writes a folder with a tokenizer, a configuration, and some tensor."""
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"eos_token_id": 7}')
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    safetensors.numpy.save_file({"x": np.zeros(1)}, folder / "model.safetensors")
    return folder


def assert_same_ids(published, ours):
    @settings(max_examples=15, deadline=None, database=None)
    @given(texts)
    def check(text):
        ids = published.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids
        assert ours.encode_batch([text, "a"])[0] == ids

    check()
    for text in AWKWARD:
        assert ours.encode(text) == published.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_a_folder_is_tokenized_as_its_tokenizer_json_says(kind, tmp_path):
    backend = train(*kind)
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    for tokenizer_class in CLASSES:
        entries = {
            "eos_token": "<eos>",
            "tokenizer_class": tokenizer_class,
            "add_prefix_space": True,
        }
        folder = write_folder(tmp_path / tokenizer_class, backend, **entries)
        ours = folders.read(folder).tokenizer
        ours.save(tmp_path / "kept.json")
        kept = Tokenizer.open(tmp_path / "kept.json", ours.eos_id)
        published = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        published.no_truncation()
        published.no_padding()
        assert ours.eos_id == published.token_to_id("<eos>")

        assert_same_ids(published, ours)
        assert_same_ids(published, kept)


def test_digits_are_split_whatever_class_a_folder_names(tmp_path):
    """The hub's SmolLM2 folders name GPT2Tokenizer, which does not split digits."""
    entries = {"eos_token": "<eos>", "tokenizer_class": "GPT2Tokenizer"}
    folder = write_folder(tmp_path / "m", train("bpe", "none", "smollm"), **entries)
    ours = folders.read(folder).tokenizer
    tokens = [ours.decode([i]) for i in ours.encode("in  1984")]
    assert tokens[-4:] == ["1", "9", "8", "4"]


train_byte_level = functools.cache(functools.partial(train, "bpe", "none"))

FOLLOWERS = (" It was great .", " (all)", " 1984", " 's", "  two", " \n", " ▁", " é", " 日本")
followers = st.one_of(st.sampled_from(FOLLOWERS), st.text(max_size=30).map(" {}".format))


@settings(max_examples=60, deadline=None, database=None)
@given(st.sampled_from(BYTE_LEVEL), followers)
def test_byte_level_continuations_are_encoded_as_in_the_paper(cut, text):
    """The paper's code tokenizes text and template apart."""
    ours = Tokenizer(train_byte_level(cut), 0)
    assert ours.encode_continuations([text]) == [ours.encode(text)]


WITH_SPACES = [
    ("bpe", "llama 2", "none"),
    ("bpe", "none", "metaspace"),
    ("bpe", "none", "metaspace first"),
    ("unigram", "none", "metaspace"),
    ("unigram", "nmt", "metaspace"),
    ("wordpiece", "bert", "bert"),
    ("bpe", "none", "gpt-2 with a space first"),
]


@pytest.mark.parametrize("kind", WITH_SPACES, ids="-".join)
def test_text_and_continuation_are_the_tokens_of_the_joined_text(kind):
    ours = Tokenizer(train(*kind), 0)
    starts = [text for text in AWKWARD if text and text[-1].isprintable() and text[-1] not in " ▁]"]
    for start, follower in itertools.product(starts, (" It was great .", " The film's plot")):
        (continuation,) = ours.encode_continuations([follower])
        assert ours.encode(start) + continuation == ours.encode(start + follower)


def test_a_text_that_tokens_join_with_the_one_before_is_encoded_alone():
    backend = tokenizers.Tokenizer(models.BPE({"x": 0, " ": 1, "y": 2, "x ": 3}, [("x", " ")]))
    assert Tokenizer(backend, 0).encode_continuations([" y", "y"]) == [[1, 2], [2]]


@pytest.mark.parametrize(
    ("entries", "map_entries", "id_"),
    [
        ({"eos_token": "<eos>"}, None, 0),
        ({"eos_token": {"content": "<eos>", "lstrip": False}}, None, 0),
        ({}, {"eos_token": "[UNK]"}, 1),
        ({}, {"eos_token": {"content": "[UNK]"}}, 1),
        ({"eos_token": "<eos>"}, {"eos_token": "[UNK]"}, 0),
        ({}, None, 7),
    ],
)
def test_the_end_of_a_text_is_the_token_that_the_folder_names(entries, map_entries, id_, tmp_path):
    folder = write_folder(tmp_path / "m", train("bpe", "none", "gpt-2"), **entries)
    if map_entries is not None:
        (folder / "special_tokens_map.json").write_text(json.dumps(map_entries))
    assert folders.read(folder).tokenizer.eos_id == id_


@pytest.mark.parametrize(
    ("entries", "config", "message"),
    [
        ({"eos_token": None}, {"eos_token_id": 7}, r"m: the tokenizer has no eos_token.*: name "),
        ({}, {}, r'm: the tokenizer has no eos_token.*\{"eos_token": "</s>"\}'),
        ({}, {"eos_token_id": []}, r"no eos_token"),
        ({}, {"eos_token_id": "</s>"}, r"no eos_token"),
        ({"eos_token": "</s>"}, {}, r"tokenizer_config\.json: eos_token is '</s>'"),
    ],
)  # fmt: skip
def test_a_folder_without_an_end_of_text_says_how_to_name_one(entries, config, message, tmp_path):
    folder = write_folder(tmp_path / "m", train("bpe", "none", "gpt-2"), **entries)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message) as caught:
        folders.read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {"type": "NEW"}}'])
def test_a_broken_tokenizer_json_is_named(content, tmp_path):
    folder = write_folder(tmp_path / "m", train("bpe", "none", "gpt-2"), eos_token="<eos>")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json: .*get it again"):
        folders.read(folder)


def test_a_folder_of_a_vocab_txt_alone_is_read_by_transformers(tmp_path):
    folder = write_folder(tmp_path / "m", train("bpe", "none", "gpt-2"))
    (folder / "tokenizer.json").unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "was", "##s", "."]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "eos_token": "[SEP]"}'
    )
    ours = folders.read(folder).tokenizer
    assert ours.encode("It was its .") == [5, 6, 5, 7, 8]
    assert ours.eos_id == 3


def test_decoders_and_added_tokens_are_kept(tmp_path):
    backend = train("bpe", "none", "metaspace")
    backend.decoder = decoders.Metaspace()
    backend.add_tokens([AddedToken("<think>", special=False)])
    ours = folders.read(write_folder(tmp_path / "m", backend, eos_token="<eos>")).tokenizer
    assert ours.decode(ours.encode("It was <think> great")) == backend.decode(
        backend.encode("It was <think> great").ids, skip_special_tokens=False
    )


RESERVED = ["<unused12>", "[unused3]", "<|reserved_special_token_7|>", "<|reserved_4|>"]


def test_special_and_reserved_tokens_stand_for_no_text():
    words = ["<eos>", *RESERVED, "unused", "<b>", "[x]", "reserved", "<0x0A>"]
    vocabulary = {word: id_ + 20 * (id_ > 4) for id_, word in enumerate(words)}  # with a gap
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    backend.add_special_tokens(["<eos>"])
    backend.add_tokens([AddedToken("<think>", special=False)])
    ours = Tokenizer(backend, 0)
    text = {ours.decode([id_]) for id_ in ours.text_ids}
    assert text == {"unused", "<b>", "[x]", "reserved", "<0x0A>", "<think>"}
    assert ours.ids == {*vocabulary.values(), backend.token_to_id("<think>")}


@pytest.mark.parametrize("kind", [("bpe", "none", "gpt-2"), ("bpe", "none", "metaspace")])
def test_the_tokens_that_begin_every_text_are_those_of_the_published_tokenizer(kind, tmp_path):
    plain, with_bos = train(*kind), train(*kind)
    with_bos.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", with_bos.token_to_id("<eos>"))]
    )
    for backend in (plain, with_bos):
        ours = Tokenizer(backend, 0)
        for text in ("It was great", "x", "a b"):
            assert [*ours.first_ids, *ours.encode(text)] == backend.encode(text).ids
    assert Tokenizer(plain, 0).first_ids == ()
    assert Tokenizer(with_bos, 0).first_ids == (with_bos.token_to_id("<eos>"),)
