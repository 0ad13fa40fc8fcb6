"""How one sample lies in a shard: its tokens, little-endian, then a bit per token that says whether it is learnt."""

import zlib
from collections.abc import Sequence

import numpy as np

from shoal.rows.template import Encoded


def record_bytes(lengths: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """int64[n]: the records' sizes for samples of so many tokens (int[n]) of this type."""
    lengths = lengths.astype(np.int64)
    return lengths * dtype.itemsize + (lengths + 7) // 8


def to_record(piece: Encoded, dtype: np.dtype) -> bytes:
    """`dtype`: of the tokens, little-endian."""
    return piece.input_ids.astype(dtype).tobytes() + np.packbits(piece.loss_mask).tobytes()


def checksum(record: bytes) -> int:
    """CRC-32, which no wrong stretch of up to 32 bits escapes, and others with odds of 1 in 2**32."""
    return zlib.crc32(record)


class Records:
    """Room for some records, side by side, so that they become samples in a few operations over all."""

    def __init__(self, lengths: np.ndarray, dtype: np.dtype):
        """`lengths` (int[n]): tokens of each; `dtype`: of the tokens."""
        self._lengths: list[int] = lengths.tolist()
        starts = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        bytes_ = np.concatenate(([0], np.cumsum((lengths.astype(np.int64) + 7) // 8)))
        self._tokens, self._masks = np.empty(starts[-1], dtype), np.empty(bytes_[-1], np.uint8)
        self._starts: list[int] = starts.tolist()
        self._edges: list[int] = (starts * dtype.itemsize).tolist()
        self._bytes: list[int] = bytes_.tolist()
        self._views = self._tokens.view(np.uint8).data, self._masks.data

    def room(self, place: int) -> tuple[memoryview, memoryview]:
        """Where the two parts of record `place` go."""
        tokens, masks = self._views
        after = place + 1
        return (
            tokens[self._edges[place] : self._edges[after]],
            masks[self._bytes[place] : self._bytes[after]],
        )

    def put(self, place: int, record: bytes | memoryview) -> None:
        tokens, mask = self.room(place)
        tokens[:], mask[:] = record[: len(tokens)], record[len(tokens) :]

    def is_sound(self, place: int, wanted: int) -> bool:
        """Whether what lies there has this checksum."""
        tokens, mask = self.room(place)
        return zlib.crc32(mask, zlib.crc32(tokens)) == wanted

    def unsound(self, wanted: Sequence[int]) -> list[int]:
        """The places of records that have another checksum."""
        return [place for place, one in enumerate(wanted) if not self.is_sound(place, one)]

    def samples(self) -> list[Encoded]:
        """Slices of arrays that all share."""
        ids, bits = self._tokens.astype(np.int64), np.unpackbits(self._masks).view(np.bool_)
        return [
            Encoded(ids[start : start + length], bits[8 * first : 8 * first + length])
            for start, first, length in zip(self._starts, self._bytes, self._lengths, strict=False)
        ]
