"""Which samples share a row: best-fit-decreasing over a histogram of lengths, linear in the number of samples."""

from bisect import bisect_left, insort
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Rows:
    """Row r holds the samples `samples[offsets[r]:offsets[r + 1]]` (indices, int64)."""

    samples: np.ndarray
    """int64[n]: every sample once."""
    offsets: np.ndarray
    """int64[rows + 1], from 0 to n."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, number: int) -> np.ndarray:
        return self.samples[self.offsets[number] : self.offsets[number + 1]]

    def take(self, numbers: np.ndarray) -> "Rows":
        """The rows `numbers` (int64), in that order."""
        counts = np.diff(self.offsets)[numbers]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        return Rows(self.samples[np.repeat(self.offsets[numbers], counts) + within], offsets)


@dataclass
class _Bins:
    """Open rows by what is left in them: chunks of row numbers per remaining length, first in, first out."""

    chunks: dict[int, list[np.ndarray]] = field(default_factory=dict)
    remaining: list[int] = field(default_factory=list)
    """The keys of `chunks`, sorted."""
    count: int = 0

    def best(self, length: int) -> int | None:
        """The smallest remaining length that takes `length`."""
        place = bisect_left(self.remaining, length)
        return self.remaining[place] if place < len(self.remaining) else None

    def put(self, remaining: int, rows: np.ndarray) -> None:
        if remaining and len(rows):
            if remaining not in self.chunks:
                insort(self.remaining, remaining)
            self.chunks.setdefault(remaining, []).append(rows)

    def take(self, remaining: int, count: int) -> np.ndarray:
        """At most `count` rows that have `remaining` left."""
        rows = np.concatenate(self.chunks.pop(remaining))
        del self.remaining[bisect_left(self.remaining, remaining)]
        self.put(remaining, rows[count:])
        return rows[:count]

    def new(self, count: int) -> np.ndarray:
        self.count += count
        return np.arange(self.count - count, self.count)


def pack(lengths: np.ndarray, order: np.ndarray, sequence_length: int) -> Rows:
    """Packs samples (`lengths` int[n], each 1..sequence_length) into rows of at most sequence_length tokens.

    Best-fit-decreasing (Johnson et al. 1974): the longest first, each into the fullest row that still takes it.
    Samples of one length are placed together in `order`'s sequence (int64[n], a permutation), so the work is per
    distinct length, and the number of rows depends on the lengths alone.
    """
    if not len(lengths):
        return Rows(np.empty(0, np.int64), np.zeros(1, np.int64))
    assert lengths.min() > 0 and lengths.max() <= sequence_length
    # a stable sort of 16-bit keys is a radix sort, ten times faster than one of int64
    shortfall = (sequence_length - lengths[order]).astype(np.uint16 if sequence_length < 2**16 else np.int64)
    samples = order[np.argsort(shortfall, kind="stable")]
    row_of = np.empty(len(samples), np.int64)
    histogram = np.bincount(lengths)
    bins, start = _Bins(), 0
    for length in np.flatnonzero(histogram)[::-1].tolist():
        stop = start + int(histogram[length])
        _place(bins, length, sequence_length, row_of[start:stop])
        start = stop
    by_row = np.argsort(row_of, kind="stable")
    offsets = np.concatenate(([0], np.cumsum(np.bincount(row_of, minlength=bins.count))))
    return Rows(samples[by_row], offsets)


def _place(bins: _Bins, length: int, sequence_length: int, row_of: np.ndarray) -> None:
    """Writes into `row_of` the rows for len(row_of) samples of one length.

    A row with `remaining` left takes remaining // length of them one after another, since it stays the best fit.
    """
    done = 0
    while done < len(row_of) and (remaining := bins.best(length)) is not None:
        each = remaining // length
        rows = bins.take(remaining, -(-(len(row_of) - done) // each))
        done += _fill(bins, rows, each, remaining, length, row_of[done:])
    if done < len(row_of):
        each = sequence_length // length
        rows = bins.new(-(-(len(row_of) - done) // each))
        _fill(bins, rows, each, sequence_length, length, row_of[done:])


def _fill(bins: _Bins, rows: np.ndarray, each: int, remaining: int, length: int, row_of: np.ndarray) -> int:
    """Puts `each` samples into every row (the last may get fewer) and files the rows by what is left."""
    count = min(len(rows) * each, len(row_of))
    row_of[:count] = np.repeat(rows, each)[:count]
    last = count - (len(rows) - 1) * each
    bins.put(remaining - each * length, rows[:-1])
    bins.put(remaining - last * length, rows[-1:])
    return count
