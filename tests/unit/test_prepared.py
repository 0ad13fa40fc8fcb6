import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shards import encoded, of_lengths, write_prepared
from stores import FolderStore

from shoal.data.access import coalesce
from shoal.data.prepared import Prepared
from shoal.data.records import Records, checksum, record_bytes, to_record
from shoal.data.summary import TRAIN, VALIDATION, summary
from shoal.errors import DataError, StorageError
from shoal.rows.formats import Rejected
from shoal.rows.template import Encoded
from shoal.storage import Storage

URL = "s3://bucket/prepared/d1"


def write(storage: Storage, url: str, vocab_size=2**16) -> None:
    rows = [
        ([encoded(1, 2, 3)], TRAIN), Rejected("malformed", "x"), Rejected("malformed", "y"),
        ([encoded(5, 7), encoded(9)], TRAIN), ([encoded(2, 4, 65535)], VALIDATION),
    ]  # fmt: skip
    write_prepared(storage, url, [rows], 8, vocab_size)


def numbers(prepared: Prepared, indices) -> list[int]:
    """Of documents that say their own number."""
    return [int(one.input_ids[0]) for one in prepared.read(indices)]


@given(
    samples=st.lists(
        st.lists(st.tuples(st.integers(0, 2**16 - 1), st.booleans()), min_size=1, max_size=20), max_size=5
    ),
    wide=st.booleans(),
)
def test_records_give_their_samples_back(samples, wide):
    dtype = np.dtype("<u4" if wide else "<u2")
    given = [Encoded(np.array([i for i, _ in one]), np.array([learnt for _, learnt in one])) for one in samples]
    lengths = np.array([len(one) for one in samples], np.int32)
    stored = [to_record(one, dtype) for one in given]
    assert [len(one) for one in stored] == record_bytes(lengths, dtype).tolist()
    records = Records(lengths, dtype)
    for place, one in enumerate(stored):
        records.put(place, one)
    assert records.unsound([checksum(one) for one in stored]) == []
    assert records.unsound([checksum(one) ^ 1 for one in stored]) == list(range(len(stored)))
    for one, again in zip(given, records.samples(), strict=True):
        assert again.input_ids.tolist() == one.input_ids.tolist() and again.input_ids.dtype == np.int64
        assert again.loss_mask.tolist() == one.loss_mask.tolist() and again.loss_mask.dtype == np.bool_


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
@pytest.mark.parametrize("remote", [False, True])
def test_what_was_written_is_read(tmp_path, vocab_size, dtype, remote):
    storage, url = (FolderStore(tmp_path), URL) if remote else (Storage(), str(tmp_path / "out"))
    write(storage, url, vocab_size)
    prepared = Prepared.open(storage, url, tmp_path / "cache")
    assert prepared.summary.dtype == dtype
    assert prepared.lengths.tolist() == [3, 2, 1]
    assert prepared.targets.tolist() == [1, 1, 0]
    assert prepared.sources.tolist() == [0, 0, 0]
    assert prepared.validation_lengths.tolist() == [3]
    assert [one.input_ids.tolist() for one in prepared.read([2, 0, 1])] == [[9], [1, 2, 3], [5, 7]]
    assert [one.loss_mask.tolist() for one in prepared.read([0])] == [[True, False, True]]
    assert prepared.read([0])[0].input_ids.dtype == np.int64
    assert prepared.read_validation([0])[0].input_ids.tolist() == [2, 4, 65535]
    assert [prepared.sample_id(index) for index in range(3)] == ["object-0/1", "object-0/4/0", "object-0/4/1"]
    assert prepared.read([]) == []


def test_the_summary_counts(tmp_path):
    url = str(tmp_path / "out")
    assert summary(Storage(), url) is None
    write(Storage(), url)
    found = summary(Storage(), url)
    assert found is not None
    assert (found.rows, found.samples, found.validation_samples) == (5, 3, 1)
    assert (found.tokens, found.targets, found.validation_tokens, found.validation_targets) == (6, 2, 3, 1)
    assert found.packed_rows == 1
    assert found.rejected == {"malformed": 2}
    assert [(one.line, one.detail) for one in found.examples] == [(2, "x"), (3, "y")]


def test_nothing_prepared_and_another_versions_summary_are_told(tmp_path):
    with pytest.raises(DataError, match="no prepared data"):
        Prepared.open(Storage(), str(tmp_path / "out"), tmp_path)
    Storage().write(str(tmp_path / "out/meta.json"), b"{}")
    with pytest.raises(DataError, match="delete the folder"):
        Prepared.open(Storage(), str(tmp_path / "out"), tmp_path)


@pytest.mark.parametrize("held_out", [0, 3])
def test_a_split_without_samples_is_an_empty_one(tmp_path, held_out):
    store = FolderStore(tmp_path)
    write_prepared(store, URL, of_lengths([4, 5, 6], held_out=held_out, units=1))
    prepared = Prepared.open(store, URL, tmp_path / "cache")
    assert (len(prepared.lengths), len(prepared.validation_lengths)) == (3 - held_out, held_out)
    assert len(prepared.read(range(3 - held_out))) == 3 - held_out
    assert len(prepared.read_validation(range(held_out))) == held_out


def test_columns_are_fetched_once_per_node_and_checked(tmp_path):
    store = FolderStore(tmp_path)
    write_prepared(store, URL, of_lengths([4] * 20))
    threads = [threading.Thread(target=Prepared.open, args=(store, URL, tmp_path / "cache")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [name for name, _ in store.asked]
    assert names and len(names) == len(set(names))
    store.asked.clear()
    prepared = Prepared.open(store, URL, tmp_path / "cache")
    assert isinstance(prepared.lengths, np.memmap) and store.asked == []


def test_a_damaged_column_is_refused_and_not_kept(tmp_path):
    store = FolderStore(tmp_path)
    write_prepared(store, URL, of_lengths([4] * 20))
    spoil(store, "train.targets.bin", 13)
    with pytest.raises(DataError, match=r"train.targets.bin: its checksum is wrong"):
        Prepared.open(store, URL, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("train.targets.bin"))


def spoil(store: FolderStore, name: str, place: int = 0) -> None:
    """Turns one bit of what is stored."""
    data = bytearray(store.read(f"{URL}/{name}"))
    data[place] ^= 1
    store.write(f"{URL}/{name}", bytes(data))


@pytest.mark.parametrize("times", [1, 2, 99])
def test_a_record_that_is_damaged_on_the_way_is_read_again_and_told(tmp_path, times):
    store = FolderStore(tmp_path)
    write_prepared(store, URL, of_lengths([4] * 20))
    prepared = Prepared.open(store, URL, tmp_path / "cache", cache_bytes=0)
    left = [times]

    def change(name, ranges, found):
        left[0] -= 1
        return [bytes([data[0] ^ 4]) + data[1:] for data in found] if left[0] >= 0 else found

    store.change = change
    if times == 99:
        with pytest.raises(DataError, match=r"shard-00000.bin: bytes 0 to 9 are damaged.*delete the folder"):
            prepared.read([0])
    else:
        assert numbers(prepared, [0]) == [0]
    assert [fault.url for fault in store.faults] == [f"{URL}/shard-00000.bin"] * min(times, 3)
    assert "damaged as they came from the store" in store.faults[0].what


@pytest.mark.parametrize("local", [True, False])
def test_a_record_that_is_damaged_for_good_is_never_given_out(tmp_path, local):
    store = FolderStore(tmp_path)
    write_prepared(store, URL, of_lengths([4] * 20))
    spoil(store, "shard-00001.bin", 9)
    url = str(tmp_path / "objects" / "bucket" / "prepared" / "d1") if local else URL
    prepared = Prepared.open(store, url, tmp_path / "cache")
    assert numbers(prepared, range(11)) == list(range(11))
    with pytest.raises(DataError, match=r"shard-00001.bin: bytes 9 to 18 are damaged"):
        prepared.read([11])


def fetched(prepared: Prepared) -> None:
    prepared.keep()
    assert prepared._fetcher is not None
    prepared._fetcher.thread.join()


def shard_on_node(folder: Path, number: int) -> Path:
    return folder / "cache" / "prepared" / "d1" / f"shard-{number:05d}.bin"


@pytest.mark.parametrize("how", ["spoilt", "cut", "gone"])
def test_a_nodes_damaged_copy_is_dropped_and_the_store_asked(tmp_path, how):
    store = FolderStore(tmp_path)
    write_prepared(store, URL, of_lengths([4] * 20))
    fetched(Prepared.open(store, URL, tmp_path / "cache"))
    prepared = Prepared.open(store, URL, tmp_path / "cache")
    store.asked.clear()
    assert numbers(prepared, [0, 19]) == [0, 19] and store.asked == []
    path = shard_on_node(tmp_path, 0)
    if how == "gone":
        path.unlink()
        prepared = Prepared.open(store, URL, tmp_path / "cache")
    else:
        path.write_bytes(path.read_bytes()[:9] + (b"x" * 200 if how == "spoilt" else b""))
    assert numbers(prepared, [0, 3, 4, 19]) == [0, 3, 4, 19]
    assert store.shards_asked() and not path.exists()
    assert bool(store.faults) == (how != "gone")


def test_a_refusal_is_not_hidden(tmp_path):
    store = FolderStore(tmp_path)
    write_prepared(store, URL, of_lengths([4] * 20))
    prepared = Prepared.open(store, URL, tmp_path / "cache")
    store.delete(f"{URL}/shard-00000.bin")
    request = prepared.request([0])
    with pytest.raises(StorageError, match=r"shard-00000.bin"):
        prepared.take(request)


def test_samples_come_from_a_real_store(s3, tmp_path):
    storage, url = Storage(s3), "s3://shoal/prepared/d1"
    write_prepared(storage, url, of_lengths([5] * 40, held_out=4, units=5))
    prepared = Prepared.open(storage, url, tmp_path / "cache")
    assert numbers(prepared, range(35, -1, -1)) == list(range(35, -1, -1))
    fetched(prepared)
    assert all(shard_on_node(tmp_path, number).exists() for number in range(5))
    again = Prepared.open(storage, url, tmp_path / "cache")
    assert numbers(again, range(36)) == list(range(36))
    assert [int(one.input_ids[0]) for one in again.read_validation(range(4))] == [36, 37, 38, 39]


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 50)), max_size=30), st.integers(0, 60))
def test_coalesced_ranges_cover_each_range_within_one(ranges, gap):
    starts = np.array([start for start, _ in ranges], np.int64)
    stops = np.array([start + size for start, size in ranges], np.int64)
    joined = coalesce(starts, stops, gap)
    assert joined == sorted(joined)
    assert all(left[1] + gap < right[0] for left, right in itertools.pairwise(joined))
    assert all(
        any(begin <= start and stop <= end for begin, end in joined) for start, stop in zip(starts, stops, strict=True)
    )
