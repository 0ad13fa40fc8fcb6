"""Rows out of source objects, one at a time: JSON lines (plain, .gz, .zst), JSON, CSV, Parquet."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from shoal.data.formats import Rejected
from shoal.errors import DataError, Problem, StorageError
from shoal.plan.types import SourceObject
from shoal.storage import Storage

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
"""Kinds of objects; all but Parquet may end in one of COMPRESSIONS besides."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

BLOCK_LINES = 256
"""Lines that one part reads in a row."""

Row = dict[str, Any] | Rejected
IsMine = Callable[[int], bool]

csv.field_size_limit(sys.maxsize)  # the default refuses fields over 128 KiB, and long documents are ordinary


def is_readable(url: str) -> bool:
    """Whether the name says a kind of object that can be read."""
    return _kind(url) is not None


def rows(storage: Storage, source: SourceObject, part: int = 0, parts: int = 1) -> Iterator[tuple[int, Row]]:
    """(line, row) for each row of the object, in order; what cannot be read as a row is a Rejected in its place.

    Lines count from 1 (in Parquet and in JSON arrays: rows from 1); blank lines are no rows. Of several `parts` one
    reads every parts-th block of lines, so that one large object is shared among processes.
    Raises DataError when the object as a whole cannot be read, StorageError when the store refuses.
    """
    kind = _kind(source.url)
    if kind is None:
        raise DataError(Problem(source.url, "is no kind of file Shoal reads", f"use one of {', '.join(SUFFIXES)}"))

    def is_mine(line: int) -> bool:
        return line // BLOCK_LINES % parts == part

    with storage.open(source.url) as stored:
        found = _parquet(stored, source.url) if kind == ".parquet" else _text(stored, source.url, kind, is_mine)
        yield from (row for row in found if is_mine(row[0]))


def _text(stored: BinaryIO, url: str, kind: str, is_mine: IsMine) -> Iterator[tuple[int, Row]]:
    try:
        stream = _decompressed(stored, url)
        if kind == ".csv":
            yield from _csv(stream, url)
        else:
            yield from _json(stream, is_mine) if kind == ".json" else _lines(stream, is_mine)
    except StorageError:
        raise
    except OSError as error:
        fix = "it was cut short or damaged; write it again"
        raise DataError(Problem(url, f"cannot be decompressed ({error})", fix)) from error


def _kind(url: str) -> str | None:
    name = url.lower()
    for compression in COMPRESSIONS:
        if name.endswith(compression):
            name = name.removesuffix(compression)
            return next((suffix for suffix in SUFFIXES if name.endswith(suffix) and suffix != ".parquet"), None)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _decompressed(stored: BinaryIO, url: str) -> BinaryIO:
    """pyarrow's streams take files of several parts and, unlike zstandard's, say so when one is cut short."""
    compression = next((name for ending, name in COMPRESSIONS.items() if url.lower().endswith(ending)), None)
    if compression is None:
        return stored
    import pyarrow

    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(stored, mode="r"), compression)
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream)))


def _lines(stream: BinaryIO, is_mine: IsMine) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(stream, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if is_mine(number) and line.strip():  # parsing costs more than reading
            yield number, _parsed(line)


def _parsed(line: bytes) -> Row:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        hint = " (the file looks like UTF-16)" if b"\x00" in line else ""
        return Rejected("invalid-utf8", f"byte {error.start + 1} of the line is not UTF-8{hint}")
    except json.JSONDecodeError as error:
        return Rejected("malformed", f"{error.msg} at column {error.colno}: {_around(error.doc, error.pos)}")
    except (ValueError, RecursionError) as error:  # a number of too many digits; nesting without end
        return Rejected("malformed", str(error))
    return _object(row)


def _object(row: object) -> Row:
    if isinstance(row, dict):
        return row
    return Rejected("wrong-type", f"a row must be an object, this is {json.dumps(row)[:60]}")


def _around(text: str, position: int) -> str:
    return repr(text[max(0, position - 20) : position + 20].strip())


def _json(stream: BinaryIO, is_mine: IsMine) -> Iterator[tuple[int, Row]]:
    """An array of objects, held in memory; or JSON lines under another name."""
    start = stream.read(4096)
    rest = io.BufferedReader(_Joined(start, stream))
    if not start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _lines(rest, is_mine)
        return
    try:
        found = json.loads(rest.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        yield 1, Rejected("invalid-utf8", f"byte {error.start + 1} of the file is not UTF-8")
        return
    except json.JSONDecodeError as error:
        yield error.lineno, Rejected("malformed", f"{error.msg} at column {error.colno}, so no row could be read")
        return
    for number, row in enumerate(found, 1):
        yield number, _object(row)


class _Joined(io.RawIOBase):
    """The bytes already read, and then the rest of the stream."""

    def __init__(self, start: bytes, stream: BinaryIO):
        self._start, self._stream = start, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._start[: len(buffer)] or self._stream.read(len(buffer))
        self._start = self._start[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def _csv(stream: BinaryIO, url: str) -> Iterator[tuple[int, Row]]:
    # bytes that are not UTF-8 become surrogates, which parsing finds in their own row
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(text, strict=True)
    try:
        fields = len(reader.fieldnames or ())  # reads the header, so that lines count from behind it
    except csv.Error as error:
        yield 1, Rejected("malformed", f"the header: {error}")
        return
    while True:
        line = reader.reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error):  # all rows from here to the end of the file went into one field
                problem = Problem(f"{url}:{line}", "a quoted field is never closed", "close it, or double the quote")
                raise DataError(problem) from error
            yield line, Rejected("malformed", str(error))
            continue
        extra = row.pop(None, None)  # type: ignore[arg-type]
        if extra is not None:
            yield line, Rejected("malformed", f"{fields + len(extra)} fields, the header names {fields}")
        else:
            yield line, row


def _parquet(stored: BinaryIO, url: str) -> Iterator[tuple[int, Row]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(stored).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pyarrow.ArrowException as error:
        what = f"cannot be read as Parquet after row {number} ({' '.join(str(error).split()):.120})"
        raise DataError(Problem(url, what, "write it again")) from error
