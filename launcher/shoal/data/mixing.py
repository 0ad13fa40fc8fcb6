"""How often each sample of each source is read in an epoch: exact, by integers."""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from shoal.data.hashing import blocks, hash_state, index_type, splitmix64
from shoal.data.packing import histogram

_WINDOW = 2
"""Third part of the key of a source's permutation; an epoch's orders use 0 and 1."""


class Mixing:
    """The samples of each epoch. A source of weight k + f gives each of its samples k times, and a share f once more.

    The share is a window of a fixed permutation of the source. Epoch e takes the places [round(e f n), round((e + 1) f n))
    of it, going round (halves are rounded up), so that over consecutive epochs every sample of the source comes equally
    often, give or take one.
    """

    def __init__(self, count: int, sources: np.ndarray | None, weights: Sequence[float], seed: int):
        """`sources` (int[count]): each sample's position in `weights`. A weight is taken as its decimal text reads."""
        exact = [Fraction(repr(weight)) for weight in weights]
        assert all(weight > 0 for weight in exact)
        assert sources is not None or all(weight == 1 for weight in exact)
        self.count, self.seed = count, seed
        self.plain = all(weight == 1 for weight in exact)
        """Whether every epoch takes each sample once."""
        self.sources = np.zeros(0, np.int16) if sources is None else sources
        assert self.plain or len(self.sources) == count
        self._whole = np.array([math.floor(weight) for weight in exact], np.uint16)
        self._shares = {number: weight % 1 for number, weight in enumerate(exact) if weight % 1}
        self._sizes = [] if self.plain else _sizes(self.sources, len(exact))
        self.period = 1 if self.plain else math.lcm(*(weight.denominator for weight in exact))
        """Epochs after which the same samples are taken again."""

    def copies(self, epoch: int) -> np.ndarray:
        """uint16[count]: how often each sample comes in epoch `epoch` (from 0)."""
        copies = np.empty(self.count, np.uint16)
        for block in blocks(self.count):
            copies[block] = self._whole[self.sources[block]]
        for number, share in self._shares.items():
            self._add(copies, number, share, epoch)
        return copies

    def size(self, epoch: int) -> int:
        """Samples in epoch `epoch`, each counted as often as it comes."""
        if self.plain:
            return self.count
        windows = (share * self._sizes[number] for number, share in self._shares.items())
        more = sum(_rounded((epoch + 1) * window) - _rounded(epoch * window) for window in windows)
        return sum(int(whole) * size for whole, size in zip(self._whole, self._sizes, strict=True)) + more

    def entries(self, epoch: int) -> np.ndarray:
        """The samples of an epoch, ascending, each as often as it comes (int32; int64 from 2**31)."""
        copies = self.copies(epoch)
        entries, stop = np.empty(self.size(epoch), index_type(self.count)), 0
        for block in blocks(self.count):
            samples = np.repeat(np.arange(block.start, block.stop), copies[block])
            start, stop = stop, stop + len(samples)
            entries[start:stop] = samples
        return entries

    def histogram(self, epoch: int, lengths: np.ndarray) -> np.ndarray:
        """int64[longest + 1]: how many of the epoch's samples have each length (`lengths`: int[count])."""
        if self.plain:
            return histogram(lengths)
        return histogram(lengths, self.copies(epoch))

    def _add(self, copies: np.ndarray, number: int, share: Fraction, epoch: int) -> None:
        """Counts the samples in the window of source `number` once more."""
        size = self._sizes[number]
        if not size:
            return
        first, last = _rounded(epoch * share * size), _rounded((epoch + 1) * share * size)
        start, stop = first % size, first % size + last - first
        again = stop - size  # where more than 0: so many places at the beginning belong to the window too
        at = self._hashes_at(number, {start, again if again >= 0 else stop})
        for block, members, hashes in self._members(number):
            inside = hashes >= at[start]
            if again < 0:
                inside &= hashes < at[stop]
            else:
                inside |= hashes < at[again]
            copies[block] += inside & members

    def _hashes_at(self, number: int, places: set[int]) -> dict[int, int]:
        """The hashes that lie at these places among the sorted hashes of source `number`."""
        sorted_hashes, stop = np.empty(self._sizes[number], np.uint64), 0
        for _, members, hashes in self._members(number):
            found = hashes[members]
            start, stop = stop, stop + len(found)
            sorted_hashes[start:stop] = found
        sorted_hashes.partition(sorted(places))
        return {place: sorted_hashes[place] for place in places}

    def _members(self, number: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """By blocks of samples: (block, bool: which are of source `number`, uint64: the hash of each)."""
        state = hash_state(self.seed, number, _WINDOW)
        for block in blocks(self.count):
            hashes = splitmix64(state + np.arange(block.start, block.stop, dtype=np.uint64))
            yield block, self.sources[block] == number, hashes


def _sizes(sources: np.ndarray, count: int) -> list[int]:
    """Samples of each source."""
    sizes = np.zeros(count, np.int64)
    for block in blocks(len(sources)):
        sizes += np.bincount(sources[block], minlength=count)
    return sizes.tolist()


def _rounded(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))
