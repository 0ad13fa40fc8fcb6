"""Rows out of text: JSON lines, JSON arrays and CSV, in memory that does not grow with the object."""

import codecs
import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from shoal.errors import DataError, Problem
from shoal.rows.samples import Rejected

Row = dict[str, Any] | Rejected
Found = Iterator[tuple[int, Row | None]]
"""(line, row), and None for a line that is no row."""

BLOCK = 1 << 20
"""Bytes of text that are held at a time, when no line is longer."""
MAX_LINE_BYTES = 32 << 20
"""A longer line, array element or CSV field is set apart without being held."""
BOM = b"\xef\xbb\xbf"
UTF16 = ("\udcff\udcfe", "\udcfe\udcff")
"""UTF-16's marks as undecodable bytes."""

csv.field_size_limit(MAX_LINE_BYTES)  # the default refuses fields over 128 KiB, and long documents are ordinary


def blocks_of(stream: BinaryIO) -> Iterator[bytes]:
    """The rest of a stream."""
    return iter(lambda: stream.read(BLOCK), b"")


def cut(blocks: Iterable[bytes], own: int | None = None) -> Iterator[bytes | None]:
    """The lines without their newline, None for one over MAX_LINE_BYTES; with `own`, those that begin before byte `own`.

    No block is asked for that holds nothing of these lines.
    """
    held: list[bytes] = []
    begin = size = 0  # where the line begins, and its bytes so far
    for block in blocks:
        *ends, rest = block.split(b"\n")
        for end in ends:
            size += len(end)
            if size > MAX_LINE_BYTES:
                yield None
            else:
                yield b"".join((*held, end)) if held else end
            begin += size + 1
            size, held = 0, []
            if own is not None and begin >= own:
                return
        size += len(rest)
        if size > MAX_LINE_BYTES:
            held = []
        elif rest:
            held.append(rest)
    if size:
        yield None if size > MAX_LINE_BYTES else b"".join(held)


def json_lines(lines: Iterable[bytes | None], from_start: bool = True) -> Found:
    """One row per line that is not blank; `from_start`: the first line may begin with a BOM."""
    number = 0
    for number, line in enumerate(lines, 1):
        if line is None:
            yield number, Rejected("overlong-line", f"the line has more than {MAX_LINE_BYTES >> 20} MiB")
            continue
        if number == 1 and from_start:
            line = line.removeprefix(BOM)
        yield number, None if not line or line.isspace() else _parsed(line)


def _parsed(line: bytes) -> Row:
    # Of a key that is there twice the last counts, as in every reader; orjson would be twice as fast, but rounds
    # integers beyond 64 bits, and reading is a twentieth of tokenising.
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        hint = " (the file looks like UTF-16)" if b"\x00" in line else ""
        return Rejected("invalid-utf8", f"byte {error.start + 1} of the line is not UTF-8{hint}")
    except json.JSONDecodeError as error:
        return Rejected("malformed", f"{error.msg} at column {error.pos + 1}: {_around(error)}{_hint(error)}")
    except (ValueError, RecursionError) as error:  # a number of too many digits; nesting without end
        return Rejected("malformed", str(error))
    return _object(row)


def _object(row: object) -> Row:
    if isinstance(row, dict):
        return row
    return Rejected("wrong-type", f"a row must be an object, this is {json.dumps(row)[:60]}")


def _around(error: json.JSONDecodeError) -> str:
    return repr(error.doc[max(0, error.pos - 20) : error.pos + 20].strip())


def _hint(error: json.JSONDecodeError) -> str:
    if "\x00" in error.doc[:4096]:
        return " (with NUL bytes: the file is UTF-16, or was cut off in a crash)"
    if error.msg == "Extra data" and "\r" in error.doc[: error.pos]:
        return " (its lines end in a bare carriage return: end them in a newline)"
    return ""


def json_document(stream: BinaryIO, url: str) -> Found:
    """An array of objects, read one by one; or JSON lines under another name."""
    start = b""
    while len(start) < BLOCK and (block := stream.read(BLOCK - len(start))):
        start += block
    blocks = _followed(start, blocks_of(stream))
    if start.removeprefix(BOM).lstrip().startswith(b"["):
        return _Array(blocks, url).rows()
    return json_lines(cut(blocks))


def _followed(start: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield start
    yield from rest


class _Array:
    """A JSON array as text of which just the elements being read are held."""

    def __init__(self, blocks: Iterator[bytes], url: str):
        self._blocks, self._url = blocks, url
        # bytes that are not UTF-8 become surrogates, which parsing finds in their own row
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._place, self._done = "", 0, False
        self._line, self._column = 1, 1  # of the first character held

    def rows(self) -> Found:
        """Raises DataError where the array is broken: nothing behind that place can be told."""
        number = 0
        self._take("[")
        while self._peek() != "]":
            if number:
                self._take(",")
            self._peek()
            number += 1
            yield number, _object(self._element(number))
        self._take("]")
        if self._peek():
            self._broken("something follows the array")

    def _fill(self) -> bool:
        """Lets go of what was read and adds a block; False at the end."""
        self._line, self._column = self._at(self._place)
        rest, self._place = self._text[self._place :], 0
        block = next(self._blocks, None)
        if block is None:
            more, self._done = ("" if self._done else self._decoder.decode(b"", True)), True
        else:
            more = self._decoder.decode(block)
        self._text = rest + more
        return block is not None or bool(more)

    def _peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._place < len(self._text):
                if self._text[self._place] not in " \t\r\n":
                    return self._text[self._place]
                self._place += 1
            if not self._fill():
                return ""

    def _take(self, character: str) -> None:
        found = self._peek()
        if found != character:
            self._broken(f"{character!r} is expected, not {found!r}" if found else "it ends too early")
        self._place += 1

    def _element(self, number: int) -> Any:
        while True:
            try:
                value, end = self._scan(self._text, self._place)
            except json.JSONDecodeError as error:
                at = self._at(error.pos)
                # the element may go on in the next block
                if len(self._text) - self._place > MAX_LINE_BYTES or not self._fill():
                    self._broken(f"row {number}: {error.msg}", at)
            except (ValueError, RecursionError) as error:  # a number of too many digits; nesting without end
                self._broken(f"row {number}: {error}")
            else:
                if end < len(self._text) or isinstance(value, dict) or not self._fill():
                    self._place = end
                    return value

    def _at(self, place: int) -> tuple[int, int]:
        """Line and column, from 1, of a character that is held."""
        newlines = self._text.count("\n", 0, place)
        column = place - self._text.rfind("\n", 0, place) if newlines else self._column + place
        return self._line + newlines, column

    def _broken(self, what: str, at: tuple[int, int] | None = None) -> None:
        line, column = at or self._at(self._place)
        fix = "correct it, or write JSON lines (.jsonl), where one bad row costs no others"
        raise DataError(Problem(f"{self._url}:{line}", f"is a broken JSON array: {what} at column {column}", fix))


def csv_rows(stream: BinaryIO, url: str) -> Found:
    """A header and its rows; raises DataError where a quote swallows the rest of the file."""
    # bytes that are not UTF-8 become surrogates, which parsing finds in their own row
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.DictReader(text, strict=True)
    try:
        header = list(reader.fieldnames or ())  # reads the header, so that lines count from behind it
    except csv.Error as error:
        raise DataError(Problem(f"{url}:1", f"the header cannot be read ({error})", "correct it")) from error
    if header and header[0].startswith(UTF16):
        raise DataError(Problem(url, "looks like UTF-16", "save the file as UTF-8"))
    if twice := [name for number, name in enumerate(header) if name in header[:number]]:
        raise DataError(Problem(f"{url}:1", f"the header names `{twice[0]}` twice", "rename one of the columns"))
    while True:
        line = reader.reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            yield reader.reader.line_num, None
            return
        except csv.Error as error:
            if "end of data" in str(error) or "field limit" in str(error):  # the rows from here on went into one field
                problem = Problem(f"{url}:{line}", "a quoted field is never closed", "close it, or double the quote")
                raise DataError(problem) from error
            yield line, Rejected("malformed", str(error))
            continue
        extra = row.pop(None, None)  # type: ignore[arg-type]
        if extra is not None:
            yield line, Rejected("malformed", f"{len(header) + len(extra)} fields, the header names {len(header)}")
        else:
            yield line, row
