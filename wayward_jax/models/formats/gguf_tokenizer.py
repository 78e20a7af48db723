"""Builds tokenizers from the metadata of GGUF files.

A GGUF file holds the vocabulary, but only a name for the rule by which text is cut into words
before bytes are merged. The rules here are those in the `tokenizer.json` of the published models.
transformers uses another rule for `smollm` when it reads a GGUF file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from wayward_jax.models.tokenizer import Tokenizer

# Values of `tokenizer.ggml.token_type`. Unused tokens only fill up the embedding table.
UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5

# In characters. `_merges` tries to cut every token at every character.
LONGEST_TOKEN = 1000

# Text is cut into contractions, words, numbers, punctuation, and white space. A number is up to
# three digits in Llama 3 and OLMo 2, and one in Qwen.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{number}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_WORDS = Regex(WORDS.format(number=r"\p{N}{1,3}"))
QWEN_WORDS = Regex(WORDS.format(number=r"\p{N}"))

# The rules by their names in `tokenizer.ggml.pre`. llama.cpp has had several names for some.
GPT2_RULES = ("gpt-2", "olmo")
LLAMA3_RULES = ("llama-bpe", "llama3", "llama-v3")
RULES = (*GPT2_RULES, "smollm", "qwen2", *LLAMA3_RULES, "dbrx", "smaug-bpe")


def build_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """Builds the tokenizer that the metadata of a GGUF file describes.

    Raises:
        KeyError: the metadata lacks an entry.
        ValueError: this kind of tokenizer is not supported.
    """
    tokens = metadata["tokenizer.ggml.tokens"]
    if max(map(len, tokens)) > LONGEST_TOKEN:
        raise ValueError(f"tokenizer.ggml.tokens has one of more than {LONGEST_TOKEN} characters")
    kinds = metadata["tokenizer.ggml.token_type"]
    used = [i for i, kind in enumerate(kinds) if kind != UNUSED]
    vocab = {tokens[i]: i for i in used}
    if len(vocab) != len(used):
        raise ValueError("tokenizer.ggml.tokens has the same token twice")

    match metadata["tokenizer.ggml.model"]:
        case "gpt2":
            merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
            backend = _byte_level(vocab, merges, rule=metadata.get("tokenizer.ggml.pre"))
        case "llama":
            scores = metadata["tokenizer.ggml.scores"]
            merges = _merges(vocab, scores)
            prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
            backend = _sentencepiece(vocab, merges, prefix)
        case other:
            raise ValueError(f"tokenizer.ggml.model is {other!r}, only gpt2, llama are supported")

    backend.add_tokens(
        [
            AddedToken(tokens[i], normalized=False, special=kinds[i] != USER_DEFINED)
            for i in used
            if kinds[i] in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
    )
    if "tokenizer.ggml.eos_token_id" not in metadata:
        raise ValueError(
            "the file names no token that ends a text: name one with llama.cpp's "
            "gguf-new-metadata --special-token-by-id eos ID OLD.gguf NEW.gguf"
        )
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    # The default is llama.cpp's.
    kinds_with_bos = {"llama", "llama-bpe"}
    by_default = not kinds_with_bos.isdisjoint(
        (metadata["tokenizer.ggml.model"], metadata.get("tokenizer.ggml.pre"))
    )
    if bos is not None and metadata.get("tokenizer.ggml.add_bos_token", by_default):
        backend.post_processor = processors.TemplateProcessing(
            single=[tokens[bos], "$A"], special_tokens=[(tokens[bos], bos)]
        )
    chat = metadata.get("tokenizer.chat_template")
    chat = chat if isinstance(chat, str) else ""
    return Tokenizer(backend, metadata["tokenizer.ggml.eos_token_id"], bos, chat)


def _byte_level(
    vocab: dict[str, int], merges: Sequence[tuple[str, str]], rule: str | None
) -> Backend:
    """Builds a tokenizer of GPT-2's kind, which cuts text into words and merges their bytes."""
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if rule not in RULES:
        raise ValueError(f"tokenizer.ggml.pre is {rule!r}, only {', '.join(RULES)} are supported")
    if rule in GPT2_RULES:
        steps: list[Any] = [bytes_of_words]
    elif rule == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), bytes_of_words]
    else:
        words = QWEN_WORDS if rule == "qwen2" else LLAMA3_WORDS
        steps = [pre_tokenizers.Split(words, behavior="isolated"), bytes_only]
    # Llama 3 makes a word that is in the vocabulary one token, even if no merges lead to it.
    backend = Backend(models.BPE(vocab, list(merges), ignore_merges=rule in LLAMA3_RULES))
    if rule == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(
    vocab: dict[str, int], merges: Sequence[tuple[str, str]], prefix: bool
) -> Backend:
    """Builds a tokenizer of Llama 2's kind, which merges a whole text, with ▁ for spaces.

    Characters that are in no token are encoded as tokens of single bytes.
    """
    if "<unk>" not in vocab:
        raise ValueError("tokenizer.ggml.tokens lacks <unk>, which stands for unknown characters")
    backend = Backend(
        models.BPE(vocab, list(merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    spaces = [normalizers.Replace(" ", "▁")]
    text = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        spaces.insert(0, normalizers.Prepend("▁"))
        text.append(decoders.Strip(" ", left=1))
    backend.normalizer = normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(text)
    return backend


def _merges(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Lists SentencePiece's merges: all pairs of tokens that make a token, highest score first."""
    pairs = [
        (-scores[i], vocab[token[:end]], vocab[token[end:]], (token[:end], token[end:]))
        for token, i in vocab.items()
        for end in range(1, len(token))
        if token[:end] in vocab and token[end:] in vocab
    ]
    return [pair for *_, pair in sorted(pairs)]
