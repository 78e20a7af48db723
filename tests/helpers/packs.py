"""Segments and packs of nested lists of segments."""

import numpy as np

from wayward_jax.packing import pack_segments
from wayward_jax.segments import Segments, label_segments, make_segment
from wayward_jax.training.scoring import EvaluationSet, scoring_shape


def numbered(steps):
    """The segments of steps `[M][R][...]` in one, and their numbers `[M, R, B]`."""
    runs = [run for step in steps for run in step]
    segments = [segment for run in runs for segment in run]
    numbers = np.full((len(runs), max(1, *map(len, runs))), -1)
    first = 0
    for own, run in zip(numbers, runs, strict=True):
        own[: len(run)] = first + np.arange(len(run))
        first += len(run)
    joined = Segments.join(segments or [make_segment([0], {0: [0]}, 0)])
    return joined, numbers.reshape(len(steps), -1, numbers.shape[1])


def pack_lists(steps, prompt_lengths, shape, packs=1):
    """Packs the segments of steps `[M][R][...]`."""
    return pack_segments(*numbered(steps), np.asarray(prompt_lengths), shape, packs)


def evaluation_set(encoded, labels, *, prompt_length, tokens, row_grain=8):
    """Makes a set of encoded examples of as many labels as words."""
    segments = label_segments(encoded)
    shape = scoring_shape(
        [segments], prompt_length=prompt_length, tokens=tokens, row_grain=row_grain
    )
    words = tuple(range(len(encoded[0].continuations)))
    return EvaluationSet(segments, shape, np.asarray(labels, np.int32), words)
