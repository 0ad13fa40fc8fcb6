import itertools
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.data import prepared as prepared_module
from shoal.data.prepared import Prepared, coalesce
from shoal.data.shards import UnitWriter, publish
from shoal.data.summary import TRAIN, VALIDATION, UnitSummary, summary
from shoal.data.template import Encoded
from shoal.errors import DataError
from shoal.storage import Storage, join


def encoded(*ids: int) -> Encoded:
    return Encoded(np.array(ids), np.array([number % 2 == 1 for number in ids]))


def write(storage: Storage, url: str, folder, vocab_size=2**16) -> None:
    with UnitWriter(folder, 0, vocab_size) as writer:
        writer.add(1, [encoded(1, 2, 3)], TRAIN)
        writer.add(4, [encoded(5, 7), encoded(9)], TRAIN)
        writer.add(5, [encoded(2, 4, 65535)], VALIDATION)
        files = writer.upload(storage, url)
    unit = UnitSummary(
        unit=0, url="rows.jsonl", rows=5, rejected={"malformed": 2}, examples=(),
        dtype=writer.dtype, highest_token=writer.highest_token,
        input_ids=files[0], loss_mask=files[1], index=files[2],
    )  # fmt: skip
    publish(storage, url, [unit], "abc", "text", 8)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_what_was_written_is_read(tmp_path, vocab_size, dtype):
    url = str(tmp_path / "out")
    write(Storage(), url, tmp_path, vocab_size)
    prepared = Prepared.open(Storage(), url, tmp_path / "cache")
    assert prepared.summary.dtype == dtype
    assert prepared.lengths.tolist() == [3, 2, 1]
    assert prepared.targets.tolist() == [1, 1, 0]
    assert prepared.validation_lengths.tolist() == [3]
    assert [one.input_ids.tolist() for one in prepared.read([2, 0, 1])] == [[9], [1, 2, 3], [5, 7]]
    assert [one.loss_mask.tolist() for one in prepared.read([0])] == [[True, False, True]]
    assert prepared.read([0])[0].input_ids.dtype == np.int64
    assert prepared.read_validation([0])[0].input_ids.tolist() == [2, 4, 65535]
    assert [prepared.sample_id(index) for index in range(3)] == ["rows.jsonl/1", "rows.jsonl/4/0", "rows.jsonl/4/1"]
    assert prepared.read([]) == []


def test_the_summary_counts(tmp_path):
    url = str(tmp_path / "out")
    assert summary(Storage(), url) is None
    write(Storage(), url, tmp_path)
    found = summary(Storage(), url)
    assert found is not None
    assert (found.rows, found.samples, found.validation_samples) == (5, 3, 1)
    assert (found.tokens, found.targets, found.validation_tokens, found.validation_targets) == (6, 2, 3, 1)
    assert found.packed_rows == 1
    assert found.rejected == {"malformed": 2}


def test_nothing_prepared_and_another_versions_summary_are_told(tmp_path):
    with pytest.raises(DataError, match="no prepared data"):
        Prepared.open(Storage(), str(tmp_path / "out"), tmp_path)
    Storage().write(str(tmp_path / "out/meta.json"), b"{}")
    with pytest.raises(DataError, match="delete the folder"):
        Prepared.open(Storage(), str(tmp_path / "out"), tmp_path)


class Counting(Storage):
    """A store at another place, whose downloads are counted."""

    downloads: list[str] = []

    def download(self, url, path):
        self.downloads.append(url.rpartition("/")[2])
        super().download(url, path)


@pytest.fixture
def remote(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared_module, "_is_local", lambda url: False)
    monkeypatch.setattr(Counting, "downloads", [])
    url = str(tmp_path / "out")
    write(Storage(), url, tmp_path)
    return url


def test_a_file_is_fetched_once_per_node(remote, tmp_path):
    def read() -> None:
        prepared = Prepared.open(Counting(), remote, tmp_path / "cache")
        assert prepared.read([0])[0].input_ids.tolist() == [1, 2, 3]

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(Counting.downloads) == ["index.npz", "shard-00000.input_ids.bin", "shard-00000.loss_mask.bin"]


def test_a_changed_file_is_refused(remote, tmp_path):
    storage = Counting()
    name = "shard-00000.input_ids.bin"
    data = bytearray(storage.read(join(remote, name)))
    data[0] ^= 1
    storage.write(join(remote, name), bytes(data))
    prepared = Prepared.open(storage, remote, tmp_path / "cache")
    with pytest.raises(DataError, match="checksum"):
        prepared.read([0])
    assert not (tmp_path / "cache/prepared/abc" / name).exists()


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
