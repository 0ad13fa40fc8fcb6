import gzip
import json
import struct
import tracemalloc
from decimal import Decimal
from unittest.mock import patch

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import DataError, StorageError
from shoal.plan.types import SourceObject
from shoal.rows import sources
from shoal.rows.formats import Rejected, parse
from shoal.rows.sources import is_readable, parts, rows
from shoal.storage import Storage

ROWS = [{"text": f"row {number} ü"} for number in range(5)]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def read(path):
    return list(rows(Storage(), SourceObject(url=str(path), size=0, etag="")))


def read_bytes(tmp_path, name: str, data: bytes):
    path = tmp_path / name
    path.write_bytes(data)
    return read(path)


def causes(found) -> list[tuple[int, str]]:
    return [(line, row.cause) for line, row in found if isinstance(row, Rejected)]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", JSONL),
        ("a.ndjson", JSONL),
        ("a.JSONL", JSONL),
        ("a.json", JSONL),
        ("bom.jsonl", b"\xef\xbb\xbf" + JSONL),
        ("crlf.jsonl", JSONL.replace(b"\n", b"\r\n")),
        ("no-last-newline.jsonl", JSONL.rstrip()),
        ("a.jsonl.gz", gzip.compress(JSONL)),
        ("parts.jsonl.gz", gzip.compress(JSONL[:40]) + gzip.compress(JSONL[40:])),
        ("a.jsonl.zst", zstandard.compress(JSONL)),
        ("parts.jsonl.zst", zstandard.compress(JSONL[:40]) + zstandard.compress(JSONL[40:])),
        ("array.json", json.dumps(ROWS, indent=1).encode()),
        ("array-bom.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
        ("array.json.gz", gzip.compress(json.dumps(ROWS).encode())),
    ],
)
def test_every_form_of_json_gives_the_same_rows(tmp_path, name, data):
    assert read_bytes(tmp_path, name, data) == list(enumerate(ROWS, 1))


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path):
    assert read_bytes(tmp_path, "a.jsonl", b'\n{"a": 1}\n  \r\n{"a": 2}\n\n') == [(2, {"a": 1}), (4, {"a": 2})]


def test_an_empty_object_has_no_rows(tmp_path):
    for name in ("a.jsonl", "a.json", "a.csv", "b.jsonl.gz"):
        assert read_bytes(tmp_path, name, gzip.compress(b"") if name.endswith("gz") else b"") == []


def test_bad_lines_are_rejected_in_their_place_and_the_others_are_read(tmp_path):
    data = b'{"a": 1}\n{"a": \n[1]\n{"a": "\xff"}\n{"a": 2}\n' + b"[" * 100_000 + b"\n"
    found = read_bytes(tmp_path, "a.jsonl", data)
    assert [row for _, row in found if isinstance(row, dict)] == [{"a": 1}, {"a": 2}]
    assert causes(found) == [(2, "malformed"), (3, "wrong-type"), (4, "invalid-utf8"), (6, "malformed")]


def test_utf16_is_named(tmp_path):
    _, row = read_bytes(tmp_path, "a.jsonl", '{"a": 1}\n'.encode("utf-16"))[0]
    assert isinstance(row, Rejected) and row.cause == "invalid-utf8" and "UTF-16" in row.detail


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b'[\n{"a": 1},\n{"a" 2}]', "a.json:3: .*row 2: Expecting ':' delimiter at column 6"),
        (b'[{"a": 1}', "it ends too early at column 10"),
        (b'[{"a": 1} {"a": 2}]', "',' is expected, not '{' at column 11"),
        (b'[{"a": 1}] 3', "something follows the array at column 12"),
        (b'[{"a": ' + b"[" * 100_000 + b"]", "row 1: "),
    ],
)
def test_a_broken_array_is_told_with_its_line_and_costs_no_rows_in_silence(tmp_path, data, place):
    with pytest.raises(DataError, match=place):
        read_bytes(tmp_path, "a.json", data)


def test_an_array_is_read_in_blocks_wherever_they_end(tmp_path, monkeypatch):
    rows = [{"text": "a\n[]{}\\" * number, "ü": [number, {"🦈": None}]} for number in range(60)]
    odd = [*rows, 12345, "text", [1]]
    for block in (7, 8, 64, 1 << 20):
        monkeypatch.setattr("shoal.rows.lines.BLOCK", block)
        for indent in (None, 1):
            found = read_bytes(tmp_path, "a.json", json.dumps(odd, ensure_ascii=False, indent=indent).encode())
            assert [row for _, row in found[:60]] == rows
            assert causes(found) == [(61, "wrong-type"), (62, "wrong-type"), (63, "wrong-type")]
            assert "12345" in found[60][1].detail


def test_bytes_that_are_not_utf8_spoil_their_own_row_of_an_array_alone(tmp_path):
    found = read_bytes(tmp_path, "a.json", b'[{"text": "a"}, {"text": "\xff"}]')
    assert [isinstance(parse(row, "text"), Rejected) for _, row in found] == [False, True]


def test_csv(tmp_path):
    data = '\ufeffinstruction,output\r\n"two\r\nlines",yes\r\na,"say ""hi"""\r\n'.encode()
    assert read_bytes(tmp_path, "a.csv", data) == [
        (2, {"instruction": "two\r\nlines", "output": "yes"}),
        (4, {"instruction": "a", "output": 'say "hi"'}),
    ]


def test_csv_with_odd_rows(tmp_path):
    found = read_bytes(tmp_path, "a.csv", b'a,b\n1,2,3\n1\nx,"y"z\n1,\xff\n' + b"1," + b"v" * 200_000 + b"\n")
    assert causes(found) == [(2, "malformed"), (4, "malformed")]
    assert found[1] == (3, {"a": "1", "b": None})
    assert found[3] == (5, {"a": "1", "b": "\udcff"})  # parsing rejects it
    assert len(found[4][1]["b"]) == 200_000


def test_a_quote_that_never_closes_is_not_one_long_row(tmp_path):
    with pytest.raises(DataError, match=r"a\.csv:3: a quoted field is never closed"):
        read_bytes(tmp_path, "a.csv", b'a,b\n1,2\n1,"2\n' + b"1,2\n" * 50)


def test_parquet(tmp_path):
    messages = [{"messages": [{"role": "user", "content": "hi"}]}, {"messages": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(messages), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == list(enumerate(messages, 1))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl.gz", gzip.compress(JSONL * 99)[:-20]),
        ("a.jsonl.zst", zstandard.compress(JSONL * 99)[:-4]),
        ("a.csv.gz", b"a,b\n1,2\n"),
        ("a.parquet", b"PAR1 and nothing more"),
        ("a.txt", b"hello"),
        ("a.parquet.gz", b""),
    ],
)
def test_an_object_that_cannot_be_read_is_told_with_its_name(tmp_path, name, data):
    with pytest.raises(DataError, match=rf"{name}: .*(write it again|use one of)"):
        read_bytes(tmp_path, name, data)


# parts of one object


class Watching(Storage):
    """Notes which bytes are asked for."""

    def __init__(self):
        super().__init__()
        self.asked: list[tuple[int, int]] = []

    def read_ranges(self, url, ranges):
        self.asked += ranges
        return super().read_ranges(url, ranges)


LINE = st.one_of(
    st.just(b""), st.just(b"  "), st.just(b'{"a": '), st.just(b"\xff"),
    st.text(max_size=30).map(lambda text: json.dumps({"a": text}, ensure_ascii=False).encode()),
)  # fmt: skip


@settings(max_examples=200)
@given(
    lines=st.lists(st.tuples(LINE, st.sampled_from([b"\n", b"\r\n"])), max_size=12),
    bom=st.booleans(),
    ends=st.booleans(),
    count=st.integers(1, 9),
    block=st.sampled_from([3, 16, 1 << 20]),
)
def test_the_parts_of_json_lines_are_the_whole(tmp_path_factory, lines, bom, ends, count, block):
    data = (b"\xef\xbb\xbf" if bom else b"") + b"".join(line + end for line, end in lines)
    path = tmp_path_factory.mktemp("parts") / "a.jsonl"
    data = data if ends else data.rstrip(b"\r\n")
    path.write_bytes(data)
    source = SourceObject(url=str(path), size=path.stat().st_size, etag="")
    whole = rows(Storage(), source)
    expected = list(whole)
    found, before = [], 0
    for part in range(count):
        with patch("shoal.rows.sources.BLOCK", block), patch("shoal.rows.sources.TAIL", 4):
            piece = rows(Storage(), source, part, count)
            found += [(line + before, row) for line, row in piece]
        before += piece.lines
    assert found == expected
    assert before == whole.lines == data.count(b"\n") + (data[-1:] not in (b"", b"\n"))


def test_a_part_reads_its_own_bytes_and_the_end_of_its_last_line(tmp_path):
    long = json.dumps({"a": "x" * 500_000}).encode() + b"\n"
    short = b'{"a": 1}\n' * 100_000
    (tmp_path / "a.jsonl").write_bytes(short + long + short)
    size = len(short + long + short)
    source = SourceObject(url=str(tmp_path / "a.jsonl"), size=size, etag="")
    read = []
    for part in range(4):
        storage = Watching()
        read.append(sum(1 for _ in rows(storage, source, part, 4)))
        first, last = size * part // 4, size * (part + 1) // 4
        assert min(start for start, _ in storage.asked) == max(0, first - 1)
        crossing = len(long) if part == 1 else 0
        assert max(end for _, end in storage.asked) <= min(size, last + 2 * crossing + sources.TAIL)
    assert sum(read) == 200_001 and all(read)


def test_a_line_too_long_is_set_apart_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr("shoal.rows.lines.MAX_LINE_BYTES", 4 << 20)
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": 1}\n{"a": "')
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"a": 2}\n')
    source = SourceObject(url=str(path), size=path.stat().st_size, etag="")
    for count in (1, 3):
        tracemalloc.start()
        found = [row for part in range(count) for _, row in rows(Storage(), source, part, count)]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [row.cause if isinstance(row, Rejected) else row for row in found] == [
            {"a": 1},
            "overlong-line",
            {"a": 2},
        ]
        assert peak < 24 << 20


def test_an_object_shorter_than_the_plan_saw_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(JSONL)
    source = SourceObject(url=str(tmp_path / "a.jsonl"), size=len(JSONL) + 50, etag="")
    with pytest.raises(StorageError, match="cut short or replaced"):
        list(rows(Storage(), source, 1, 2))


def test_how_many_parts_an_object_has_follows_from_its_name_and_size():
    sizes = {"a.jsonl": 3, "a.json": 1, "a.csv": 1, "a.jsonl.gz": 1, "a.parquet": 13, "a.arrow": 3, "a.NDJSON": 3}
    assert {name: parts(SourceObject(url=name, size=55 << 20, etag="")) for name in sizes} == sizes
    assert parts(SourceObject(url="a.jsonl", size=0, etag="")) == 1


# column files


def table(count: int = 100) -> pyarrow.Table:
    return pyarrow.table({
        "text": [f"row {number}" for number in range(count)],
        "kind": pyarrow.array(["a" if number % 3 else "b" for number in range(count)]).dictionary_encode(),
    })  # fmt: skip


def written(path, kind: str, rows: pyarrow.Table, each: int) -> SourceObject:
    if kind == "parquet":
        pyarrow.parquet.write_table(rows, path, row_group_size=each)
    else:
        make = pyarrow.ipc.new_file if kind == "file" else pyarrow.ipc.new_stream
        with pyarrow.OSFile(str(path), "wb") as sink, make(sink, rows.schema) as writer:
            writer.write_table(rows, max_chunksize=each)
    return SourceObject(url=str(path), size=path.stat().st_size, etag="")


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_the_parts_of_a_column_file_are_the_whole(tmp_path, kind, count):
    source = written(tmp_path / f"a.{'parquet' if kind == 'parquet' else 'arrow'}", kind, table(), 9)
    found, before = [], 0
    for part in range(count):
        piece = rows(Storage(), source, part, count)
        found += [(line + before, row) for line, row in piece]
        before += piece.lines
    assert found == list(enumerate(table().to_pylist(), 1))


def test_an_arrow_stream_is_shared_without_reading_what_is_others(tmp_path):
    rows_ = pyarrow.table({"text": ["x" * 1000] * 2000})
    source = written(tmp_path / "a.arrow", "stream", rows_, 100)
    storage = Watching()
    assert len(list(rows(storage, source, 1, 4))) == 500
    assert sum(end - start for start, end in storage.asked) < source.size / 4 * 1.5


def test_what_datasets_saves_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = [{"messages": [{"role": "user", "content": f"{number}"}]} for number in range(2500)]
    datasets.Dataset.from_list(made).save_to_disk(str(tmp_path / "saved"))
    (path,) = (tmp_path / "saved").glob("*.arrow")
    source = SourceObject(url=str(path), size=path.stat().st_size, etag="")
    assert [row for part in range(3) for _, row in rows(Storage(), source, part, 3)] == made


def test_fields_that_a_struct_adds_are_not_in_the_row(tmp_path):
    made = [
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [
            {"function": {"name": "f", "arguments": {"x": 1}}}, {"function": {"name": "g", "arguments": {"y": 2}}}]}]},
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(made), tmp_path / "a.parquet")
    (_, first), (_, second) = read(tmp_path / "a.parquet")
    assert first == made[0]
    assert [call["function"]["arguments"] for call in second["messages"][0]["tool_calls"]] == [{"x": 1}, {"y": 2}]


def test_columns_of_every_kind_are_rows_that_parsing_can_refuse(tmp_path):
    columns = {
        "bytes": pyarrow.array([b"\xff", None]),
        "decimal": pyarrow.array([Decimal("1.5"), None]),
        "nanoseconds": pyarrow.array([1, None], pyarrow.timestamp("ns")),
        "far": pyarrow.array([2**62, None], pyarrow.timestamp("s")),
        "zoned": pyarrow.array([1, None], pyarrow.timestamp("us", "Nowhere/Else")),
        "map": pyarrow.array([[("a", 1)], None], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        "struct": pyarrow.array([{"a": {"b": b"x"}}, None]),
        "bad": pyarrow.Array.from_buffers(
            pyarrow.string(), 2, [None, pyarrow.py_buffer(struct.pack("<3i", 0, 1, 2)), pyarrow.py_buffer(b"a\xff")]
        ),
    }
    source = written(tmp_path / "a.arrow", "stream", pyarrow.table(columns), 9)
    (_, first), (_, second) = list(rows(Storage(), source))
    assert isinstance(second, Rejected) and second == Rejected("invalid-utf8", "byte 1 of `bad` is not UTF-8")
    for name in columns:
        found = parse({**first, "messages": [{"role": "user", "content": "a"}]}, "text", {"text": name})
        assert isinstance(found, Rejected) == (name != "bad")
        assert name == "bad" or (found.cause == "wrong-type" and "must be a string" in found.detail)


def test_a_parquet_without_the_field_says_so_row_by_row(tmp_path):
    source = written(tmp_path / "a.parquet", "parquet", table(2).rename_columns(["body", "kind"]), 9)
    for _, row in rows(Storage(), source):
        assert isinstance(row, dict)
        assert parse(row, "text") == Rejected("missing-field", "`text` is missing; there is body, kind")


def test_a_huge_row_group_is_read_in_batches(tmp_path):
    words = ["".join(chr(97 + (number * place) % 26) for place in range(64)) * 64 for number in range(64)]
    big = pyarrow.table({"text": [words[number % 64] + str(number) for number in range(20_000)]})
    source = written(tmp_path / "a.parquet", "parquet", big, 20_000)
    del big
    before = pyarrow.total_allocated_bytes()
    peak, count = 0, 0
    for _ in rows(Storage(), source):
        count += 1
        peak = max(peak, pyarrow.total_allocated_bytes() - before) if count % 100 == 0 else peak
    assert count == 20_000
    assert peak < 40 << 20


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_a_damaged_column_file_is_told(tmp_path, kind):
    path = tmp_path / f"a.{'parquet' if kind == 'parquet' else 'arrow'}"
    written(path, kind, table(5000), 500)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    for count in (1, 2):
        source = SourceObject(url=str(path), size=path.stat().st_size, etag="")
        with pytest.raises(DataError, match=r"a\.(parquet|arrow): .*write it again"):
            [list(rows(Storage(), source, part, count)) for part in range(count)]


# what goes wrong in text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": 1}\r{"a": 2}\r', "bare carriage return"),
        ('{"a": 1}\n'.encode("utf-16-le"), "NUL bytes"),
        (b"\x00" * 40 + b"\n", "NUL bytes"),
        (b'{"a": 1} {"a": 2}\n', "Extra data at column 10"),
        (b'\xef\xbb\xbf{"a": 1\n', "delimiter at column 8"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(tmp_path, data, words):
    _, row = read_bytes(tmp_path, "a.jsonl", data)[0]
    assert isinstance(row, Rejected) and row.cause == "malformed" and words in row.detail


def test_a_bom_stands_at_the_start_alone(tmp_path):
    found = read_bytes(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf{"a": 2}\n')
    assert found[0] == (1, {"a": 1}) and causes(found) == [(2, "malformed")]


def test_odd_json_is_decided(tmp_path):
    big = 123456789012345678901234567890
    ((_, row),) = read_bytes(tmp_path, "a.jsonl", f'{{"a": 1, "n": {big}, "x": NaN, "a": 2}}'.encode())
    assert row["a"] == 2 and row["n"] == big and row["x"] != row["x"]


def test_csv_headers_that_cannot_be_right_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.csv:1: the header names `a` twice"):
        read_bytes(tmp_path, "a.csv", b"a,b,a\n1,2,3\n")
    with pytest.raises(DataError, match="UTF-16"):
        read_bytes(tmp_path, "a.csv", "a,b\n1,2\n".encode("utf-16"))


def test_names_say_what_can_be_read():
    assert [is_readable(name) for name in ("x.jsonl", "x.csv.zst", "s3://b/x.PARQUET", "x.txt", "jsonl")] == [
        True, True, True, False, False,
    ]  # fmt: skip
