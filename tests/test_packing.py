"""Packing: by hand where it is small, and as properties where it is not."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import toy_models
from wayward_jax.packing import (
    PackedShape,
    example_order,
    first_fit,
    gold_segments,
    label_segments,
    make_segment,
    pack_segments,
    padded,
    size_classes,
    sizes,
    spread,
)
from wayward_jax.tasks import Encoded

# One run with an example of two labels and an example of one, and a run with one example.
BY_HAND = [
    [make_segment([5, 6], {0: [7, 9], 1: [8, 9]}, 0), make_segment([4], {0: [3, 9]}, 2)],
    [make_segment([2, 1, 2], {0: [9]}, 0)],
]


def assert_fields(struct, **expected):
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(struct, name), values, err_msg=name)


def of_length(length):
    return make_segment([1] * length, {0: [2]}, 0)


def least_shape(runs, slots=16):
    """The least shape that `runs` of segments fit, not padded to any grain."""
    tokens, queries, predictions = sizes([p for run in runs for p in run]).sum(axis=0)
    last = [first_fit(sizes(run)[None, :, 0], slots).max(initial=-1) for run in runs]
    used = [int(slot // slots + 1) for slot in last]
    return PackedShape(int(tokens), int(queries), int(predictions), sum(used), max(used), slots)


lengths = st.lists(st.integers(1, 20), max_size=40)


def test_continuations_branch_off_the_context():
    assert_fields(
        make_segment([5, 6], {0: [7, 8, 9], 1: [4, 9]}, first_score=10),
        ids=[5, 6, 7, 8, 4],
        positions=[0, 1, 2, 3, 2],
        branch=[0, 0, 1, 1, 2],
        query=[1, 2, 3, 4],
        of=[0, 1, 2, 0, 3],
        target=[7, 8, 9, 4, 9],
        score=[10, 10, 10, 11, 11],
        weight=[1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2],
    )


def test_a_continuation_of_one_token_takes_no_slot():
    assert_fields(
        make_segment([5, 6], {2: [7]}, first_score=3),
        ids=[5, 6],
        positions=[0, 1],
        branch=[0, 0],
        query=[1],
        of=[0],
        target=[7],
        score=[5],
        weight=[1],
    )


def test_the_first_prediction_of_all_labels_is_one_query():
    p = make_segment([5, 6], {label: [7 + label] for label in range(6)}, 0)
    assert_fields(p, ids=[5, 6], query=[1], of=[0] * 6, target=[7, 8, 9, 10, 11, 12])


def test_training_reads_the_gold_label_alone():
    example = Encoded(((1, 2), (3,)), ((4, 5), (6, 7, 8)))
    first, second = gold_segments([example, example], [0, 1])
    assert_fields(first, ids=[1, 2, 4], query=[1, 2], target=[4, 5], score=[0, 0])
    assert_fields(second, ids=[3, 6, 7], query=[0, 1, 2], target=[6, 7, 8], score=[0, 0, 0])


def test_labels_of_equal_context_share_it():
    direct = Encoded(((1, 2),) * 3, ((3, 9), (4, 9), (5, 9)))
    (shared,) = label_segments([direct])
    assert_fields(shared, ids=[1, 2, 3, 4, 5], branch=[0, 0, 1, 2, 3], score=[0, 0, 1, 1, 2, 2])

    channel = Encoded(((1, 2), (3, 4), (1, 2)), ((5, 9),) * 3)
    segments = label_segments([direct, channel])[1:]
    assert_fields(segments[0], ids=[1, 2, 5, 5], branch=[0, 0, 1, 3], score=[3, 3, 5, 5])
    assert_fields(segments[1], ids=[3, 4, 5], branch=[0, 0, 2], score=[4, 4])


@given(lengths, st.integers(20, 60))
def test_windows_are_never_overfull_and_pieces_never_overlap(lengths, slots):
    (start,) = first_fit(np.array([lengths], np.int64), slots)
    taken = [
        slot for s, length in zip(start, lengths, strict=True) for slot in range(s, s + length)
    ]
    assert len(set(taken)) == len(taken)
    for first, length in zip(start.tolist(), lengths, strict=True):
        assert first // slots == (first + length - 1) // slots


@given(lengths, st.integers(20, 60))
def test_at_most_one_window_is_at_most_half_full(lengths, slots):
    (start,) = first_fit(np.array([lengths], np.int64), slots)
    filled = np.bincount(start // slots, weights=lengths)
    assert (2 * filled <= slots).sum() <= 1


@given(st.lists(st.lists(st.integers(0, 20), min_size=5, max_size=5), min_size=1, max_size=6))
def test_many_packings_are_made_as_each_alone(packings):
    together = first_fit(np.array(packings), 24)
    alone = [first_fit(np.array([lengths]), 24)[0] for lengths in packings]
    np.testing.assert_array_equal(together, alone)


@given(lengths, st.integers(1, 5))
def test_pieces_are_spread_evenly_and_none_is_lost(lengths, n_parts):
    parts = spread(list(map(of_length, lengths)), n_parts)
    filled = [[len(p.ids) for p in part] for part in parts]
    assert len(parts) == n_parts
    assert sorted(length for part in filled for length in part) == sorted(lengths)
    totals = list(map(sum, filled))
    assert max(totals) - min(totals) <= max(lengths, default=0)


@given(st.integers(0, 100))
def test_padding_is_to_the_least_positive_multiple(size):
    assert padded(size) == min(n for n in range(8, 200, 8) if n >= size)


def waste(classes, sizes):
    """The padding, where each size is padded to the least class that holds it."""
    return sum(min(c for c in classes if c >= size) - size for size in sizes)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 4))
def test_size_classes_waste_the_least_of_all_choices(sizes, most):
    classes = size_classes(np.array(sizes), most, enough=1.0)
    values = sorted(set(sizes))
    choices = itertools.combinations(values, min(len(classes), len(values)))
    assert classes == sorted(classes)
    assert classes[-1] == max(sizes)
    assert set(classes) <= set(values)
    assert waste(classes, sizes) == min(waste(c, sizes) for c in choices if c[-1] == values[-1])


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    st.integers(1, 4),
    st.floats(0.5, 1.0),
)
def test_there_are_no_more_size_classes_than_needed(sizes, most, enough):
    classes = size_classes(np.array(sizes), most, enough)
    assert len(classes) <= most

    def mfu(n):
        values = sorted(set(sizes))
        choices = itertools.combinations(values, n)
        least = min(waste(c, sizes) for c in choices if c[-1] == values[-1])
        return sum(sizes) / (sum(sizes) + least)

    if len(classes) < min(most, len(set(sizes))):
        assert mfu(len(classes)) >= enough
    if len(classes) > 1:
        assert mfu(len(classes) - 1) < enough


def test_a_pack_of_two_runs_by_hand():
    assert_fields(
        pack_segments(BY_HAND, PackedShape(11, 8, 8, rows=4, run_rows=2, slots=5)),
        ids=[5, 6, 7, 8, 4, 3, 2, 1, 2, 0, 0],
        positions=[0, 1, 2, 2, 0, 1, 0, 1, 2, 0, 0],
        slot=[0, 1, 2, 3, 5, 6, 10, 11, 12, -1, -1],
        token=[[0, 1, 2, 3, -1], [4, 5, -1, -1, -1], [6, 7, 8, -1, -1], [-1] * 5],
        segment=[[0, 0, 0, 0, -1], [1, 1, -1, -1, -1], [2, 2, 2, -1, -1], [-1] * 5],
        branch=[[0, 0, 1, 2, 0], [0, 1, 0, 0, 0], [0] * 5, [0] * 5],
        run=[0, 0, 1, -1],
        rows=[[0, 1], [2, -1]],
        query=[1, 2, 3, 4, 5, 8, 0, 0],
        of=[0, 1, 0, 2, 3, 4, 5, 0],
        target=[7, 9, 8, 9, 3, 9, 9, 0],
        score=[0, 0, 1, 1, 2, 2, 0, 0],
        weight=[0.5] * 6 + [1, 0],
    )


def test_tokens_see_the_context_and_their_own_branch():
    pack = pack_segments(BY_HAND, PackedShape(11, 8, 8, rows=2, run_rows=1, slots=7))
    prompt_mask = np.array([[True, True, False], [True, True, True]])
    layout = pack.layout(prompt_mask)
    first_run = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]
    assert layout.attention_mask.shape == (2, 7, 7)
    np.testing.assert_array_equal(layout.attention_mask[0], np.array(first_run, bool))
    np.testing.assert_array_equal(layout.attention_mask[1, :3, :3], np.tri(3, dtype=bool))
    assert not layout.attention_mask[1, 3:, :3].any()
    assert not layout.attention_mask[1, :3, 3:].any()
    np.testing.assert_array_equal(layout.positions[:9], [2, 3, 4, 4, 2, 3, 3, 4, 5])
    np.testing.assert_array_equal(layout.prompt_mask, prompt_mask)


def test_tokens_know_their_run():
    pack = pack_segments(BY_HAND, PackedShape(9, 8, 8, rows=3, run_rows=2, slots=5))
    np.testing.assert_array_equal(pack.token_run(), [0] * 6 + [1] * 3)


def read_back(pack):
    """By run and score: the sequences up to each prediction, in order, as `layout` has them."""
    layout = pack.layout(np.ones((len(pack.rows), 0), bool))
    visible = np.asarray(layout.attention_mask)
    assert visible.diagonal(axis1=1, axis2=2).all()  # no softmax runs over nothing
    slots = pack.token.shape[1]
    read = {}
    for k in np.flatnonzero(pack.weight):
        at = pack.query[pack.of[k]]
        row, slot = divmod(pack.slot[at], slots)
        run = pack.run[row]
        assert row in pack.rows[run]
        seen = pack.token[row][visible[row, slot]]
        np.testing.assert_array_equal(layout.positions[seen], np.arange(len(seen)))
        sequence = (*pack.ids[seen].tolist(), pack.target[k].item())
        read.setdefault((run.item(), pack.score[k].item()), []).append(sequence)
    return read


@pytest.mark.parametrize("method", ["direct", "channel"])
@given(placed=st.lists(st.integers(-1, 3), min_size=12, max_size=12))
def test_every_prediction_keeps_its_token_and_its_context(method, placed):
    """Following queries back through a pack gives the examples again, wherever they stand.

    For four runs of unequal numbers of examples, some with none.
    """
    encoded = toy_models.examples(12, n_labels=2, seed=0, method=method)
    scores = [range(2 * number, 2 * number + 2) for number in range(12)]
    runs = [
        [p for p in label_segments(encoded) if placed[p.score[0] // 2] == run] for run in range(4)
    ]
    read = read_back(pack_segments(runs, least_shape(runs)))
    expected = {}
    for run, example, own in zip(placed, encoded, scores, strict=True):
        for score, context, continuation in zip(own, *example, strict=True):
            whole = context + continuation
            if run >= 0:
                expected[run, score] = [
                    whole[: len(whole) - i] for i in reversed(range(len(continuation)))
                ]
    assert read == expected


@given(st.integers(1, 30), st.integers(1, 100), st.integers(0, 2**32))
def test_every_epoch_is_a_permutation(n_examples, count, seed):
    order = example_order(n_examples, count, seed)
    assert len(order) == count
    for first in range(0, count - n_examples + 1, n_examples):
        assert sorted(order[first : first + n_examples]) == list(range(n_examples))
    assert len(set(order[-(count % n_examples) :].tolist())) == (count % n_examples or n_examples)


@given(st.integers(1, 30), st.integers(1, 100), st.integers(1, 100))
def test_training_longer_begins_with_the_same_examples(n_examples, count, more):
    longer = example_order(n_examples, count + more, seed=3)
    np.testing.assert_array_equal(longer[:count], example_order(n_examples, count, seed=3))


def test_the_order_depends_on_the_seed_and_changes_from_epoch_to_epoch():
    order = example_order(50, 100, seed=1)
    np.testing.assert_array_equal(order, example_order(50, 100, seed=1))
    assert (order != example_order(50, 100, seed=2)).any()
    assert (order[:50] != order[50:]).any()
