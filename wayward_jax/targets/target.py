"""A target, and the tokenization of texts into targets."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from wayward_jax.errors import InputError


class Tokenizer(Protocol):
    """The part of a tokenizer that targets need. It adds no special tokens."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclasses.dataclass(frozen=True)
class Target:
    """A text that a prompt is tuned to read as.

    A prompt is held to the ids. The text is for people: for some tokenizers
    `decode(encode(text))` differs from `text`.

    Attributes:
        name: the name of its set and its name there, such as `instructions/07`.
        text: the text.
        ids: the L tokens of the text.
    """

    name: str
    text: str
    ids: tuple[int, ...]


def tokenize(
    texts: Mapping[str, str],
    tokenizer: Tokenizer,
    prompt_length: int | None = None,
    *,
    repeat: bool = False,
) -> list[Target]:
    """Makes targets of named texts, in order.

    Of several texts with the same tokens, the first becomes a target: their prompts would be equal.

    A `prompt_length` counts tokens, so it may cut a text within a word: the first tokens of the
    text become the target's ids, and their decoding becomes its text.

    Args:
        texts: texts by name.
        tokenizer: see `Tokenizer`.
        prompt_length: the number of tokens to which every text is cut. Texts with fewer tokens are
            left out. None keeps all texts whole.
        repeat: repeats shorter texts to that number of tokens in place of leaving them out.

    Raises:
        InputError: a text cannot be encoded, `prompt_length` is below 1, or no text has that many
            tokens.
    """
    if prompt_length is not None and prompt_length < 1:
        raise InputError("prompt_length", prompt_length, "give 1 or more")
    targets = [Target(name, text, _encode(name, text, tokenizer)) for name, text in texts.items()]
    if prompt_length is not None:
        if repeat:
            targets = [
                dataclasses.replace(each, ids=tuple(np.resize(each.ids, prompt_length).tolist()))
                for each in targets
            ]
        targets = _cut(targets, prompt_length, tokenizer)
    first = {target.ids: target for target in reversed(targets)}
    return [target for target in targets if first[target.ids] is target]


def require_readable(targets: Sequence[Target], tokenizer: Tokenizer, readable: np.ndarray) -> None:
    """Raises an `InputError` if a target has tokens that no prompt is read as.

    Args:
        targets: the targets.
        tokenizer: see `Tokenizer`.
        readable: `[V]` bool, see `LanguageModel.valid_tokens`.
    """
    for target in targets:
        if hidden := [id_ for id_ in target.ids if not readable[id_]]:
            raise InputError(
                "targets",
                target.name,
                f"{tokenizer.decode(hidden[:1])!r} is a special or reserved token, which no prompt "
                "is read as: leave the target out, or use --readable=all",
            )


def _encode(name: str, text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON and command lines can hold half a character
        remedy = f"this text is not Unicode ({error.reason}): fix it"
        raise InputError("targets", name, remedy) from error
    ids = tuple(tokenizer.encode(text))
    if not ids:
        raise InputError("targets", name, "there are no tokens in it: give another text")
    return ids


def _cut(targets: list[Target], length: int, tokenizer: Tokenizer) -> list[Target]:
    cuts = [(target.name, target.ids[:length]) for target in targets if len(target.ids) >= length]
    if not cuts:
        lengths = [len(target.ids) for target in targets]
        raise InputError(
            "prompt_length",
            length,
            f"none of the {len(targets)} targets is that long, they have {min(lengths)} to "
            f"{max(lengths)} tokens: choose a smaller length or other --targets",
        )
    return [Target(name, tokenizer.decode(list(ids)), ids) for name, ids in cuts]
