"""How one sample lies in a shard: its tokens, little-endian, then a bit per token that says whether it is learnt."""

import zlib

import numpy as np

from shoal.data.template import Encoded

_BYTES = np.dtype(np.uint8)


def record_bytes(lengths: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """int64[n]: the records' sizes for samples of so many tokens (int[n]) of this type."""
    lengths = lengths.astype(np.int64)
    return lengths * dtype.itemsize + (lengths + 7) // 8


def to_record(piece: Encoded, dtype: np.dtype) -> bytes:
    """`dtype`: of the tokens, little-endian."""
    return piece.input_ids.astype(dtype).tobytes() + np.packbits(piece.loss_mask).tobytes()


def checksum(record: bytes | memoryview) -> int:
    """CRC-32, of which one wrong stretch of up to 32 bits never escapes, and others with odds of 1 in 2**32."""
    return zlib.crc32(record)


def from_record(record: bytes | memoryview, length: int, dtype: np.dtype) -> Encoded:
    """The sample of a record of `length` tokens; what comes out is a copy."""
    mask = np.unpackbits(np.frombuffer(record, _BYTES, -1, length * dtype.itemsize), count=length)
    return Encoded(np.frombuffer(record, dtype, length).astype(np.int64), mask.view(np.bool_))
