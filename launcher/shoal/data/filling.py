"""Rows filled to the last token where lengths allow: patterns of lengths, each used as often as the samples last."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

FIRST_OF_THREE = 16
"""Longest samples that are tried as the first of three: more finds hardly more."""

Pattern = list[tuple[int, int]]
"""(length, how often) of one row, from long to short."""


def fill(histogram: np.ndarray, sequence_length: int) -> Iterator[tuple[int, Pattern]]:
    """(rows, pattern) until no sample is left; `histogram` (int64) counts the samples of each length.

    After the "minimum bin slack" heuristics (Gupta and Ho 1999): a row opens with the longest sample left, takes the
    longest that fits, and is closed by one, two or three that fit exactly as soon as there are such. Where that leaves
    room, the samples beside the first are the fullest choice of all. A pattern is repeated until a length of it runs
    out, so there are about as many patterns as distinct lengths.
    """
    counts = np.zeros(sequence_length + 1, np.int64)
    counts[: len(histogram)] = histogram[: sequence_length + 1]
    while counts.any():
        taken = _greedy(counts.copy(), sequence_length)
        if sum(taken) < sequence_length:
            taken = _fullest(counts, sequence_length)
        pattern = sorted(Counter(taken).items(), reverse=True)
        rows = min(int(counts[length]) // each for length, each in pattern)
        for length, each in pattern:
            counts[length] -= rows * each
        yield rows, pattern


def _greedy(counts: np.ndarray, space: int) -> list[int]:
    """The lengths of one row; takes them from `counts`."""
    taken: list[int] = []
    longest = longest_within(counts)
    while space and longest[space]:
        lengths = [int(longest[space])]
        if lengths[0] < space:
            lengths = _two(counts, longest, space) or _three(counts, longest, space) or lengths
        for length in lengths:
            counts[length] -= 1
            space -= length
        taken += lengths
        if not counts[lengths].all():
            longest = longest_within(counts)
    return taken


def _fullest(counts: np.ndarray, sequence_length: int) -> list[int]:
    """The longest length, and beside it those that leave the least room: subset sums, as bits of a number."""
    first = int(np.flatnonzero(counts)[-1])
    space = sequence_length - first
    lengths = [int(length) for length in np.flatnonzero(counts[: space + 1])[::-1]]
    within, sums = (1 << (space + 1)) - 1, [1]
    for length in lengths:
        reached, left, step = sums[-1], min(int(counts[length]) - (length == first), space // length), 1
        while left > 0:  # so many of a length are sums of 1, 2, 4, ... of it
            reached |= (reached << (min(step, left) * length)) & within
            left, step = left - step, 2 * step
        sums.append(reached)
    taken, total = [first], sums[-1].bit_length() - 1
    for length, before in zip(lengths[::-1], sums[-2::-1], strict=True):  # as few of the short ones as will do
        while not before >> total & 1:
            taken.append(length)
            total -= length
    return taken


def longest_within(counts: np.ndarray) -> np.ndarray:
    """int64[len(counts)]: the longest length there is up to each length; 0 for none."""
    return np.maximum.accumulate(np.where(counts > 0, np.arange(len(counts)), 0))


def _two(counts: np.ndarray, longest: np.ndarray, space: int) -> list[int] | None:
    """Two lengths that make `space` together, the longest such first."""
    low, high = -(-space // 2), int(longest[space])
    if high < low:
        return None
    both = (counts[low : high + 1] > 0) & (counts[space - high : space - low + 1] > 0)[::-1]
    both[0] &= 2 * low != space or counts[low] > 1
    found = np.flatnonzero(both)
    return [low + int(found[-1]), space - low - int(found[-1])] if len(found) else None


def _three(counts: np.ndarray, longest: np.ndarray, space: int) -> list[int] | None:
    """Three lengths that make `space` together, the first among the longest there are."""
    first = int(longest[space])
    for _ in range(FIRST_OF_THREE):
        if 3 * first < space:
            return None
        counts[first] -= 1
        others = _two(counts, longest, space - first)
        counts[first] += 1
        if others:
            return [first, *others]
        first = int(longest[first - 1])
    return None
