"""Rows out of column files: Parquet by row groups, Arrow by record batches."""

import io
import struct
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from shoal.errors import DataError, Problem, StorageError
from shoal.rows.lines import BLOCK, Found, Row
from shoal.rows.samples import Rejected
from shoal.storage import Storage

ROWS_AT_A_TIME = 1024
BYTES_AT_A_TIME = 8 << 20
"""Of rows, as stored without compression; and of each column while a row group is read."""
FILE_MAGIC = b"ARROW1"
HEADER_BYTES = 4096
"""Read of each message of an Arrow stream to see what it is."""
RECORD_BATCH = 3
"""MessageHeader.RecordBatch in Arrow's Message.fbs."""


def parquet_rows(stream: BinaryIO, url: str, part: int, parts: int) -> Found:
    """The rows of the row groups of this part, counted from 1. Raises DataError when the file is damaged."""
    from pyarrow import parquet

    def batches() -> Iterator[Any]:
        # without a buffer size, whole column chunks are held
        file = parquet.ParquetFile(stream, buffer_size=BYTES_AT_A_TIME, pre_buffer=False)
        groups = file.metadata.num_row_groups
        for number in range(groups * part // parts, groups * (part + 1) // parts):
            group = file.metadata.row_group(number)
            per_row = group.total_byte_size // max(1, group.num_rows)
            size = max(1, min(ROWS_AT_A_TIME, BYTES_AT_A_TIME // max(1, per_row)))
            yield from file.iter_batches(batch_size=size, row_groups=[number])

    return _numbered(batches(), url, "Parquet")


def arrow_rows(storage: Storage, url: str, size: int, part: int, parts: int) -> Found:
    """The rows of the record batches of this part, counted from 1, of an Arrow file or stream (as `datasets` saves).

    Raises DataError when the file is damaged.
    """
    import pyarrow

    def batches() -> Iterator[Any]:
        with storage.open(url) as stream:
            magic = stream.read(len(FILE_MAGIC))
            stream.seek(0)
            if magic == FILE_MAGIC:
                file = pyarrow.ipc.open_file(stream)
                count = file.num_record_batches
                for number in range(count * part // parts, count * (part + 1) // parts):
                    yield file.get_batch(number)
                return
            if parts == 1:
                yield from pyarrow.ipc.open_stream(stream)
                return
        chosen = _Chained(_messages(storage, url, size, size * part // parts, size * (part + 1) // parts))
        yield from pyarrow.ipc.open_stream(io.BufferedReader(chosen, BLOCK))

    return _numbered(batches(), url, "Arrow")


def _numbered(batches: Iterator[Any], url: str, kind: str) -> Found:
    import pyarrow

    number = 0
    try:
        for batch in batches:
            for row in rows_of(batch):
                number += 1
                yield number, row
    except StorageError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        what = f"cannot be read as {kind} after row {number} ({' '.join(str(error).split()):.120})"
        raise DataError(Problem(url, what, "write it again")) from error


def rows_of(batch: Any) -> Iterator[Row]:
    """The rows of a pyarrow RecordBatch, converted few at a time."""
    names = batch.schema.names
    for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
        piece = batch.slice(start, ROWS_AT_A_TIME)
        columns = [_values(name, column) for name, column in zip(names, piece.columns, strict=True)]
        for values in zip(*columns, strict=True):
            bad = next((value for value in values if isinstance(value, Rejected)), None)
            yield dict(zip(names, values, strict=True)) if bad is None else bad


def _values(name: str, column: Any) -> list[Any]:
    """One Python value per row; Rejected where a string is not text, Arrow's own scalar where Python has no such value."""
    import pyarrow

    try:
        values = column.to_pylist(maps_as_pydicts="lossy")
    except (ValueError, OverflowError, ImportError, pyarrow.ArrowException):
        values = [_value(name, scalar) for scalar in column]
    return [_without_nulls(value) for value in values] if _holds_struct(column.type) else values


def _value(name: str, scalar: Any) -> Any:
    import pyarrow

    try:
        return scalar.as_py(maps_as_pydicts="lossy")
    except UnicodeDecodeError as error:
        return Rejected("invalid-utf8", f"byte {error.start + 1} of `{name}` is not UTF-8")
    except (ValueError, OverflowError, ImportError, pyarrow.ArrowException):
        return scalar


def _holds_struct(kind: Any) -> bool:
    from pyarrow import types

    return types.is_struct(kind) or any(_holds_struct(kind.field(number).type) for number in range(kind.num_fields))


def _without_nulls(value: Any) -> Any:
    """A struct column gives every row every field: a null there is what JSON leaves out."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _messages(storage: Storage, url: str, size: int, first: int, last: int) -> Iterator[bytes]:
    """The messages of an Arrow stream that are no record batches, and the record batches that begin in [first, last).

    Other batches are stepped over by their headers (Arrow columnar format, "Encapsulated message format").
    """
    place = 0
    while place < min(last, size):
        head = storage.read_ranges(url, [(place, min(size, place + HEADER_BYTES))])[0]
        if len(head) < 8 or head[:4] != b"\xff\xff\xff\xff":
            raise DataError(Problem(url, f"is no Arrow stream at byte {place}", "write it again"))
        length = int.from_bytes(head[4:8], "little")
        if length == 0:
            return
        if 8 + length > len(head):
            head = storage.read_ranges(url, [(place, min(size, place + 8 + length))])[0]
        kind, body = _header(head[8 : 8 + length])
        end = place + 8 + length + body
        if end > size:
            raise DataError(Problem(url, f"ends after {size} bytes within a record batch", "write it again"))
        if kind != RECORD_BATCH or place >= first:
            yield storage.read_ranges(url, [(place, end)])[0]
        place = end


def _header(metadata: bytes) -> tuple[int, int]:
    """The kind and the body's bytes of a Message, a FlatBuffers table with these as its fields 1 and 3."""

    def field(number: int, form: str, table: int, vtable: int) -> int:
        offset = struct.unpack_from("<H", metadata, vtable + 4 + 2 * number)[0]
        return struct.unpack_from(form, metadata, table + offset)[0] if offset else 0

    table = struct.unpack_from("<I", metadata)[0]
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    fields = (struct.unpack_from("<H", metadata, vtable)[0] - 4) // 2
    return field(1, "<B", table, vtable), field(3, "<q", table, vtable) if fields > 3 else 0


class _Chained(io.RawIOBase):
    """Blocks of bytes as one stream."""

    def __init__(self, blocks: Iterable[bytes]):
        self._blocks, self._left = iter(blocks), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._left = memoryview(block)
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count
