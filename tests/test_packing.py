"""Packing: by hand where it is small, and as properties where it is not."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import toy_models
from tests.helpers.packs import numbered, pack_lists
from wayward_jax.packing import fitting_shape, needed_shapes
from wayward_jax.rows import fill_rows, row_sizes
from wayward_jax.segments import example_order, gold_segments, label_segments, make_segment
from wayward_jax.shapes import PackedShape, choose_shapes, padded
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


def packed(runs, prompt_lengths, shape):
    """One batch."""
    batches = pack_lists([runs], [prompt_lengths], shape)
    return jax.tree.map(lambda x: x[0], batches)


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
    first, second = gold_segments([example, example], [0, 1], range(2))
    assert_fields(first, ids=[1, 2, 4], query=[1, 2], target=[4, 5], score=[0, 0])
    assert_fields(second, ids=[3, 6, 7], query=[0, 1, 2], target=[6, 7, 8], score=[0, 0, 0])


def test_labels_of_equal_context_share_it():
    direct = Encoded(((1, 2),) * 3, ((3, 9), (4, 9), (5, 9)))
    (shared,) = label_segments([direct])
    assert_fields(shared, ids=[1, 2, 3, 4, 5], branch=[0, 0, 1, 2, 3], score=[0, 0, 1, 1, 2, 2])

    channel = Encoded(((1, 2), (3, 4), (1, 2)), ((5, 9),) * 3)
    segments = list(label_segments([direct, channel]))[1:]
    assert_fields(segments[0], ids=[1, 2, 5, 5], branch=[0, 0, 1, 3], score=[3, 3, 5, 5])
    assert_fields(segments[1], ids=[3, 4, 5], branch=[0, 0, 2], score=[4, 4])


batches_of_runs = st.lists(
    st.lists(
        st.tuples(st.integers(0, 9), st.lists(st.integers(1, 20), max_size=8)),
        min_size=3,
        max_size=3,
    ),
    min_size=1,
    max_size=4,
)


def filled(batches, slots):
    """The lengths of prompts and segments, and where `fill_rows` puts them."""
    most = max(len(own) for batch in batches for _, own in batch)
    of_segments = np.array(
        [[own + [0] * (most - len(own)) for _, own in batch] for batch in batches]
    ).reshape(len(batches), 3, most)
    of_prompts = np.array([[prompt for prompt, _ in batch] for batch in batches])
    return of_segments, of_prompts, *fill_rows(of_segments, of_prompts, slots)


@given(batches_of_runs, st.integers(29, 80))
def test_each_segment_stands_in_one_row_behind_a_copy_of_its_own_prompt(batches, slots):
    """And nothing overlaps."""
    of_segments, of_prompts, starts, copies = filled(batches, slots)
    for batch, own_starts in enumerate(starts):
        taken = []
        for run, prompt in enumerate(of_prompts[batch]):
            own_copies = copies[batch, run][copies[batch, run] >= 0]
            assert len(set(own_copies // slots)) == len(own_copies)
            taken += [slot for copy in own_copies for slot in range(copy, copy + prompt)]
            used_rows = set()
            for start, length in zip(own_starts[run], of_segments[batch, run], strict=True):
                if not length:
                    assert start == -1
                    continue
                taken += range(start, start + length)
                row = start // slots
                used_rows.add(row)
                assert row == (start + length - 1) // slots
                (copy,) = own_copies[own_copies // slots == row]
                assert copy + prompt <= start
            assert used_rows == set(own_copies // slots)  # no copy is for nothing
        assert len(set(taken)) == len(taken)


@given(lengths, st.integers(20, 60))
def test_at_most_one_row_of_a_run_without_prompt_is_at_most_half_full(lengths, slots):
    starts, _ = fill_rows(np.array([[lengths]], np.int64), np.zeros((1, 1), int), slots)
    filled = np.bincount(starts[0, 0] // slots, weights=lengths)
    assert (2 * filled <= slots).sum() <= 1


@given(batches_of_runs)
def test_many_batches_are_filled_as_each_alone(batches):
    _, _, *together = filled(batches, 40)
    for number, batch in enumerate(batches):
        _, _, *alone = filled([batch], 40)
        n = alone[0].shape[2]
        for ours, expected in zip(together, alone, strict=True):
            np.testing.assert_array_equal(ours[number, :, :n], expected[0])
            assert (ours[number, :, n:] == -1).all()


@given(st.integers(0, 100))
def test_padding_is_to_the_least_positive_multiple(size):
    assert padded(size) == min(n for n in range(8, 200, 8) if n >= size)


def test_lengths_of_rows_are_multiples_that_hold_the_longest_example():
    assert row_sizes(5, 125, 128) == [256, 384, 512]
    assert row_sizes(12, 500, 128) == [512]
    assert row_sizes(100, 600, 128) == [768]
    assert row_sizes(20, 450, 16) == [480, 496, 512]
    assert row_sizes(1000, 60, 64) == [1088, 1152, 1216]


needs = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12
)


@given(needs, needs, st.integers(1, 3))
def test_every_batch_fits_one_of_few_shapes(short, long, most):
    """Of rows of 8 and of 24 slots."""
    n = min(len(short), len(long))
    needed = np.array(
        [
            [(rows, slots, 1, queries, predictions) for rows, queries, predictions in own[:n]]
            for slots, own in ((8, short), (24, long))
        ]
    )
    shapes, mean = choose_shapes(needed, most)
    assert 1 <= len(shapes) <= most
    assert [shape.cost for shape in shapes] == sorted(shape.cost for shape in shapes)
    costs = []
    for batch in range(n):
        fitting = [
            shape
            for shape in shapes
            for own in needed[:, batch]
            if own[1] == shape.slots and (own <= np.array(shape)).all()
        ]
        costs.append(fitting[0].cost)
    np.testing.assert_allclose(mean, np.mean(costs))
    largest = min(
        PackedShape(*own.max(axis=0).tolist()).cost for own in needed
    )  # of a single shape
    assert mean <= largest * (1 + 1e-9)


def test_the_least_shape_of_batches_fits_each():
    runs = [[[of_length(9)] * 3, [of_length(2)]], [[], [of_length(16)]]]
    prompts = np.array([[4, 1], [4, 0]])
    # Rows of 16: 4 + 9 three times, and 1 + 2 behind the first; then 0 + 16.
    np.testing.assert_array_equal(
        needed_shapes(*numbered(runs), prompts, 16), [[3, 16, 3, 8, 8], [1, 16, 1, 8, 8]]
    )
    assert fitting_shape(*numbered(runs), prompts, 16) == PackedShape(3, 16, 3, 8, 8)


def test_a_batch_of_two_runs_by_hand():
    """Prompts of 2 vectors and of 1."""
    assert_fields(
        packed(BY_HAND, [2, 1], PackedShape(rows=3, slots=7, copies=2, queries=8, predictions=8)),
        ids=[[0, 0, 5, 6, 7, 8, 0], [0, 0, 4, 3, 0, 0, 0], [0, 2, 1, 2, 0, 0, 0]],
        positions=[[0, 1, 2, 3, 4, 4, 0], [0, 1, 2, 3, 0, 0, 0], [0, 1, 2, 3, 0, 0, 0]],
        run=[[0] * 6 + [-1], [0] * 4 + [-1] * 3, [1] * 4 + [-1] * 3],
        segment=[[0, 0, 1, 1, 1, 1, 0], [0, 0, 2, 2, 0, 0, 0], [0, 3, 3, 3, 0, 0, 0]],
        branch=[[0, 0, 0, 0, 1, 2, 0], [0, 0, 0, 1, 0, 0, 0], [0] * 7],
        prompt_lengths=[2, 1],
        copies=[[0, 7], [14, -1]],
        query=[3, 4, 5, 9, 10, 17, 0, 0],
        of=[0, 1, 0, 2, 3, 4, 5, 0],
        target=[7, 9, 8, 9, 3, 9, 9, 0],
        score=[0, 0, 1, 1, 2, 2, 0, 0],
        weight=[0.5] * 6 + [1, 0],
    )


def test_the_packs_of_a_step_share_its_rows():
    shape = PackedShape(rows=4, slots=7, copies=2, queries=8, predictions=8)
    whole = packed(BY_HAND, [2, 1], shape)
    halves = pack_lists([BY_HAND], [[2, 1]], shape._replace(rows=2), packs=2)
    for name in ("ids", "positions", "run", "branch"):
        np.testing.assert_array_equal(np.concatenate(getattr(halves, name)), getattr(whole, name))
    np.testing.assert_array_equal(halves.copies, [[[0, 7], [-1, -1]], [[-1, -1], [0, -1]]])
    np.testing.assert_array_equal(halves.prompt_lengths, [[2, 1], [2, 1]])
    np.testing.assert_array_equal(
        halves.query, [[3, 4, 5, 9, 10, 0, 0, 0], [3, 0, 0, 0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(halves.target[halves.weight > 0], [7, 9, 8, 9, 3, 9, 9])
    np.testing.assert_array_equal(halves.of[1], [0] * 8)


def test_slots_attend_to_their_prompt_the_context_and_their_own_branch():
    shape = PackedShape(rows=1, slots=14, copies=1, queries=8, predictions=8)
    pack = packed(BY_HAND, [2, 1], shape)
    first_run = [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 0, 1, 1],
    ]
    mask = np.asarray(pack.attention_mask())
    assert mask.shape == (1, 14, 14)
    np.testing.assert_array_equal(mask[0, :8, :8], np.array(first_run, bool))
    np.testing.assert_array_equal(mask[0, 8:12, 8:12], np.tri(4, dtype=bool))
    assert not mask[0, 8:, :8].any()
    assert not mask[0, :12, 12:].any()
    assert mask[0].diagonal().all()
    np.testing.assert_array_equal(pack.is_prompt()[0], [1, 1] + [0] * 6 + [1] + [0] * 5)
    np.testing.assert_array_equal(pack.prediction_runs()[:7], [0] * 6 + [1])


def test_a_prompt_without_vectors_is_no_prompt():
    shape = PackedShape(rows=1, slots=9, copies=1, queries=8, predictions=8)
    pack = packed(BY_HAND, [0, 0], shape)
    assert not pack.is_prompt().any()
    np.testing.assert_array_equal(pack.ids, [[5, 6, 7, 8, 4, 3, 2, 1, 2]])
    np.testing.assert_array_equal(pack.positions, [[0, 1, 2, 2, 0, 1, 0, 1, 2]])


def read_back(pack):
    """By run and score: the sequences up to each prediction, in order, as the mask has them."""
    visible = np.asarray(pack.attention_mask())
    assert visible.diagonal(axis1=1, axis2=2).all()  # no softmax runs over nothing
    read = {}
    for k in np.flatnonzero(pack.weight):
        row, slot = divmod(pack.query[pack.of[k]], pack.ids.shape[1])
        run = pack.run[row, slot]
        seen = visible[row, slot]
        np.testing.assert_array_equal(pack.positions[row][seen], np.arange(seen.sum()))
        assert (pack.run[row][seen] == run).all()
        prompt = np.flatnonzero(seen)[: pack.prompt_lengths[run]]
        assert pack.is_prompt()[row][prompt].all()
        assert len(prompt) == 0 or row * pack.ids.shape[1] + prompt[0] in pack.copies[run]
        tokens = pack.ids[row][seen][len(prompt) :]
        sequence = (*tokens.tolist(), pack.target[k].item())
        read.setdefault((run.item(), pack.score[k].item()), []).append(sequence)
    return read


@pytest.mark.slow
@pytest.mark.parametrize("method", ["direct", "channel"])
@given(
    placed=st.lists(st.integers(-1, 3), min_size=12, max_size=12),
    prompts=st.lists(st.integers(0, 9), min_size=4, max_size=4),
    slots=st.sampled_from([40, 57, 80]),  # each shape of a mask is compiled
)
def test_every_prediction_keeps_its_prompt_its_token_and_its_context(
    method, placed, prompts, slots
):
    """Following queries back through a batch gives the examples again, wherever they stand.

    For four runs of unequal prompts and numbers of examples, some with none.
    """
    encoded = toy_models.examples(12, n_labels=2, seed=0, method=method)
    scores = [range(2 * number, 2 * number + 2) for number in range(12)]
    runs = [
        [p for p in label_segments(encoded) if placed[p.score[0] // 2] == run] for run in range(4)
    ]
    read = read_back(
        packed(runs, prompts, fitting_shape(*numbered([runs]), np.array([prompts]), slots))
    )
    expected = {}
    for run, example, own in zip(placed, encoded, scores, strict=True):
        for score, context, continuation in zip(own, *example, strict=True):
            whole = context + continuation
            if run >= 0:
                expected[run, score] = [
                    whole[: len(whole) - i] for i in reversed(range(len(continuation)))
                ]
    assert read == expected


def test_batches_packed_together_are_those_packed_alone():
    """Only the numbers that tell segments apart count on."""
    batches, prompts = [BY_HAND, BY_HAND[::-1], [[], []]], np.array([[2, 1], [0, 3], [1, 1]])
    shape = fitting_shape(*numbered(batches), prompts, 16)
    together = pack_lists(batches, prompts, shape)
    for number, (runs, own) in enumerate(zip(batches, prompts, strict=True)):
        alone = packed(runs, own, shape)
        for name, expected in vars(alone).items():
            if name != "segment":
                np.testing.assert_array_equal(getattr(together, name)[number], expected, name)
        same = jax.tree.map(lambda x: x[number], together)  # noqa: B023
        np.testing.assert_array_equal(same.attention_mask(), alone.attention_mask())


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
