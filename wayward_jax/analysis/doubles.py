"""Doubles: prompts that are tuned from an audited prompt to read as other texts."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from wayward_jax.analysis import statistics
from wayward_jax.analysis.selection import F1_THRESHOLD
from wayward_jax.analysis.statistics import Interval, Ratio
from wayward_jax.runs import NEAREST_TOKENS, Run


class Tuned(Protocol):
    """A tuned prompt: a `RunRecord` or an `Imitation`."""

    @property
    def run(self) -> Run:
        """Its definition."""

    @property
    def reading(self) -> str:
        """The reading by which it is held to its target."""

    @property
    def prompt_f1(self) -> float | None:
        """F1 of what it reads as against its target."""


AnyTuned = TypeVar("AnyTuned", bound=Tuned)
Cost = TypeVar("Cost", Interval, Ratio)


@dataclasses.dataclass(frozen=True, eq=False)
class Double(Generic[AnyTuned, Cost]):
    """The prompts that were tuned from the audited one to read as another text.

    Attributes:
        reading: by which they are to read as it, see `RunRecord.reading`.
        target_name: the name of the text.
        text: the text, as long as the prompt.
        tries: the prompts.
        best: the best of those that read as the text; None if none does.
        cost: how much worse `best` is than the audited prompt, in percent; NaN if there is none.
            The intervals of all texts hold together at the level of one interval elsewhere.
    """

    reading: str
    target_name: str
    text: str
    tries: tuple[AnyTuned, ...]
    best: AnyTuned | None
    cost: Cost

    def verdict(self, margin: float) -> str:
        """Tells whether it does as well: `within` if its cost is at most the margin.

        It is `cannot tell` where no try reads as the text, too.
        """
        return statistics.judge(self.cost, margin)


def find_doubles(
    prompts: Iterable[AnyTuned],
    loss: Callable[[AnyTuned], float],
    cost: Callable[[AnyTuned], Cost],
    unknown: Cost,
) -> tuple[Double[AnyTuned, Cost], ...]:
    """Makes a double of all prompts that are held to one text by one reading.

    If each of many texts were judged alone, then one might have a double by chance. So the
    intervals of the texts of a reading hold together (Bonferroni).

    Args:
        prompts: the tuned prompts.
        loss: by which the best of several is chosen.
        cost: of the best.
        unknown: the cost where there is none.
    """
    tried: dict[tuple[str, str], list[AnyTuned]] = {}
    for each in prompts:
        tried.setdefault((each.reading, each.run.target_name), []).append(each)
    texts = Counter(reading for reading, _ in tried)
    doubles = []
    for (reading, name), tries in tried.items():
        faithful = [each for each in tries if (each.prompt_f1 or 0.0) >= F1_THRESHOLD]
        best = min(faithful, key=loss, default=None)
        of_best = unknown if best is None else cost(best)
        of_best = dataclasses.replace(of_best, level=1 - (1 - of_best.level) / texts[reading])
        doubles.append(Double(reading, name, tries[0].run.target_text, tuple(tries), best, of_best))
    return tuple(doubles)


def by_reading(
    doubles: Iterable[Double[AnyTuned, Cost]],
) -> dict[str, list[Double[AnyTuned, Cost]]]:
    """The doubles of each reading, nearest tokens first."""
    found: dict[str, list[Double[AnyTuned, Cost]]] = {}
    for double in sorted(doubles, key=lambda double: double.reading != NEAREST_TOKENS):
        found.setdefault(double.reading, []).append(double)
    return found


def read_off(count: int, total: int, aside: str = "") -> str:
    """Says how many of the other texts are read off prompts; `aside` says what these texts are."""
    texts = f"{count} of {total} other texts{f', {aside},' if aside else ''}"
    return f"{texts} {'is read off a prompt' if count == 1 else 'are read off prompts'}"
