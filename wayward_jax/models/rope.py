"""The rotary embeddings of models: their frequencies, and the scalings of these."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from wayward_jax.models.rotary import Rotary

# The entries that each kind of scaling needs. A dynamic scaling changes nothing within the
# positions that a model was made for, and no text here is longer.
SCALINGS = {
    "default": (),
    "dynamic": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": ("factor",),
    "longrope": ("short_factor",),
}


@dataclasses.dataclass(frozen=True)
class Rope:
    """The rotary embedding of a layer.

    Attributes:
        channels: the number of channels of each head that are rotated, the first ones.
        theta: the base of the frequencies.
        rope_type: `default`; `linear` divides all frequencies by `factor`; `llama3` divides the low
            ones, and `yarn` the low ones of another range (YaRN, Peng et al., 2023, section 3.2);
            `longrope` divides each by its own number (LongRoPE, Ding et al., 2024).
        factor: the divisor.
        low_freq_factor: of `llama3`: frequencies that turn fewer times than this within the
            original context are divided.
        high_freq_factor: of `llama3`: frequencies that turn more times than this are kept.
        original_max_position_embeddings: the original context, in tokens.
        beta_fast: of `yarn`: frequencies that turn more times than this within the original context
            are kept.
        beta_slow: of `yarn`: frequencies that turn fewer times than this are divided.
        truncate: of `yarn`: the bounds between the frequencies are whole numbers.
        divisors: of `longrope`: the divisors of the frequencies for texts within the original
            context.
        magnitude: a factor of cosines and sines.
    """

    channels: int
    theta: float = 10000.0
    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    divisors: tuple[float, ...] = ()
    magnitude: float = 1.0

    def frequencies(self) -> np.ndarray:
        """Computes the radians per position of each pair of channels: `[channels / 2]` float32.

        Raises:
            ValueError: a frequency is not finite, or there is another number of divisors.
        """
        powers = np.arange(0, self.channels, 2, dtype=np.float64) / self.channels
        with np.errstate(all="ignore"):  # what is not finite is refused below
            frequencies = self.theta**-powers
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        match self.rope_type:
            case "linear":
                frequencies = frequencies / self.factor
            case "llama3":
                low, high = self.low_freq_factor, self.high_freq_factor
                frequencies = _between(frequencies, self.factor, (turns - low) / (high - low))
            case "yarn":
                first, last = self._place(self.beta_fast), self._place(self.beta_slow)
                if self.truncate:
                    first, last = math.floor(first), math.ceil(last)
                first, last = max(first, 0), min(last, self.channels - 1)
                passed = (np.arange(len(powers)) - first) / max(last - first, 1e-3)
                frequencies = _between(frequencies, self.factor, 1 - passed)
            case "longrope":
                if len(self.divisors) != len(frequencies):
                    raise ValueError(
                        f"short_factor has {len(self.divisors)} numbers, not {len(frequencies)}"
                    )
                frequencies = frequencies / np.array(self.divisors)
        if not np.isfinite(frequencies).all():
            raise ValueError(f"{self} gives frequencies that are not finite")
        return frequencies.astype(np.float32)

    def _place(self, turns: float) -> float:
        """The number, in general a fraction, of the frequency that turns so often."""
        reach = self.original_max_position_embeddings / (turns * 2 * math.pi)
        return self.channels * math.log(reach) / (2 * math.log(self.theta))

    def rotary(self, positions: jax.Array, head_dim: int) -> Rotary:
        """Makes the rotation of heads of width `head_dim` at `positions` `[T]`."""
        angles = positions[:, None] * self.frequencies()
        return Rotary.by(angles, head_dim, self.magnitude)


def _between(frequencies: np.ndarray, factor: float, keep: np.ndarray) -> np.ndarray:
    """Keeps a frequency where `keep` is 1 or more, and divides it by `factor` where it is 0."""
    keep = np.clip(keep, 0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / factor


def read_rope(
    entries: Mapping[str, Any], head_dim: int, theta: float = 10000.0, partial: float | None = None
) -> Rope:
    """Reads the rotary embedding that the entries of a `config.json` describe.

    transformers 5 writes them as `rope_parameters`; earlier versions wrote `rope_theta` and
    `rope_scaling`, which count if both are there.

    Args:
        entries: of the `config.json`.
        head_dim: d.
        theta: the base if there is no entry for it.
        partial: the share of a head's channels that is rotated if there is no entry for it. None
            means that all are, and that an entry may not say otherwise.

    Raises:
        ValueError: an entry is missing, of the wrong kind or not supported.
    """
    rope = entries.get("rope_scaling") or entries.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"the rope scaling is {rope!r}, which is of the wrong kind")

    def entry(name: str, default: Any) -> Any:
        found = [each[name] for each in (rope, entries) if each.get(name) is not None]
        return found[0] if found else default

    # `su` is the name that Phi-3 first had for longrope.
    kind = {"su": "longrope"}.get(found := entry("rope_type", rope.get("type", "default")), found)
    if kind not in SCALINGS:
        raise ValueError(f"rope_type is {kind!r}, only {', '.join(SCALINGS)} are supported")
    if missing := [name for name in SCALINGS[kind] if name not in rope]:
        raise ValueError(f"the {kind} rope scaling lacks {missing[0]}")
    share = entry("partial_rotary_factor", partial or 1.0)
    if partial is None and share != 1:
        raise ValueError(f"partial_rotary_factor is {share!r}, only 1.0 is supported")
    channels = int(head_dim * share)
    plain = Rope(channels, entry("rope_theta", theta))
    limit = entries.get("max_position_embeddings", 0)
    match kind:
        case "linear":
            return dataclasses.replace(plain, rope_type=kind, factor=rope["factor"])
        case "llama3":
            numbers = {name: rope[name] for name in SCALINGS[kind]}
            return dataclasses.replace(plain, rope_type=kind, **numbers)
        case "yarn":
            return _yarn(plain, rope, limit)
        case "longrope":
            original = entries.get("original_max_position_embeddings") or rope.get(
                "original_max_position_embeddings", limit
            )
            return dataclasses.replace(
                plain,
                rope_type=kind,
                divisors=tuple(float(x) for x in rope["short_factor"]),
                original_max_position_embeddings=original,
                magnitude=_longrope_magnitude(rope, limit, original),
            )
    return plain


def _yarn(plain: Rope, rope: Mapping[str, Any], limit: int) -> Rope:
    named = {
        name: rope[name]
        for name in ("beta_fast", "beta_slow", "truncate", "original_max_position_embeddings")
        if rope.get(name) is not None
    }
    named.setdefault("original_max_position_embeddings", limit)
    magnitude = rope.get("attention_factor")
    if magnitude is None:
        magnitude = _yarn_magnitude(rope["factor"], rope.get("mscale"), rope.get("mscale_all_dim"))
    return dataclasses.replace(
        plain, rope_type="yarn", factor=rope["factor"], magnitude=magnitude, **named
    )


def _yarn_magnitude(factor: float, mscale: float | None, mscale_all: float | None) -> float:
    """The square root of YaRN's softmax temperature `1 / t` (YaRN, equation 22)."""

    def root(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    return root(mscale) / root(mscale_all) if mscale and mscale_all else root(1.0)


def _longrope_magnitude(rope: Mapping[str, Any], limit: int, original: int) -> float:
    """The factor that keeps the scores' entropy in a longer context (LongRoPE, section 3.3)."""
    if (given := rope.get("attention_factor")) is not None:
        return given
    factor = rope.get("factor") or limit / original
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
