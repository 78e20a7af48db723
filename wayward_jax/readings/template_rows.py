"""Rows of tokens in which templates stand around a prompt, for verbal readings.

All templates with the same text before the prompt are one row: that text and the prompt are
computed once, and what follows is a branch for each template, which attends to both.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from wayward_jax.models import LanguageModel

# Where the prompt stands in a template.
PLACE = "{prompt}"

# The token that stands in the prompt's place where hidden states are patched.
PLACEHOLDER = " x"


@dataclasses.dataclass(frozen=True)
class Row:
    """The tokens of a row: before the prompt, the prompt's, and a branch for each template.

    Attributes:
        templates: M texts, which have the same text before the prompt.
        before: the tokens before the prompt, BOS among them.
        placeholder: the token at each place of the prompt.
        length: L, of the prompt.
        afters: the tokens of each template after the prompt.
        tokens: N, of each continuation.
    """

    templates: tuple[str, ...]
    before: tuple[int, ...]
    placeholder: int
    length: int
    afters: tuple[tuple[int, ...], ...]
    tokens: int

    @property
    def ids(self) -> np.ndarray:
        """`[S]` int32, the tokens of all slots; those of continuations are not known, and are 0."""
        unknown = (0,) * self.tokens
        parts = [self.before, (self.placeholder,) * self.length]
        parts += [part for after in self.afters for part in (after, unknown)]
        return np.concatenate([np.asarray(part, np.int32) for part in parts])

    @property
    def branch(self) -> np.ndarray:
        """`[S]` int32, 0 for what all templates share, and else the number of the template from 1.

        Slots of a template stand together.
        """
        sizes = [len(self.before) + self.length, *(len(a) + self.tokens for a in self.afters)]
        return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)

    @property
    def prompt(self) -> slice:
        """The slots of the prompt."""
        return slice(len(self.before), len(self.before) + self.length)

    @property
    def continued(self) -> np.ndarray:
        """`[M, N]` int32, the slots of the continuations; the slot before each predicts it."""
        ends = np.cumsum([len(after) + self.tokens for after in self.afters])
        first = len(self.before) + self.length + ends - self.tokens
        return (first[:, None] + np.arange(self.tokens)).astype(np.int32)

    def place(self, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Gives the positions `[R, S]` and attention masks `[R, S, S]` of rows.

        Args:
            mask: `[R, L]` bool, False where a prompt is padded. Nothing attends to padding, and
                positions go on as if it were not there.
        """
        branch = self.branch
        used = jnp.ones((len(mask), len(branch)), bool).at[:, self.prompt].set(mask)
        counted = jnp.cumsum(used, axis=1)
        shared = counted[:, self.prompt.stop - 1, None]
        inside = np.arange(len(branch)) - np.searchsorted(branch, branch)
        positions = jnp.where(branch == 0, jnp.maximum(counted - 1, 0), shared + inside)
        slots = np.arange(len(branch))
        seen = (branch == 0) | (branch == branch[:, None])
        seen &= slots <= slots[:, None]
        return positions, (seen & used[:, None]) | np.eye(len(branch), dtype=bool)


def make_rows(
    model: LanguageModel, templates: Sequence[str], length: int, tokens: int
) -> list[Row]:
    """The rows of templates: one for each text that stands before the prompt."""
    groups: dict[str, list[str]] = {}
    for template in templates:
        groups.setdefault(template.partition(PLACE)[0], []).append(template)
    tokenizer = model.tokenizer
    return [
        Row(
            templates=tuple(group),
            before=_behind_bos(model, tokenizer.encode(before)),
            placeholder=tokenizer.encode_continuations([PLACEHOLDER])[0][-1],
            length=length,
            afters=tuple(
                map(
                    tuple,
                    tokenizer.encode_continuations([each.partition(PLACE)[2] for each in group]),
                )
            ),
            tokens=tokens,
        )
        for before, group in groups.items()
    ]


def _behind_bos(model: LanguageModel, ids: Sequence[int]) -> tuple[int, ...]:
    """Puts BOS before the tokens of a template, if it does not begin with it already."""
    count = len(model.bos_ids)
    return tuple(ids) if tuple(ids[:count]) == model.bos_ids else (*model.bos_ids, *ids)
