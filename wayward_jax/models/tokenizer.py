"""Exact conversion of text to token ids and back."""

import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

# A text that other texts follow while they are encoded. It is a letter, because tokens seldom join
# a letter and the white space after it.
ANCHOR = "x"

# Tokens that fill up a vocabulary, such as `<unused12>`, `[unused3]` and `<|reserved_4|>`.
RESERVED = re.compile(
    r"[<\[]\|?(?:unused|reserved|placeholder|extra_id|dummy)[\w-]*\|?[>\]]", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer without the conveniences that change text.

    Encoding adds no special tokens, and decoding keeps all tokens and spaces. Text that spells a
    special token, such as `<|endoftext|>`, becomes that token, as everywhere in Hugging Face.

    Attributes:
        backend: the tokenizer, which neither pads nor truncates.
        eos_id: the id of the token that ends a text.
        bos_id: the id of the token that begins a text; None if the model has none.
        chat_template: the Jinja template of the model's chats; empty if it has none.
    """

    backend: tokenizers.Tokenizer
    eos_id: int
    bos_id: int | None = None
    chat_template: str = ""

    @classmethod
    def open(cls, path: Path, eos_id: int, bos_id: int | None = None) -> "Tokenizer":
        """Opens a `tokenizer.json`, without the padding and truncation that it may ask for."""
        backend = tokenizers.Tokenizer.from_file(str(path))
        backend.no_padding()
        backend.no_truncation()
        return cls(backend, eos_id, bos_id)

    def without_added_tokens(self, rows: int) -> "Tokenizer":
        """Leaves out the added tokens that an embedding table of so many rows has no row for.

        A folder may name such a token, for instance for padding, that its model was never given. A
        text that spells it is encoded as any other text.
        """
        if self.vocab_size <= rows:
            return self
        content = json.loads(self.backend.to_str())
        content["added_tokens"] = [each for each in content["added_tokens"] if each["id"] < rows]
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
        return dataclasses.replace(self, backend=backend)

    def save(self, path: Path) -> None:
        """Writes a `tokenizer.json`."""
        self.backend.save(str(path))

    def encode(self, text: str) -> list[int]:
        """Encodes a text to token ids."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes several texts to token ids."""
        encodings = self.backend.encode_batch(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_continuations(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes texts that are each the continuation of another text.

        SentencePiece puts a space before every text, and other tokenizers treat the start of a text
        in other special ways. Here a text gets the tokens that it has after another one, so the
        tokens of `" It"` are `▁It` and not `▁▁`, `It`. For byte-level tokenizers without such rules
        the result is that of `encode_batch`.
        """
        anchor = self.encode(ANCHOR)
        followed = self.encode_batch([ANCHOR + text for text in texts])
        # If tokens join the anchor and the text, then the text is encoded alone.
        return [
            ids[len(anchor) :] if ids[: len(anchor)] == anchor else self.encode(text)
            for ids, text in zip(followed, texts, strict=True)
        ]

    def chat(self, message: str) -> str:
        """Renders a chat of one message, up to the start of the answer, by the chat template.

        Raises:
            Exception: of any kind, because a template is code (which cannot touch anything here).
        """
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        special = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        return environment.from_string(self.chat_template).render(
            messages=[{"role": "user", "content": message}],
            add_generation_prompt=True,
            **{name: "" if id_ is None else self.decode([id_]) for name, id_ in special.items()},
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes token ids to a text. Bytes that are not UTF-8 become U+FFFD."""
        return self.backend.decode(ids, skip_special_tokens=False)

    @cached_property
    def vocab_size(self) -> int:
        """The highest token id plus 1. An embedding table may have more rows than that."""
        return max(self.backend.get_vocab().values()) + 1

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of tokens that stand for no text."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(id_ for id_, token in added.items() if token.special)

    @cached_property
    def first_ids(self) -> tuple[int, ...]:
        """The special tokens that the model's makers put before every text, mostly none or BOS."""
        encoding = self.backend.encode(ANCHOR)
        return tuple(
            id_
            for id_, _ in itertools.takewhile(
                lambda pair: pair[1], zip(encoding.ids, encoding.special_tokens_mask, strict=True)
            )
        )

    @cached_property
    def ids(self) -> frozenset[int]:
        """The ids of all tokens. A vocabulary may leave ids out."""
        return frozenset(self.backend.get_vocab().values())

    @cached_property
    def text_ids(self) -> frozenset[int]:
        """The ids of tokens that stand for text: those that are neither special nor reserved."""
        vocab = self.backend.get_vocab()
        reserved = {id_ for token, id_ in vocab.items() if RESERVED.fullmatch(token)}
        return self.ids - self.special_ids - reserved
