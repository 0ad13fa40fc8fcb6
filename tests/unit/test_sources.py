import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from shoal.data.formats import Rejected
from shoal.data.sources import is_readable, rows
from shoal.errors import DataError
from shoal.plan.types import SourceObject
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


def test_a_broken_array_is_one_rejected_row_with_its_line(tmp_path):
    assert causes(read_bytes(tmp_path, "a.json", b'[\n{"a": 1},\n{"a" 2}]')) == [(3, "malformed")]


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


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_the_parts_of_an_object_are_the_object(tmp_path, name):
    lines = [{"text": str(number)} for number in range(1500)]
    data = "text\n" + "".join(f"{number}\n" for number in range(1500))
    if name != "a.csv":
        data = json.dumps(lines) if name == "a.json" else "".join(json.dumps(line) + "\n" for line in lines)
    source = SourceObject(url=str(tmp_path / name), size=0, etag="")
    (tmp_path / name).write_text(data)
    parts = [list(rows(Storage(), source, part, 3)) for part in range(3)]
    assert sorted((row for part in parts for row in part), key=lambda row: row[0]) == read(tmp_path / name)
    assert all(400 < len(part) < 600 for part in parts)


def test_names_say_what_can_be_read():
    assert [is_readable(name) for name in ("x.jsonl", "x.csv.zst", "s3://b/x.PARQUET", "x.txt", "jsonl")] == [
        True, True, True, False, False,
    ]  # fmt: skip
