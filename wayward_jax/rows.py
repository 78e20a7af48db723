"""Which slots of which rows examples stand in (NumPy, on the host)."""

import numpy as np

# The fullest of so many open rows is closed when another row is opened.
OPEN_ROWS = 32

# More slots than any row has.
NO_ROOM = 2**20

# Longer rows are used only if an example needs them.
MAX_SLOTS = 512


def row_sizes(prompt_length: int, longest: int, grain: int) -> list[int]:
    """Lists the lengths of rows to choose from.

    Args:
        prompt_length: vectors of the longest prompt.
        longest: tokens of the longest example.
        grain: lengths are multiples of it.
    """
    shortest = -(-(prompt_length + longest) // grain)
    # Behind a long prompt there must be room for several examples, for each row repeats the prompt.
    enough = max(MAX_SLOTS, prompt_length + MAX_SLOTS // 2) // grain
    return [grain * n for n in range(shortest, max(shortest, enough) + 1)]


def fill_rows(
    lengths: np.ndarray, prompt_lengths: np.ndarray, slots: int
) -> tuple[np.ndarray, np.ndarray]:
    """Puts the segments of M batches into rows, each segment behind a copy of its run's prompt.

    Runs come one after the other, and the longest segments of a run first. Of the open rows, a
    segment comes into the fullest with a copy of its prompt and room for it, else into the fullest
    with room for both, else into a new row. A time per segment is the same for many batches.

    Args:
        lengths: `[M, R, B]`, tokens of the segments of R runs; 0 where a run has fewer.
        prompt_lengths: `[M, R]`, vectors of the runs' prompts. No segment and its prompt are
            together longer than `slots`.
        slots: S, the length of a row.

    Returns:
        The slot where each segment starts, and the slot where the copy of its prompt starts if the
        segment is the first behind that copy, else -1. Both are `[M, R, B]`, and the row is
        `slot // S`. The starts of segments without tokens are -1.
    """
    batches, runs, _ = lengths.shape
    longest_first = np.argsort(-lengths, axis=2, kind="stable")
    sorted_lengths = np.take_along_axis(lengths, longest_first, axis=2).astype(np.int32)
    counts = (lengths > 0).sum(axis=2).max(axis=0, initial=0)  # of each run
    starts, copies = np.full_like(lengths, -1), np.full_like(lengths, -1)
    n_rows = np.zeros(batches, np.int64)
    first_row = np.arange(batches) * OPEN_ROWS
    row = np.zeros(batches * OPEN_ROWS, np.int64)
    room = np.zeros(batches * OPEN_ROWS, np.int32)  # at first, no row is open
    for run in range(runs):
        prompt = prompt_lengths[:, run].astype(np.int32)
        left = room - prompt.repeat(OPEN_ROWS)  # for segments of this run
        rank = left.copy()  # of rows for them: the least is the best
        has_prompt = np.zeros_like(left, bool)
        for place in range(counts[run]):
            length = sorted_lengths[:, run, place]
            fits = left.reshape(batches, -1) >= length[:, None]
            best = np.where(fits, rank.reshape(batches, -1), NO_ROOM).argmin(axis=1) + first_row
            real = length > 0
            if (full := np.flatnonzero(real & ~fits.ravel()[best])).size:
                new = room.reshape(batches, -1)[full].argmin(axis=1) + first_row[full]
                best[full] = new  # in place of the fullest row, which is closed
                row[new], room[new], has_prompt[new] = n_rows[full], slots, False
                n_rows[full] += 1
            is_first = real & ~has_prompt[best]
            free, added = (row[best] + 1) * slots - room[best], np.where(is_first, prompt, 0)
            starts[:, run, place] = np.where(real, free + added, -1)
            copies[:, run, place] = np.where(is_first, free, -1)
            room[best] -= np.where(real, added + length, 0)
            has_prompt[best] |= real
            left[best] = room[best] - np.where(has_prompt[best], 0, prompt)
            rank[best] = left[best] - np.where(has_prompt[best], NO_ROOM, 0)
    for found in (starts, copies):
        np.put_along_axis(found, longest_first, found.copy(), axis=2)
    return starts, copies


def count_rows(starts: np.ndarray, slots: int) -> np.ndarray:
    """Counts the rows that `fill_rows` filled: `[M]`."""
    return starts.max(axis=(1, 2), initial=-1) // slots + 1
