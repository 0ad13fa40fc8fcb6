import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.data.order import hash_order
from shoal.data.packing import Rows, pack

SAMPLES = st.integers(1, 64).flatmap(
    lambda longest: st.tuples(st.just(longest), st.lists(st.integers(1, longest), max_size=200))
)


def best_fit_decreasing(lengths: list[int], sequence_length: int) -> int:
    """The textbook form: how many rows it opens."""
    remaining: list[int] = []
    for length in sorted(lengths, reverse=True):
        fits = [number for number, left in enumerate(remaining) if left >= length]
        if fits:
            remaining[min(fits, key=lambda number: remaining[number])] -= length
        else:
            remaining.append(sequence_length - length)
    return len(remaining)


@given(SAMPLES, st.integers(0, 3))
def test_every_sample_once_and_no_row_over_length(samples, seed):
    sequence_length, lengths = samples[0], np.array(samples[1], np.int32)
    rows = pack(lengths, hash_order(len(lengths), seed), sequence_length)
    assert sorted(rows.samples.tolist()) == list(range(len(lengths)))
    assert all(0 < lengths[rows.row(number)].sum() <= sequence_length for number in range(len(rows)))


@given(SAMPLES)
def test_as_few_rows_as_the_textbook_form(samples):
    sequence_length, lengths = samples[0], np.array(samples[1], np.int32)
    rows = pack(lengths, hash_order(len(lengths), 1), sequence_length)
    assert len(rows) == best_fit_decreasing(samples[1], sequence_length)


def test_the_number_of_rows_does_not_depend_on_the_order():
    lengths = np.random.default_rng(0).integers(1, 512, 3000).astype(np.int32)
    counts = {len(pack(lengths, hash_order(len(lengths), seed), 512)) for seed in range(5)}
    assert len(counts) == 1


def test_rows_are_nearly_full():
    lengths = np.random.default_rng(0).integers(1, 512, 5000).astype(np.int32)
    rows = pack(lengths, hash_order(len(lengths), 0), 512)
    assert lengths.sum() / (len(rows) * 512) > 0.98


def test_take_picks_rows_in_the_given_order():
    rows = Rows(np.array([4, 1, 0, 3, 2]), np.array([0, 2, 2, 5]))
    taken = rows.take(np.array([2, 0]))
    assert [taken.row(number).tolist() for number in range(len(taken))] == [[0, 3, 2], [4, 1]]


@pytest.mark.parametrize("length", [0, 9])
def test_a_length_that_no_row_takes_is_our_own_mistake(length):
    with pytest.raises(AssertionError):
        pack(np.array([length], np.int32), np.array([0]), 8)
