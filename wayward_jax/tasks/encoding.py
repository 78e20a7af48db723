"""Encoding of texts as the tokens that follow the prompt, for each label.

The direct method scores `p(label | prompt, text)`, the channel method `p(text | prompt, label)`
(paper, section 2; Min et al., 2021). Encoded examples hold no prompt and no padding: the trainer
adds both.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from wayward_jax.errors import InputError
from wayward_jax.tasks.task import Task

METHODS = ("direct", "channel")

# Tokens of `max_length` that the paper's code reserves for the template.
TEMPLATE_ROOM = 16

Tokens = tuple[int, ...]


class Tokenizer(Protocol):
    """The part of a tokenizer that encoding needs. No method adds special tokens."""

    @property
    def eos_id(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


class Encoded(NamedTuple):
    """The tokens of an example that follow the prompt, for each of the C labels.

    Attributes:
        contexts: `[C]` token tuples that are read but not scored. None is empty. With the direct
            method they are all equal.
        continuations: `[C]` token tuples that are scored. Each ends with EOS.
    """

    contexts: tuple[Tokens, ...]
    continuations: tuple[Tokens, ...]


def encode(
    task: Task,
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    template: int = 1,
    method: str = "direct",
    max_tokens: int | None = None,
) -> list[Encoded]:
    """Encodes each text with each label's template, as the paper's code does (`prepare_data`).

    Direct: `text + " " + template + EOS`, scored from the first token at which the templates of the
    labels differ. Channel: `template + " " + text + EOS`, scored from the text on. Text and
    template are tokenized separately. If the whole is too long, the end of the text is cut.

    Args:
        task: templates, label words and `max_length`.
        texts: N texts.
        tokenizer: see `Tokenizer`.
        template: index into `task.templates`.
        method: one of `METHODS`.
        max_tokens: the most tokens of context and continuation together: the positions of the model
            that the prompt leaves. None sets no limit beyond the task's own.

    Returns:
        N encoded examples, in order.

    Raises:
        InputError: there is no such template or method, two label words give the same tokens, the
            template leaves no position for the text, or a text has no tokens.
    """
    if method not in METHODS:
        raise InputError("method", method, f"choose one of {', '.join(METHODS)}")
    if not 0 <= template < len(task.templates):
        remedy = f"task {task.name} has templates 0 to {len(task.templates) - 1}: choose one"
        raise InputError("template", template, remedy)
    filled = [task.templates[template].replace("%s", word).strip() for word in task.label_words]
    if method == "direct":
        filled = [" " + sentence for sentence in filled]
    else:
        texts = [" " + text for text in texts]
    # EOS takes part in the comparison of templates: it distinguishes a template from a longer one
    # that begins with it.
    closed = [(*tokenizer.encode(sentence), tokenizer.eos_id) for sentence in filled]
    if len(set(closed)) < len(closed):
        remedy = f"two label words of task {task.name} give the same tokens: change one"
        raise InputError("template", template, remedy)
    room = _text_room(task, template, max(map(len, closed)), max_tokens)
    cut = [tuple(tokens[:room]) for tokens in tokenizer.encode_batch(texts)]
    for index, tokens in enumerate(cut):
        if not tokens:
            raise InputError("task", task.name, f"text {index} has no tokens: remove it")
    if method == "channel":
        contexts = tuple(sentence[:-1] for sentence in closed)
        return [Encoded(contexts, ((*text, tokenizer.eos_id),) * len(closed)) for text in cut]
    shared = _common_prefix(closed)
    continuations = tuple(sentence[len(shared) :] for sentence in closed)
    return [Encoded((text + shared,) * len(closed), continuations) for text in cut]


def _text_room(task: Task, template: int, closed_length: int, max_tokens: int | None) -> int:
    """Returns how many tokens a text may have beside `closed_length` of template and EOS."""
    room = task.max_length - TEMPLATE_ROOM
    if max_tokens is None:
        return room
    if max_tokens <= closed_length:
        raise InputError(
            "template",
            template,
            f"takes {closed_length} of the {max_tokens} positions that --prompt_length leaves, and "
            "the text needs one: shorten the prompt or the template",
        )
    return min(room, max_tokens - closed_length)


def _common_prefix(sequences: Sequence[Tokens]) -> Tokens:
    first, *others = sequences
    length = 0
    while all(other[: length + 1] == first[: length + 1] for other in others):
        length += 1
    return first[:length]
