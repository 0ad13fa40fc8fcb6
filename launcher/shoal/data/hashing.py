"""Permutations without a random generator: indices sorted by a hash that depends on a key alone."""

from collections.abc import Iterator

import numpy as np

BLOCK = 2**18
"""Indices handled at once, so that temporary arrays stay small."""

_MASK = 2**64 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_FIRST_INVERSE, _SECOND_INVERSE = (np.uint64(pow(factor, -1, 2**64)) for factor in (_FIRST, _SECOND))


def blocks(count: int) -> Iterator[slice]:
    """0..count, a block at a time."""
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))


def index_type(count: int) -> type[np.signedinteger]:
    """The smaller of int32 and int64 that indexes `count` things."""
    return np.int32 if count < 2**31 else np.int64


def splitmix64(values: np.ndarray) -> np.ndarray:
    """The mixing function of SplitMix64 (Steele, Lea, Flood 2014), a bijection on uint64[n]."""
    mixed = values + _GOLDEN
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(_FIRST)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(_SECOND)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def unmix64(mixed: np.ndarray) -> np.ndarray:
    """The inverse of splitmix64."""
    values = mixed ^ (mixed >> np.uint64(31)) ^ (mixed >> np.uint64(62))
    values *= _SECOND_INVERSE
    values ^= (values >> np.uint64(27)) ^ (values >> np.uint64(54))
    values *= _FIRST_INVERSE
    values ^= (values >> np.uint64(30)) ^ (values >> np.uint64(60))
    values -= _GOLDEN
    return values


def hash_state(*key: int) -> np.ndarray:
    """uint64[1]: added to an index before it is hashed."""
    state = np.zeros(1, np.uint64)
    for part in key:
        state = splitmix64(state ^ np.uint64(part & _MASK))
    return state


def hash_order(count: int, *key: int) -> np.ndarray:
    """A permutation (int32[count]; int64 from 2**31) that depends on `key` alone: indices sorted by their hash.

    The hash is a bijection: there are no ties, and sorted hashes give their indices back. 12 bytes an index at the peak.
    """
    state = hash_state(*key)
    hashes = np.empty(count, np.uint64)
    for block in blocks(count):
        hashes[block] = splitmix64(state + np.arange(block.start, block.stop, dtype=np.uint64))
    hashes.sort()
    order = np.empty(count, index_type(count))
    for block in blocks(count):
        order[block] = unmix64(hashes[block]) - state
    return order
