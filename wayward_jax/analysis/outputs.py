"""Judges whether doubles keep what a prompt makes a model predict: audits without a task.

The divergence of a double's next-token predictions from the audited prompt's is compared with that
of no prompt at all, which undoes everything that the prompt does. A double keeps the predictions if
its divergence is at most `MARGIN` percent of that. Comparisons are of single prompts on texts that
the doubles were not tuned on, so intervals are over texts and say nothing about training.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from wayward_jax.analysis import statistics
from wayward_jax.analysis.doubles import Double, by_reading, find_doubles, read_off
from wayward_jax.analysis.statistics import BEYOND, CANNOT_TELL, WITHIN, Interval, Ratio
from wayward_jax.runs import NEAREST_TOKENS
from wayward_jax.training.imitation import Imitation, Outputs

# A double may diverge by so much, in percent of what leaving out the prompt does.
MARGIN = 10.0

# A prompt whose absence changes predictions by less, in nats a token, does nothing to explain.
LEAST_EFFECT = 0.01

# Divergences, in nats a token, are no more precise than this in float32.
ROUNDING = 1e-7

OutputsDouble = Double[Imitation, Ratio]


@dataclasses.dataclass(frozen=True, eq=False)
class OnTexts:
    """Compares what the prompt and its doubles make the model predict on N held-out texts.

    Attributes:
        reading: `[N]`, with the embeddings of the tokens that the prompt reads as.
        nothing: `[N]`, without a prompt.
        doubles: one for each reading that is to be deceived and each text.
    """

    reading: Outputs
    nothing: Outputs
    doubles: tuple[OutputsDouble, ...]

    @property
    def effect(self) -> Interval:
        """The divergence of no prompt, in nats a token."""
        return statistics.mean_of(self.nothing.kl)

    @property
    def has_effect(self) -> bool:
        """True if the prompt is shown to do more than `LEAST_EFFECT`."""
        return self.effect.low > LEAST_EFFECT


def on_texts(reading: Outputs, nothing: Outputs, imitations: Sequence[Imitation]) -> OnTexts:
    """Compares what was measured on the held-out texts; see `OnTexts`.

    Of several tries for a text, the one that diverges least on the texts that it was tuned on is
    the best. Its cost is its share of the divergence of no prompt.
    """
    doubles = find_doubles(
        imitations,
        lambda each: float(each.tuned.kl.mean()),
        lambda best: share_of(best.held_out.kl, nothing.kl),
        Ratio(math.nan),
    )
    return OnTexts(reading, nothing, doubles)


def share_of(kl: np.ndarray, of_nothing: np.ndarray) -> Ratio:
    """A mean divergence in percent of that of no prompt, over N texts: `[N]`, `[N]`."""
    return statistics.ratio(*(np.maximum(np.float64(x), ROUNDING) for x in (kl, of_nothing)))


def verdict(found: OnTexts, *, is_text: bool) -> str:
    """The verdict in a sentence; `is_text` tells whether the vectors are tokens' embeddings."""
    if not found.has_effect:
        return (
            "This prompt is not shown to change what the model predicts on these texts (without "
            f"it, predictions diverge by {found.effect.value:.2g} nats a token), so there is "
            "nothing that its reading could explain."
        )
    name, doubles = next(iter(by_reading(found.doubles).items()))
    return judge_reading(doubles, is_text=is_text and name == NEAREST_TOKENS)


def judge_reading(doubles: Sequence[OutputsDouble], *, is_text: bool = False) -> str:
    """The verdict on one reading, of which there are doubles."""
    verdicts = [double.verdict(MARGIN) for double in doubles]
    kept, count = verdicts.count(WITHIN), len(doubles)
    if is_text:
        others = (
            f"; all the same, {read_off(kept, count)} with which the model predicts nearly the "
            "same, so that a reading alone does not show it"
        )
        return (
            "This prompt is a text: its vectors are embeddings of tokens, so what it reads as is "
            f"what the model is given{others if kept else ''}."
        )
    if kept:
        return (
            f"{read_off(kept, count)} with which the model predicts nearly the same as with this "
            f"one (divergence at most {MARGIN:g} % of that without a prompt): what this prompt "
            "reads as does not tell what it does."
        )
    if all(each == BEYOND for each in verdicts):
        return (
            f"No double was found: with all prompts that read as another text ({count}), the model "
            f"predicts otherwise than with this one (divergence more than {MARGIN:g} % of that "
            "without a prompt), as hard as was tried here; this does not show that its reading is "
            "right."
        )
    return (
        f"It cannot be told whether this prompt's reading means anything: of the prompts for "
        f"{count} other texts, none is shown to keep what the model predicts, "
        f"{verdicts.count(BEYOND)} to change it, and for {verdicts.count(CANNOT_TELL)} there are "
        "too few texts, or no prompt reads as the text."
    )


def findings(found: OnTexts, *, is_text: bool) -> list[str]:
    """Further sentences: on the prompt's effect, its reading as a text, and other readings."""
    effect = found.effect
    said = [
        f"Without this prompt, the model's predictions on {len(found.nothing.kl)} texts diverge by "
        f"{effect.value:.3g} nats a token (95 % interval {effect.low:.3g} to {effect.high:.3g}), "
        f"and the likeliest token stays the same after {found.nothing.kept.mean():.0%} of tokens."
    ]
    if is_text:
        said.append("Put back as text, it is the same prompt.")
    elif found.has_effect:
        share = share_of(found.reading.kl, found.nothing.kl)
        keeps = {
            WITHIN: "keeps what the model predicts with the prompt",
            BEYOND: "does not keep what the model predicts with the prompt",
            CANNOT_TELL: "may keep what the model predicts or not, which cannot be told",
        }[statistics.judge(share, MARGIN)]
        said.append(
            f"Put back as text, the reading {keeps} (divergence {share.value:.0f} % of that "
            f"without a prompt, 95 % interval {share.low:.0f} to {share.high:.0f})."
        )
    if found.has_effect:
        _, *others = by_reading(found.doubles).items()
        said += [f"By the reading {name}: {judge_reading(own)}" for name, own in others]
    return said
