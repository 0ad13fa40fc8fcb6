import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.data.hashing import hash_order, splitmix64, unmix64
from shoal.data.mixing import Mixing
from shoal.data.order import Cursor, Order, Steps, count_steps, deal
from shoal.plan.types import DataPlan, SourcePlan, Trajectory

LENGTHS = st.lists(st.integers(1, 32), min_size=1, max_size=120)


def order(lengths, seed=17, batch_size=4, packing=True) -> Order:
    lengths = np.array(lengths, np.int32)
    return Order(lengths, lengths - 1, seed, batch_size, 32, packing)


def batches(lengths, epochs=2, **options) -> list[list[list[int]]]:
    made = order(lengths, **options)
    return [[row.tolist() for row in made.batch(made.locate(step))] for step in range(1, made.steps(epochs, None) + 1)]


@given(LENGTHS, st.booleans(), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_each_sample_exactly_once_per_epoch_in_rows_within_length(lengths, packing, batch_size, seed):
    made = order(lengths, seed, batch_size, packing)
    for epoch in range(2):
        rows = [row for number in range(made.batches_of(epoch)) for row in made.batch(Cursor(epoch, number))]
        assert sorted(np.concatenate(rows).tolist()) == list(range(len(lengths)))
        assert all(made.lengths[row].sum() <= 32 for row in rows)
        assert packing or all(len(row) == 1 for row in rows)
        assert [len(made.batch(Cursor(epoch, number))) for number in range(made.batches_of(0) - 1)] == [batch_size] * (
            made.batches_of(0) - 1
        )


@given(LENGTHS, st.booleans(), st.integers(1, 9))
def test_dealing_to_any_world_gives_the_same_global_batches(lengths, packing, batch_size):
    made = order(lengths, batch_size=batch_size, packing=packing)
    for step in range(1, made.batches_of(0) + 1):
        rows = made.batch(made.locate(step))
        tokens = [int(made.lengths[row].sum()) for row in rows]
        for workers in range(1, 65):
            dealt = deal(tokens, workers, 2)
            assert sorted(row for rank in dealt for micro in rank for row in micro) == list(range(len(rows)))


@given(st.lists(st.integers(1, 512), min_size=1, max_size=40), st.integers(1, 64), st.integers(1, 5))
def test_every_rank_takes_equally_many_micro_steps(row_lengths, workers, micro_batch_size):
    dealt = deal(row_lengths, workers, micro_batch_size)
    assert len(dealt) == workers
    assert len({len(rank) for rank in dealt}) == 1
    assert all(len(micro) <= micro_batch_size for rank in dealt for micro in rank)
    counts = [sum(map(len, rank)) for rank in dealt]
    assert max(counts) - min(counts) <= 1
    assert len(dealt[0]) == -(-max(counts) // micro_batch_size)


def test_fewer_rows_than_ranks_leaves_empty_micro_batches():
    assert sorted(deal([7], 3, 4)) == [[[]], [[]], [[0]]]


def test_tokens_are_balanced_over_ranks():
    row_lengths = [512] * 4 + [8] * 4
    loads = [sum(row_lengths[row] for micro in rank for row in micro) for rank in deal(row_lengths, 4, 2)]
    assert loads == [520] * 4


@given(LENGTHS, st.booleans())
def test_resuming_at_any_step_gives_the_same_remaining_batches(lengths, packing):
    whole = batches(lengths, packing=packing)
    for step in range(1, len(whole) + 1):
        resumed = order(lengths, packing=packing)
        assert [row.tolist() for row in resumed.batch(resumed.locate(step))] == whole[step - 1]


def test_the_step_after_an_epoch_boundary_is_the_next_epochs_first():
    made = order([32] * 10, batch_size=4)
    assert made.batches_of(0) == 3
    assert [made.locate(step) for step in (1, 3, 4, 6, 7)] == [
        Cursor(0, 0), Cursor(0, 2), Cursor(1, 0), Cursor(1, 2), Cursor(2, 0),
    ]  # fmt: skip
    assert [len(made.batch(made.locate(step))) for step in (1, 2, 3, 4)] == [4, 4, 2, 4]


def test_epochs_and_seeds_differ():
    lengths = np.random.default_rng(0).integers(1, 33, 300)
    first, second = batches(lengths)[:5], batches(lengths, seed=18)[:5]
    made = order(lengths)
    assert first != second
    assert made.epoch(0).samples.tolist() != made.epoch(1).samples.tolist()


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_the_hash_is_a_bijection(values):
    numbers = np.array(values, np.uint64)
    assert unmix64(splitmix64(numbers)).tolist() == values


@given(st.integers(0, 500), st.integers(0, 2**64 - 1))
def test_a_hash_order_is_a_permutation(count, key):
    assert sorted(hash_order(count, key).tolist()) == list(range(count))


def test_the_order_is_pinned():
    """These numbers are the order of every run so far: a change breaks resuming them."""
    assert hash_order(12, 17, 0, 0).tolist() == [1, 4, 10, 8, 11, 3, 7, 5, 9, 2, 0, 6]
    assert batches([5, 9, 20, 31, 7, 7, 12], epochs=1, batch_size=2) == [[[2, 6], [3]], [[1, 4, 5, 0]]]


@pytest.mark.parametrize(("max_steps", "steps"), [(None, 9), (4, 4), (99, 9)])
def test_steps_stop_at_max_steps(max_steps, steps):
    assert order([32] * 10, batch_size=4).steps(3, max_steps) == steps


@given(LENGTHS, st.integers(0, 8))
def test_tokens_of_the_first_steps_are_exact(lengths, steps):
    made = order(lengths)
    counted = sum(int(made.lengths[row].sum()) for step in range(1, steps + 1) for row in made.batch(made.locate(step)))
    assert made.tokens(steps) == counted


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=30),
    st.floats(0.001, 4).map(lambda weight: round(weight, 3)),
    st.integers(1, 40),
)
def test_a_share_is_exact_in_every_epoch_and_even_over_consecutive_ones(lengths, weight, epochs):
    count, exact = len(lengths), Fraction(repr(weight))
    mixing = Mixing(count, np.zeros(count, np.int16), [weight], 17)
    total = np.zeros(count, np.int64)
    for epoch in range(epochs):
        copies = mixing.copies(epoch)
        part = [math.floor((turn * (exact % 1) * count) + Fraction(1, 2)) for turn in (epoch, epoch + 1)]
        assert copies.sum() == math.floor(exact) * count + part[1] - part[0] == mixing.size(epoch)
        assert set(copies.tolist()) <= {math.floor(exact), math.floor(exact) + 1}
        assert mixing.entries(epoch).tolist() == np.repeat(np.arange(count), copies).tolist()
        total += copies
        assert total.max() - total.min() <= 1
    assert (mixing.copies(epochs) == mixing.copies(epochs + mixing.period)).all()


def mixed(lengths, weights, seed=17, batch_size=4, packing=True) -> Order:
    """Samples dealt to the sources in turn."""
    lengths = np.array(lengths, np.int32)
    sources = (np.arange(len(lengths)) % len(weights)).astype(np.int16)
    return Order(lengths, lengths - 1, seed, batch_size, 32, packing, sources, weights)


WEIGHTS = st.lists(st.sampled_from([1.0, 2.0, 0.5, 3.7, 0.3, 0.01, 1.25]), min_size=1, max_size=3)


@given(LENGTHS, WEIGHTS, st.booleans(), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_an_epoch_reads_what_its_mix_says_in_rows_within_length(lengths, weights, packing, batch_size, seed):
    made = mixed(lengths, weights, seed, batch_size, packing)
    sources = np.arange(len(lengths)) % len(weights)
    whole = np.zeros(len(lengths), np.int64)
    step = tokens = 0
    for epoch in range(8):
        rows = []
        for batch in range(made.batches_of(epoch)):
            step += 1
            assert made.locate(step) == Cursor(epoch, batch)
            rows += made.batch(Cursor(epoch, batch))
            tokens += int(sum(made.lengths[row].sum() for row in rows[batch * batch_size :]))
            assert made.tokens(step) == tokens
        assert len(rows) == len(made.epoch(epoch))
        assert all(len(row) and made.lengths[row].sum() <= 32 and (packing or len(row) == 1) for row in rows)
        if rows:
            whole += np.bincount(np.concatenate(rows), minlength=len(lengths))
        assert made.steps(epoch + 1, None) == step
    for number, weight in enumerate(weights):
        counts = whole[sources == number]
        assert counts.sum() == math.floor(8 * Fraction(repr(weight)) * len(counts) + Fraction(1, 2))
        assert not len(counts) or counts.max() - counts.min() <= 1


@given(LENGTHS, WEIGHTS, st.booleans())
def test_the_cursor_alone_restores_the_place_on_any_world(lengths, weights, packing):
    made = mixed(lengths, weights, packing=packing)
    for step in range(1, min(made.steps(4, None), 40) + 1):
        cursor = made.locate(step)
        again = mixed(lengths, weights, packing=packing)  # has counted and made no other epoch
        rows = again.batch(cursor)
        assert [row.tolist() for row in rows] == [row.tolist() for row in made.batch(cursor)]
        assert made.batch(cursor) and (cursor.batch or step == 1 or made.locate(step - 1).epoch < cursor.epoch)
        for workers in (1, 2, 3, 7, 64):
            dealt = deal([int(made.lengths[row].sum()) for row in rows], workers, 2)
            assert sorted(row for rank in dealt for micro in rank for row in micro) == list(range(len(rows)))


@given(LENGTHS, WEIGHTS, st.integers(0, 9), st.integers(0, 60))
def test_steps_are_counted_as_they_are_found_whatever_was_asked_before(lengths, weights, epochs, max_steps):
    whole = mixed(lengths, weights).steps(epochs, None)
    asked = mixed(lengths, weights)
    assert asked.steps(epochs, max_steps) == min(whole, max_steps)
    assert asked.steps(epochs, None) == whole
    assert asked.steps(epochs, max_steps) == min(whole, max_steps)


def test_half_of_a_source_now_and_the_other_half_next():
    made = mixed([8] * 20, [0.5], packing=False)
    read = [
        sorted(int(row[0]) for n in range(made.batches_of(e)) for row in made.batch(Cursor(e, n))) for e in range(4)
    ]
    assert [len(samples) for samples in read] == [10] * 4
    assert sorted(read[0] + read[1]) == list(range(20)) == sorted(read[2] + read[3])
    assert read[0] == read[2]


def test_weights_of_one_change_nothing():
    lengths = np.random.default_rng(0).integers(1, 33, 300)
    plain, ones = order(lengths), mixed(lengths, [1.0, 1])
    steps = range(1, 2 * plain.batches_of(0) + 1)
    assert [[row.tolist() for row in ones.batch(ones.locate(step))] for step in steps] == batches(lengths)


def test_epochs_without_a_row_are_skipped():
    made = mixed([8] * 3, [0.1], packing=False)
    assert [made.batches_of(epoch) for epoch in range(10)] == [0, 1, 0, 0, 1, 0, 0, 0, 1, 0]
    assert [made.locate(step).epoch for step in (1, 2, 3, 4)] == [1, 4, 8, 11]
    assert (made.steps(1, None), made.steps(6, None), made.steps(6, 1)) == (0, 2, 1)
    assert made.tokens(2) == 16


def test_a_run_of_several_sources_is_counted_by_their_weights():
    train = tuple(SourcePlan.model_construct(weight=weight) for weight in (2.0, 0.5))
    data = DataPlan.model_construct(train=train, sequence_length=32, packing=False)
    trajectory = Trajectory.model_construct(data=data, seed=17, batch_size=4, num_train_epochs=2, max_steps=None)
    lengths, sources = np.full(20, 8, np.int32), np.array([0] * 10 + [1] * 10, np.int16)
    assert count_steps(lengths, trajectory, sources) == Steps(14, 7, 50 * 8)


def test_order_uses_little_memory_per_sample():
    count = 2**20
    lengths = np.random.default_rng(0).integers(1, 513, count).astype(np.int32)
    sources = np.zeros(count, np.int16)
    for weights in ([1.0], [0.5]):
        made = Order(lengths, lengths, 17, 64, 512, True, sources, weights)
        tracemalloc.start()
        made.batch(made.locate(1))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 16 * count + 16 * 2**20  # the second: blocks, which do not grow with the samples


def test_no_samples_make_no_steps():
    assert count_steps(np.empty(0, np.int32), Trajectory.model_construct()) == Steps(0, 0, 0)
