"""Rows out of source objects, one at a time, and how one large object is shared among processes."""

import io
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import BinaryIO, cast

from shoal.errors import DataError, Problem, StorageError
from shoal.plan.types import SourceObject
from shoal.rows.lines import BLOCK, MAX_LINE_BYTES, Found, Row, blocks_of, csv_rows, cut, json_document, json_lines
from shoal.rows.tables import arrow_rows, parquet_rows
from shoal.storage import Storage

__all__ = ["COMPRESSIONS", "MAX_LINE_BYTES", "PART_BYTES", "SUFFIXES", "Row", "Rows", "is_readable", "parts", "rows"]

TEXTS = (".jsonl", ".ndjson", ".json", ".csv")
"""Kinds of objects that may end in one of COMPRESSIONS besides."""
TABLES = (".parquet", ".arrow", ".feather")
SUFFIXES = (*TEXTS, *TABLES)
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

PART_BYTES = 16 << 20
"""Larger objects are read in parts of about this size."""
MAX_PARTS = 4096
PARQUET_RATIO = 4
"""How much larger rows are than they lie in Parquet."""
RANGES = 4
"""Blocks of a part that are asked for at once: one request alone does not fill the line."""
TAIL = 64 << 10
"""Bytes that are first read behind a part's end for the line that crosses it."""


class Rows(Iterator[tuple[int, Row]]):
    """(line, row) for each row in order; what cannot be read as a row is a Rejected in its place.

    Lines count from 1 within the part (in JSON arrays and column files: rows); blank lines count but are no rows.
    """

    lines: int
    """Lines seen so far; at the end, all of the part's."""

    def __init__(self, found: Found):
        self._found, self.lines = found, 0

    def __next__(self) -> tuple[int, Row]:
        for line, row in self._found:
            self.lines = line
            if row is not None:
                return line, row
        raise StopIteration


def is_readable(url: str) -> bool:
    """Whether the name says a kind of object that can be read."""
    return _kind(url) is not None


def parts(source: SourceObject) -> int:
    """In how many parts an object is read: says its name and size alone, so that equal data have equal parts.

    Some parts of a column file may be empty: they are dealt by row groups and record batches.
    """
    kind, size = _kind(source.url), source.size
    if kind in (".json", ".csv") or source.url.lower().endswith(tuple(COMPRESSIONS)):
        return 1
    return max(1, min(MAX_PARTS, size * (PARQUET_RATIO if kind == ".parquet" else 1) // PART_BYTES))


def rows(storage: Storage, source: SourceObject, part: int = 0, parts: int = 1) -> Rows:
    """The rows of one part of an object; the parts together are the object, each row once.

    A line belongs to the part in which its first byte lies. Raises, while reading, DataError when the object as a
    whole cannot be read, StorageError when the store refuses.
    """
    kind = _kind(source.url)
    if kind is None:
        raise DataError(Problem(source.url, "is no kind of file Shoal reads", f"use one of {', '.join(SUFFIXES)}"))
    if kind in (".arrow", ".feather"):
        return Rows(arrow_rows(storage, source.url, source.size, part, parts))
    if parts > 1 and kind in (".jsonl", ".ndjson"):
        return Rows(_ranged(storage, source, part, parts))
    return Rows(_streamed(storage, source.url, kind, part, parts))


def _streamed(storage: Storage, url: str, kind: str, part: int, parts: int) -> Found:
    with storage.open(url) as stored:
        if kind == ".parquet":
            yield from parquet_rows(stored, url, part, parts)
            return
        if part > 0:  # such objects have one part; others find it empty
            return
        try:
            stream = _decompressed(stored, url)
            if kind == ".csv":
                yield from csv_rows(stream, url)
            else:
                yield from json_document(stream, url) if kind == ".json" else json_lines(cut(blocks_of(stream)))
        except StorageError:
            raise
        except OSError as error:
            fix = "it was cut short or damaged; write it again"
            raise DataError(Problem(url, f"cannot be decompressed ({error})", fix)) from error


def _ranged(storage: Storage, source: SourceObject, part: int, parts: int) -> Found:
    """JSON lines of one range of bytes. The byte before it tells whether a line begins there."""
    first, last = source.size * part // parts, source.size * (part + 1) // parts
    if first == last:
        return
    start = max(0, first - 1)
    lines = cut(_blocks(storage, source, start, last), own=last - start)
    yield from json_lines(islice(lines, 1 if first else 0, None), from_start=first == 0)


def _blocks(storage: Storage, source: SourceObject, start: int, end: int) -> Iterator[bytes]:
    """The bytes from `start` to `end`, and behind them in growing steps as far as somebody asks."""
    while start < end:
        edges = [min(end, start + number * BLOCK) for number in range(RANGES + 1)]
        ranges = [(low, high) for low, high in pairwise(edges) if low < high]
        yield from storage.read_ranges(source.url, ranges)
        start = edges[-1]
    step = TAIL
    while start < source.size:
        stop = min(source.size, start + step)
        yield storage.read_ranges(source.url, [(start, stop)])[0]
        start, step = stop, min(2 * step, BLOCK)


def _kind(url: str) -> str | None:
    name = url.lower()
    for compression in COMPRESSIONS:
        if name.endswith(compression):
            name = name.removesuffix(compression)
            return next((suffix for suffix in TEXTS if name.endswith(suffix)), None)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _decompressed(stored: BinaryIO, url: str) -> BinaryIO:
    """pyarrow's streams take files of several parts and, unlike zstandard's, say so when one is cut short."""
    compression = next((name for ending, name in COMPRESSIONS.items() if url.lower().endswith(ending)), None)
    if compression is None:
        return stored
    import pyarrow

    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(stored, mode="r"), compression)
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream), BLOCK))
