"""Texts to tokens: everything that follows the prompt, for each label.

The direct method scores `p(label | prompt, text)`, the channel method `p(text | prompt, label)`
(paper, section 2; Min et al., 2021). No padding and no prompt here: those belong to the trainer.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from wayward_jax.errors import InputError
from wayward_jax.tasks.task import Task

METHODS = ("direct", "channel")

# The paper's code leaves this much of `max_length` to the template.
TEMPLATE_ROOM = 16

Tokens = tuple[int, ...]


class Tokenizer(Protocol):
    """What encoding needs of a tokenizer. None of the methods adds special tokens."""

    eos_id: int

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...


class Encoded(NamedTuple):
    """One example, everything after the prompt, for each of the C labels.

    Attributes:
      contexts: `[C]` token tuples that are read but not scored; none is empty. With the direct
        method they are equal.
      continuations: `[C]` token tuples that are scored; each ends with EOS.
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

    Direct: `text + " " + template + EOS`, scored from the first token at which the labels'
    templates differ. Channel: `template + " " + text + EOS`, scored from the text on. Text and
    template are tokenised apart. Where the whole is too long, the text loses its end.

    Args:
      task: templates, label words and `max_length`.
      texts: N texts.
      tokenizer: see `Tokenizer`.
      template: index into `task.templates`.
      method: one of `METHODS`.
      max_tokens: the most tokens of context and continuation together; None is no limit beyond the
        task's own. It is what the prompt leaves of the model's positions.

    Returns:
      N encoded examples, in order.

    Raises:
      InputError: no such template or method, two labels that read the same, no room for the text,
        or a text without tokens.
    """
    if method not in METHODS:
        raise InputError(f"--method={method}: choose one of {', '.join(METHODS)}")
    if not 0 <= template < len(task.templates):
        raise InputError(
            f"--template={template}: task {task.name} has templates 0 to {len(task.templates) - 1}"
        )
    filled = [task.templates[template].replace("%s", word).strip() for word in task.label_words]
    if method == "direct":
        filled = [" " + sentence for sentence in filled]
    else:
        texts = [" " + text for text in texts]
    # EOS counts: it tells a template from a longer one that begins with it.
    closed = [(*tokenizer.encode(sentence), tokenizer.eos_id) for sentence in filled]
    if len(set(closed)) < len(closed):
        raise InputError(
            f"--template={template}: two label words of task {task.name} give the same tokens"
        )
    room = _text_room(task, template, max(map(len, closed)), max_tokens)
    cut = [tuple(tokens[:room]) for tokens in tokenizer.encode_batch(texts)]
    for index, tokens in enumerate(cut):
        if not tokens:
            raise InputError(f"task {task.name}: text {index} has no tokens; remove it")
    if method == "channel":
        contexts = tuple(sentence[:-1] for sentence in closed)
        return [Encoded(contexts, ((*text, tokenizer.eos_id),) * len(closed)) for text in cut]
    shared = _common_prefix(closed)
    continuations = tuple(sentence[len(shared) :] for sentence in closed)
    return [Encoded((text + shared,) * len(closed), continuations) for text in cut]


def _text_room(task: Task, template: int, closed_length: int, max_tokens: int | None) -> int:
    """The most tokens that a text may have beside `closed_length` tokens of template and EOS."""
    room = task.max_length - TEMPLATE_ROOM
    if max_tokens is None:
        return room
    if max_tokens <= closed_length:
        raise InputError(
            f"--template={template}: takes {closed_length} of the {max_tokens} positions that "
            "--prompt_length leaves, and the text needs one; shorten the prompt or the template"
        )
    return min(room, max_tokens - closed_length)


def _common_prefix(sequences: Sequence[Tokens]) -> Tokens:
    first, *others = sequences
    length = 0
    while all(other[: length + 1] == first[: length + 1] for other in others):
        length += 1
    return first[:length]
