"""What tokens read as, and how much that has in common with a target."""

import dataclasses
from collections.abc import Sequence

from wayward_jax import metrics
from wayward_jax.models.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Reading:
    """The nearest tokens of a prompt, compared with a target (None without one).

    Attributes:
        ids: `d_proj` of the prompt, L tokens.
        text: their text.
        prompt_f1: F1 of the text's words (the paper's).
        token_f1: F1 of the tokens.
    """

    ids: tuple[int, ...]
    text: str
    prompt_f1: float | None
    token_f1: float | None


def read_tokens(
    tokenizer: Tokenizer, ids: Sequence[int], target_text: str, target_ids: Sequence[int]
) -> Reading:
    """Reads L tokens; without a target its `target_ids` are empty."""
    text = tokenizer.decode(ids)
    if not target_ids:
        return Reading(tuple(ids), text, None, None)
    return Reading(
        tuple(ids),
        text,
        metrics.prompt_f1(text, target_text),
        metrics.token_f1(ids, target_ids),
    )
