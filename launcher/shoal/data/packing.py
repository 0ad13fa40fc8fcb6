"""Which samples share a row, decided on the histogram of lengths: the work does not grow with the number of samples."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from shoal.data.filling import fill
from shoal.data.hashing import blocks

NEARLY_FULL = 1000
"""Best-fit-decreasing is good enough when it opens at most one row more than needed in so many."""


@dataclass(frozen=True)
class Group:
    """Consecutive rows that are alike: same lengths, in the same sequence."""

    first: int
    """Number of its first row."""
    rows: int
    space: int
    """Tokens left in each row."""
    parts: tuple[tuple[int, int], ...] = ()
    """(start, each): row i of the group holds samples start + i x each and following, `each` in number, of the
    samples sorted from long to short."""

    def split(self, rows: int) -> "tuple[Group, Group]":
        """The first `rows` rows, and the others."""
        later = tuple((start + rows * each, each) for start, each in self.parts)
        return (
            Group(self.first, rows, self.space, self.parts),
            Group(self.first + rows, self.rows - rows, self.space, later),
        )

    def add(self, length: int, start: int, each: int) -> "Group":
        return Group(self.first, self.rows, self.space - each * length, (*self.parts, (start, each)))


class Packing:
    """Rows of at most `sequence_length` tokens for a histogram of lengths; their number depends on that alone."""

    def __init__(self, histogram: np.ndarray, sequence_length: int):
        """`histogram` (int64): how many samples have each length; lengths from 1 to sequence_length."""
        assert not histogram[:1].any() and not histogram[sequence_length + 1 :].any()
        self.histogram = histogram
        groups = best_fit(histogram, sequence_length)
        rows = sum(group.rows for group in groups)
        bound = -(-int(histogram @ np.arange(len(histogram))) // sequence_length)
        if (rows - bound) * NEARLY_FULL > bound:
            fuller = filled(histogram, sequence_length)
            if sum(group.rows for group in fuller) < rows:
                groups = fuller
        self.groups = sorted(groups, key=lambda group: group.first)
        self.first = np.array([group.first for group in self.groups], np.int64)
        """int64[groups]: each group's first row."""
        self.used = np.array([sequence_length - group.space for group in self.groups], np.int64)
        """int64[groups]: tokens in each of its rows."""
        self.rows = sum(group.rows for group in groups)

    def parts(self, row: int) -> Iterator[slice]:
        """Where row `row` finds its samples among those sorted from long to short."""
        group = self.groups[int(np.searchsorted(self.first, row, side="right")) - 1]
        for start, each in group.parts:
            begin = start + (row - group.first) * each
            yield slice(begin, begin + each)

    def tokens(self, rows: np.ndarray) -> int:
        """Tokens in these rows together."""
        return int(self.used[np.searchsorted(self.first, rows, side="right") - 1].sum())


def histogram(lengths: np.ndarray, copies: np.ndarray | None = None) -> np.ndarray:
    """int64[longest + 1]: how many samples (lengths int[n]) have each length, each counted once or copies[i] times."""
    counts = np.zeros(int(lengths.max(initial=0)) + 1, np.int64)
    for block in blocks(len(lengths)):
        found = np.bincount(lengths[block] if copies is None else np.repeat(lengths[block], copies[block]))
        counts[: len(found)] += found
    return counts


def packed_rows(lengths: np.ndarray, sequence_length: int) -> int:
    """Rows that packing makes of samples of these lengths (int[n], each 1..sequence_length)."""
    return Packing(histogram(lengths), sequence_length).rows


def longest_first(lengths: np.ndarray, order: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`order` (indices of samples, int[n]) stably sorted from long to short; `counts` is the histogram of its lengths.

    A counting sort by blocks: temporary memory is that of a block.
    """
    longest = len(counts) - 1
    place = counts.sum() - np.cumsum(counts)
    """int64[longest + 1]: where the next sample of each length goes."""
    found = np.empty_like(order)
    for block in blocks(len(order)):
        samples = order[block]
        # a stable sort of 16-bit keys is a radix sort, ten times faster than one of int64
        shortfall = (longest - lengths[samples]).astype(np.uint16 if longest < 2**16 else np.int64)
        within = np.argsort(shortfall, kind="stable")
        each = longest - shortfall[within].astype(np.int64)
        begins = np.flatnonzero(np.diff(each, prepend=-1))
        runs = np.diff(begins, append=len(each))
        found[np.repeat(place[each[begins]] - begins, runs) + np.arange(len(each))] = samples[within]
        place[each[begins]] += runs
    return found


@dataclass
class _Open:
    """Rows with room, by what is left in them; first in, first out."""

    groups: dict[int, deque[Group]] = field(default_factory=dict)
    spaces: list[int] = field(default_factory=list)
    """The keys of `groups`, sorted."""
    full: list[Group] = field(default_factory=list)
    rows: int = 0

    def put(self, group: Group) -> None:
        if not group.space:
            self.full.append(group)
            return
        if group.space not in self.groups:
            insort(self.spaces, group.space)
            self.groups[group.space] = deque()
        self.groups[group.space].append(group)

    def take(self, length: int, count: int, sequence_length: int) -> list[Group]:
        """The fullest rows that still take `length`, as many as `count` samples need and there are; else new rows."""
        place = bisect_left(self.spaces, length)
        if place == len(self.spaces):
            rows = -(-count // (sequence_length // length))
            self.rows += rows
            return [Group(self.rows - rows, rows, sequence_length)]
        space = self.spaces[place]
        needed, queue, taken = -(-count // (space // length)), self.groups[space], []
        while needed and queue:
            group = queue.popleft()
            if group.rows > needed:
                group, rest = group.split(needed)
                queue.appendleft(rest)
            taken.append(group)
            needed -= group.rows
        if not queue:
            del self.groups[space], self.spaces[place]
        return taken


def best_fit(counts: np.ndarray, sequence_length: int) -> list[Group]:
    """Best-fit-decreasing (Johnson et al. 1974): the longest first, each into the fullest row that still takes it.

    Samples of one length are placed together, and a row takes as many of them as it can: it stays the best fit.
    """
    rows, start = _Open(), 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        count = int(counts[length])
        while count:
            for group in rows.take(length, count, sequence_length):
                each = group.space // length
                if group.rows * each <= count:
                    rows.put(group.add(length, start, each))
                    placed = group.rows * each
                else:  # the last row gets fewer
                    most, last = group.split(group.rows - 1)
                    placed = count
                    if most.rows:
                        rows.put(most.add(length, start, each))
                    rows.put(last.add(length, start + most.rows * each, count - most.rows * each))
                start, count = start + placed, count - placed
    return rows.full + [group for queue in rows.groups.values() for group in queue]


def filled(counts: np.ndarray, sequence_length: int) -> list[Group]:
    """Rows of the patterns that `filling` finds."""
    start = counts.sum() - np.cumsum(counts)
    groups, first = [], 0
    for rows, pattern in fill(counts, sequence_length):
        group = Group(first, rows, sequence_length)
        for length, each in pattern:
            group = group.add(length, int(start[length]), each)
            start[length] += rows * each
        groups.append(group)
        first += rows
    return groups
