"""Packing: by hand where it is small, and as properties where it is not."""

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from wayward_jax.batching import (
    example_order,
    fill_rows,
    gold_pieces,
    label_pieces,
    piece,
    spread,
    to_batch,
    widths,
)
from wayward_jax.tasks import Encoded


def assert_fields(struct, **expected):
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(struct, name), values, err_msg=name)


def of_length(length):
    return piece([1] * length, {0: [2]}, 0)


lengths = st.lists(st.integers(1, 20), max_size=40)


def test_continuations_branch_off_the_context():
    assert_fields(
        piece([5, 6], {0: [7, 8, 9], 1: [4, 9]}, first_score=10),
        ids=[5, 6, 7, 8, 4],
        positions=[0, 1, 2, 3, 2],
        branch=[0, 0, 1, 1, 2],
        source=[1, 2, 3, 1, 4],
        target=[7, 8, 9, 4, 9],
        score=[10, 10, 10, 11, 11],
        weight=[1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2],
    )


def test_a_continuation_of_one_token_takes_no_slot():
    assert_fields(
        piece([5, 6], {2: [7]}, first_score=3),
        ids=[5, 6],
        positions=[0, 1],
        branch=[0, 0],
        source=[1],
        target=[7],
        score=[5],
        weight=[1],
    )


def test_training_reads_the_gold_label_alone():
    example = Encoded(((1, 2), (3,)), ((4, 5), (6, 7, 8)))
    first, second = gold_pieces([example, example], [0, 1])
    assert_fields(first, ids=[1, 2, 4], source=[1, 2], target=[4, 5], score=[0, 0])
    assert_fields(second, ids=[3, 6, 7], source=[0, 1, 2], target=[6, 7, 8], score=[0, 0, 0])


def test_labels_of_equal_context_share_it():
    direct = Encoded(((1, 2),) * 3, ((3, 9), (4, 9), (5, 9)))
    (shared,) = label_pieces([direct])
    assert_fields(shared, ids=[1, 2, 3, 4, 5], branch=[0, 0, 1, 2, 3], score=[0, 0, 1, 1, 2, 2])

    channel = Encoded(((1, 2), (3, 4), (1, 2)), ((5, 9),) * 3)
    pieces = label_pieces([direct, channel])[1:]
    assert_fields(pieces[0], ids=[1, 2, 5, 5], branch=[0, 0, 1, 3], score=[3, 3, 5, 5])
    assert_fields(pieces[1], ids=[3, 4, 5], branch=[0, 0, 2], score=[4, 4])


def test_a_row_of_two_pieces_by_hand():
    row = [piece([5, 6], {0: [7, 9], 1: [8, 9]}, 0), piece([4], {0: [3, 9]}, 2)]
    batch = to_batch([row, []], slots=7, predictions=8)
    assert_fields(
        batch,
        ids=[[5, 6, 7, 8, 4, 3, 0], [0] * 7],
        positions=[[0, 1, 2, 2, 0, 1, 0], [0] * 7],
        segment=[[0, 0, 0, 0, 1, 1, -1], [-1] * 7],
        branch=[[0, 0, 1, 2, 0, 1, 0], [0] * 7],
        source=[[1, 2, 1, 3, 4, 5, 0, 0], [0] * 8],
        target=[[7, 9, 8, 9, 3, 9, 0, 0], [0] * 8],
        score=[[0, 0, 1, 1, 2, 2, 0, 0], [0] * 8],
        weight=[[0.5] * 6 + [0, 0], [0] * 8],
    )


def test_tokens_see_the_context_and_their_own_branch():
    row = [piece([5, 6], {0: [7, 9], 1: [8, 9]}, 0), piece([4], {0: [3, 9]}, 2)]
    batch = to_batch([row], slots=7, predictions=8)
    prompt_mask = np.array([[True, True, False]])
    layout = batch.replace(**{k: v[None] for k, v in vars(batch).items()}).layout(prompt_mask)
    sees = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(layout.visible[0, 0], np.array(sees, bool))
    np.testing.assert_array_equal(layout.positions[0, 0, :6], [2, 3, 4, 4, 2, 3])


@given(lengths, st.integers(20, 60))
def test_rows_are_never_overfull_and_nothing_is_lost(lengths, slots):
    pieces = [of_length(length) for length in lengths]
    rows = fill_rows(pieces, slots)
    assert all(0 < sum(len(p.ids) for p in row) <= slots for row in rows)
    assert sorted(id(p) for row in rows for p in row) == sorted(map(id, pieces))


@given(lengths, st.integers(20, 60))
def test_at_most_one_row_is_less_than_half_full(lengths, slots):
    filled = [
        sum(len(p.ids) for p in row) for row in fill_rows(list(map(of_length, lengths)), slots)
    ]
    assert sum(2 * tokens <= slots for tokens in filled) <= 1


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([[3, 4], [32]], (32, 16)), ([[33], [1]], (64, 16)), ([[1] * 33, [5]], (64, 48))],
)
def test_widths_are_the_least_multiples_that_fit(lengths, expected):
    rows = [[of_length(length) for length in row] for row in lengths]
    assert widths(rows, of_slots=32, of_predictions=16) == expected


@given(lengths, st.integers(1, 5))
def test_pieces_are_spread_evenly_and_none_is_lost(lengths, n_rows):
    rows = spread(list(map(of_length, lengths)), n_rows)
    filled = [[len(p.ids) for p in row] for row in rows]
    assert len(rows) == n_rows
    assert sorted(length for row in filled for length in row) == sorted(lengths)
    totals = list(map(sum, filled))
    assert max(totals) - min(totals) <= max(lengths, default=0)


@given(st.lists(st.integers(0, 3), min_size=12, max_size=12))
def test_every_prediction_keeps_its_token_and_its_context(placed):
    """Following `source` back through a batch gives the examples again, wherever they stand."""
    encoded = tiny.examples(12, n_labels=2, seed=0)
    pieces = label_pieces(encoded)
    rows = [[p for p, row in zip(pieces, placed, strict=True) if row == n] for n in range(4)]
    batch = to_batch(rows, *widths(rows))
    read = {}
    for n, k in zip(*np.nonzero(batch.weight), strict=True):
        slot = batch.source[n, k]
        own = (batch.branch[n] == batch.branch[n, slot]) | (batch.branch[n] == 0)
        seen = own & (batch.segment[n] == batch.segment[n, slot]) & (np.arange(len(own)) <= slot)
        prefix = (*batch.ids[n, seen].tolist(), batch.target[n, k].item())
        read.setdefault(batch.score[n, k].item(), []).append(prefix)
    for number, example in enumerate(encoded):
        for label, continuation in enumerate(example.continuations):
            whole = example.contexts[label] + continuation
            expected = [whole[: len(whole) - i] for i in reversed(range(len(continuation)))]
            assert read[2 * number + label] == expected


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
