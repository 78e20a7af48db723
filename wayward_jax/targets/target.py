"""What a target is."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Target:
    """A text that a prompt shall read as.

    Attributes:
      name: its set and its name there, such as `instructions/07`.
      text: the text.
      ids: its L tokens. They are what counts: not every tokenizer gives a text back as it was.
    """

    name: str
    text: str
    ids: tuple[int, ...]
