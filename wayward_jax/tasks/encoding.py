"""Encoding of texts as the tokens that follow the prompt, for each label.

The direct method scores `p(label | prompt, text)`, the channel method `p(text | prompt, label)`
(paper, section 2; Min et al., 2021). Encoded examples hold no prompt and no padding: the trainer
adds both.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from wayward_jax.errors import InputError
from wayward_jax.tasks.task import Task

METHODS = ("direct", "channel")

# The ends of a text, of which one is cut. The paper cuts the tail.
ENDS = ("tail", "head")

# Where the texts of an example stand in a template.
PLACEHOLDER = re.compile(r"\s*\{text(?:_b)?\}")
PLACEHOLDER_PARTS = re.compile(f"({PLACEHOLDER.pattern})")

# Tokens of `max_length` that the paper's code reserves for the template.
TEMPLATE_ROOM = 16

Tokens = tuple[int, ...]


class Tokenizer(Protocol):
    """The part of a tokenizer that encoding needs. No method adds special tokens."""

    @property
    def eos_id(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    def encode_continuations(self, texts: Sequence[str]) -> list[list[int]]: ...


class Encoded(NamedTuple):
    """The tokens of an example that follow the prompt, for each of the W label words.

    Attributes:
        contexts: `[W]` token tuples that are read but not scored. None is empty. With the direct
            method they are all equal.
        continuations: `[W]` token tuples that are scored. Each ends with EOS.
    """

    contexts: tuple[Tokens, ...]
    continuations: tuple[Tokens, ...]


def encode(
    task: Task,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    texts_b: Sequence[str] = (),
    template: int = 1,
    method: str = "direct",
    max_tokens: int | None = None,
    truncate: str = "tail",
) -> list[Encoded]:
    """Encodes each text with each label word's template, as the paper's code does (`prepare_data`).

    Direct: `text + " " + template + EOS`, scored from the first token at which the templates of the
    label words differ. Channel: `template + " " + text + EOS`, scored from the text on. A template
    may also say where the text is, with `{text}`, and where the second text of a pair is, with
    `{text_b}`. Direct templates then have the label word after the texts, and channel templates end
    with the text that is scored.

    Texts and the parts of a template are tokenized separately, and all but the first get the tokens
    that they have after another text (see `Tokenizer.encode_continuations`). If the whole is too
    long, texts are cut; of a pair, the longer one.

    Args:
        task: templates, label words and `max_length`.
        texts: N texts.
        tokenizer: see `Tokenizer`.
        texts_b: N second texts, for templates with `{text_b}`.
        template: index into `task.templates`.
        method: one of `METHODS`.
        max_tokens: the most tokens of context and continuation together: the positions of the model
            that the prompt leaves. None sets no limit beyond the task's own.
        truncate: the end that is cut from a text that is too long, one of `ENDS`.

    Returns:
        N encoded examples, in order.

    Raises:
        InputError: there is no such template, method or end, the template does not fit the method,
            there are no two label words, the channel method is to score several words a label, two
            label words give the same tokens, the template leaves no position for the text, or a
            text has no tokens.
    """
    parts = _parts(task, template, method, bool(texts_b))
    if len(task.words) < 2:
        raise InputError("task", task.name, "has fewer than two label words: give it more labels")
    if method == "channel" and len(task.words) > len(task.labels):
        remedy = (
            f"task {task.name} has several words for a label, which the direct method alone sums "
            "over: use --method=direct, or give one word for each"
        )
        raise InputError("method", method, remedy)
    filled = [_encode_literals(parts, word, tokenizer) for word in task.words]
    # EOS takes part in the comparison of templates: it distinguishes a template from a longer one
    # that begins with it.
    if len({(*literals, tokenizer.eos_id) for literals in filled}) < len(filled):
        remedy = f"two label words of task {task.name} give the same tokens: change one"
        raise InputError("template", template, remedy)
    places = [i for i, part in enumerate(parts) if PLACEHOLDER.fullmatch(part)]
    longest = 1 + max(sum(map(len, literals)) for literals in filled)
    room = _text_room(task, template, longest, max_tokens, len(places))
    found = _encode_texts(task, parts, texts, texts_b, tokenizer)
    cut = [_cut(pair, room, truncate) for pair in zip(*found, strict=True)]

    last = places[-1]
    tails = [(*_join(literals[last + 1 :]), tokenizer.eos_id) for literals in filled]
    shared = _common_prefix(tails) if method == "direct" else ()
    encoded = []
    for pair in cut:
        own = dict(zip(places, pair, strict=True))
        wholes = [[own.get(i, part) for i, part in enumerate(literals)] for literals in filled]
        if method == "direct":
            context = _join(wholes[0][: last + 1]) + shared
            continuations = tuple(tail[len(shared) :] for tail in tails)
            encoded.append(Encoded((context,) * len(tails), continuations))
        else:
            contexts = tuple(_join(whole[:last]) for whole in wholes)
            encoded.append(Encoded(contexts, ((*pair[-1], tokenizer.eos_id),) * len(tails)))
    return encoded


def count_truncated(
    task: Task,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    texts_b: Sequence[str] = (),
    template: int = 1,
    method: str = "direct",
    max_tokens: int | None = None,
) -> int:
    """Counts the texts, or pairs, that `encode` cuts. Arguments and errors are its own, too."""
    parts = _parts(task, template, method, bool(texts_b))
    filled = [_encode_literals(parts, word, tokenizer) for word in task.words]
    longest = 1 + max(sum(map(len, literals)) for literals in filled)
    found = _encode_texts(task, parts, texts, texts_b, tokenizer)
    room = _text_room(task, template, longest, max_tokens, len(found))
    return sum(sum(map(len, pair)) > room for pair in zip(*found, strict=True))


def _parts(task: Task, template: int, method: str, has_pairs: bool) -> list[str]:
    """Splits a template into literals and placeholders, each with the white space before it."""
    if method not in METHODS:
        raise InputError("method", method, f"choose one of {', '.join(METHODS)}")
    if not 0 <= template < len(task.templates):
        remedy = f"task {task.name} has templates 0 to {len(task.templates) - 1}: choose one"
        raise InputError("template", template, remedy)
    sentence = task.templates[template].strip()
    if not PLACEHOLDER.search(sentence):
        sentence = f"{{text}} {sentence}" if method == "direct" else f"{sentence} {{text}}"
    parts = [part for part in PLACEHOLDER_PARTS.split(sentence) if part]
    names = [part.strip() for part in parts if PLACEHOLDER.fullmatch(part)]
    if len(set(names)) < len(names) or "{text}" not in names:
        remedy = "give it {text} once, and for pairs also {text_b} once"
        raise InputError("template", template, remedy)
    if "{text_b}" in names and not has_pairs:
        remedy = (
            f"has {{text_b}}, and the examples of task {task.name} are no pairs: give them text_b"
        )
        raise InputError("template", template, remedy)
    if method == "direct" and PLACEHOLDER.search(sentence[sentence.index("%s") :]):
        remedy = "has the label word before a text: put it last, or use --method=channel"
        raise InputError("template", template, remedy)
    if method == "channel" and not PLACEHOLDER.fullmatch(parts[-1]):
        remedy = "does not end with a text, which the channel method scores: use --method=direct"
        raise InputError("template", template, remedy)
    return parts


def _encode_literals(parts: Sequence[str], word: str, tokenizer: Tokenizer) -> tuple[Tokens, ...]:
    """Encodes the literals of a template with a label word. Placeholders have no tokens yet."""
    literals = ["" if PLACEHOLDER.fullmatch(part) else part.replace("%s", word) for part in parts]
    first, *others = literals
    encoded = [tokenizer.encode(first.strip()), *tokenizer.encode_continuations(others)]
    return tuple(
        tuple(tokens) if text else () for tokens, text in zip(encoded, literals, strict=True)
    )


def _encode_texts(
    task: Task,
    parts: Sequence[str],
    texts: Sequence[str],
    texts_b: Sequence[str],
    tokenizer: Tokenizer,
) -> list[list[list[int]]]:
    """Encodes what stands for each placeholder, in the order of the template: `[1 or 2, N]`."""
    found = []
    for number, part in enumerate(parts):
        if PLACEHOLDER.fullmatch(part):
            own = texts if part.strip() == "{text}" else texts_b
            space = part[: -len(part.lstrip())]
            encode_all = tokenizer.encode_continuations if number else tokenizer.encode_batch
            found.append(encode_all([space + text for text in own]))
            for index, tokens in enumerate(found[-1]):
                if not tokens:
                    raise InputError("task", task.name, f"text {index} has no tokens: remove it")
    return found


def _cut(pair: Sequence[Sequence[int]], room: int, truncate: str) -> list[Tokens]:
    """Cuts one or two texts to `room` tokens together, the longer one first."""
    if truncate not in ENDS:
        raise InputError("truncate", truncate, f"choose one of {', '.join(ENDS)}")
    lengths = list(map(len, pair))
    if len(lengths) == 1:
        kept = [min(lengths[0], room)]
    else:
        second = min(lengths[1], max(room // 2, room - lengths[0]))
        kept = [min(lengths[0], room - second), second]
    return [
        tuple(tokens[:keep] if truncate == "tail" else tokens[len(tokens) - keep :])
        for tokens, keep in zip(pair, kept, strict=True)
    ]


def _text_room(
    task: Task, template: int, closed_length: int, max_tokens: int | None, count: int
) -> int:
    """Returns how many tokens `count` texts may have beside `closed_length` of template and EOS."""
    room = task.max_length - TEMPLATE_ROOM
    if max_tokens is None:
        return room
    if max_tokens < closed_length + count:
        raise InputError(
            "template",
            template,
            f"takes {closed_length} of the {max_tokens} positions that --prompt_length leaves, and "
            "the text needs one: shorten the prompt or the template",
        )
    return min(room, max_tokens - closed_length)


def _join(parts: Sequence[Tokens]) -> Tokens:
    return tuple(token for part in parts for token in part)


def _common_prefix(sequences: Sequence[Tokens]) -> Tokens:
    first, *others = sequences
    length = 0
    while all(other[: length + 1] == first[: length + 1] for other in others):
        length += 1
    return first[:length]
