"""What a target is."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Target:
    """A text that a prompt shall read as.

    The ids are what counts: for some tokenizers `decode(encode(text))` is not `text`.

    Attributes:
        name: its set and its name there, such as `instructions/07`; unique among those loaded.
        text: the text.
        ids: its L tokens.
    """

    name: str
    text: str
    ids: tuple[int, ...]
