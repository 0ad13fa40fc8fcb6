"""From wanted ranges to requests and back: exact for any numbers."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from shoal.storage.ranges import cut, requests, split

DATA = bytes(range(256)) * 4
RANGES = st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 300)).map(lambda one: (one[0], one[0] + one[1])))


@given(RANGES, st.integers(0, 100), st.integers(1, 500))
def test_what_was_wanted_comes_back(wanted: list[tuple[int, int]], gap: int, piece: int) -> None:
    sent = requests(wanted, gap, piece)
    bodies = [memoryview(DATA)[start:end] for start, end in sent]
    assert [cut(one, sent, bodies) for one in wanted] == [DATA[start:end] for start, end in wanted]


@given(RANGES, st.integers(0, 100), st.integers(1, 500))
def test_requests_are_few_short_and_disjoint(wanted: list[tuple[int, int]], gap: int, piece: int) -> None:
    sent = requests(wanted, gap, piece)
    assert all(0 < end - start <= piece for start, end in sent)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(sent))
    covered = {byte for start, end in wanted for byte in range(start, end)}
    asked = {byte for start, end in sent for byte in range(start, end)}
    assert covered <= asked
    # Nothing is read in vain but gaps that are bridged.
    assert len(asked - covered) <= gap * max(0, len(wanted) - 1)


def test_near_ranges_share_a_request() -> None:
    assert requests([(90, 100), (0, 10), (20, 30)], gap=10, piece=100) == [(0, 30), (90, 100)]
    assert requests([(0, 60), (70, 130)], gap=10, piece=100) == [(0, 60), (70, 130)]
    assert split(3, 10, 4) == [(3, 7), (7, 10)]
