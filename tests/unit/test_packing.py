import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.data.hashing import hash_order
from shoal.data.packing import Packing, histogram, longest_first, packed_rows

SAMPLES = st.integers(1, 64).flatmap(
    lambda longest: st.tuples(st.just(longest), st.lists(st.integers(1, longest), max_size=200))
)


def packed(lengths: np.ndarray, sequence_length: int) -> list[list[int]]:
    """The samples of each row."""
    packing = Packing(histogram(lengths), sequence_length)
    samples = longest_first(lengths, hash_order(len(lengths), 1), packing.histogram)
    return [[int(sample) for part in packing.parts(row) for sample in samples[part]] for row in range(packing.rows)]


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


def fewest_possible(lengths: np.ndarray, sequence_length: int) -> int:
    """A number of rows that no packing can go below: the bound L2 of Martello and Toth (1990).

    For any `small`: rows of samples longer than half hold one of those each, and what the others (of at least `small`)
    do not find room for beside them takes rows of its own; beside one longer than sequence_length - small there is none.
    """
    counts = np.bincount(lengths, minlength=sequence_length + 1)
    number, tokens = (np.cumsum(np.append(0, column)).tolist() for column in (counts, counts * np.arange(len(counts))))
    """Of samples shorter than each length."""
    above, best = sequence_length // 2 + 1, 0
    for small in range(above):
        alone = number[sequence_length + 1] - number[sequence_length - small + 1]
        large = number[sequence_length - small + 1] - number[above]
        room = large * sequence_length - (tokens[sequence_length - small + 1] - tokens[above])
        others = tokens[above] - tokens[small]
        best = max(best, alone + large + max(0, -(-(others - room) // sequence_length)))
    return best


@given(SAMPLES)
def test_every_sample_once_and_no_row_over_length(samples):
    sequence_length, lengths = samples[0], np.array(samples[1], np.int32)
    rows = packed(lengths, sequence_length)
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    assert all(0 < lengths[row].sum() <= sequence_length for row in rows)


@given(SAMPLES)
def test_never_more_rows_than_the_textbook_form_nor_fewer_than_possible(samples):
    sequence_length, lengths = samples[0], np.array(samples[1], np.int32)
    rows = packed_rows(lengths, sequence_length)
    assert fewest_possible(lengths, sequence_length) <= rows <= best_fit_decreasing(samples[1], sequence_length)


@given(SAMPLES)
def test_tokens_of_rows_are_counted_without_making_them(samples):
    sequence_length, lengths = samples[0], np.array(samples[1], np.int32)
    packing = Packing(histogram(lengths), sequence_length)
    tokens = [int(lengths[row].sum()) for row in packed(lengths, sequence_length)]
    assert [packing.tokens(np.array([row])) for row in range(packing.rows)] == tokens
    assert packing.tokens(np.arange(packing.rows)) == sum(tokens)


def distribution(name: str, sequence_length: int) -> np.ndarray:
    """100,000 lengths."""
    generator, count = np.random.default_rng(17), 100_000
    drawn = {
        "log-normal": lambda: generator.lognormal(np.log(250), 0.9, count),
        "long log-normal": lambda: generator.lognormal(np.log(sequence_length) - 1, 1.0, count),
        # mostly short answers, some essays: quartiles 45, 75, 135 and a thin tail, as Alpaca's rows have
        "alpaca-like": lambda: 30 + generator.lognormal(np.log(45), 1.1, count),
        "uniform": lambda: generator.integers(1, sequence_length + 1, count),
        "geometric": lambda: generator.geometric(1 / 200, count),
        "long geometric": lambda: generator.geometric(4 / sequence_length, count),
    }[name]()
    return np.clip(drawn, 1, sequence_length).astype(np.int32)


@pytest.mark.parametrize("sequence_length", [512, 1024, 2048, 4096, 8192])
@pytest.mark.parametrize(
    "name", ["log-normal", "long log-normal", "alpaca-like", "uniform", "geometric", "long geometric"]
)
def test_rows_are_full_to_a_thousandth_of_what_is_possible(name, sequence_length):
    lengths = distribution(name, sequence_length)
    rows, possible = packed_rows(lengths, sequence_length), fewest_possible(lengths, sequence_length)
    assert (rows - possible) / possible < 0.001
    full, best = (int(lengths.sum()) / (number * sequence_length) for number in (rows, possible))
    assert full >= 0.999 or best < 0.9995


def test_filling_takes_over_where_best_fit_wastes():
    """Best-fit-decreasing makes 6 + 5, 4 + 4 + 3 and 2; but 6 + 4 + 2 and 5 + 4 + 3 fill two rows."""
    lengths = np.array([6, 5, 4, 4, 3, 2], np.int32)
    assert best_fit_decreasing(lengths.tolist(), 12) == 3
    assert sorted(sorted(lengths[row].tolist()) for row in packed(lengths, 12)) == [[2, 4, 6], [3, 4, 5]]


@pytest.mark.parametrize("length", [0, 9])
def test_a_length_that_no_row_takes_is_our_own_mistake(length):
    with pytest.raises(AssertionError):
        Packing(histogram(np.array([length], np.int32)), 8)


def test_no_samples_make_no_rows():
    assert packed_rows(np.empty(0, np.int32), 8) == 0


@given(st.lists(st.integers(1, 9), max_size=60), st.integers(0, 9))
def test_sorting_by_length_keeps_the_order_within_a_length(lengths, seed):
    order, found = hash_order(len(lengths), seed), np.array(lengths, np.int32)
    assert longest_first(found, order, histogram(found)).tolist() == sorted(order.tolist(), key=lambda i: -lengths[i])
