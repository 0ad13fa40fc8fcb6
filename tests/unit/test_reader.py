import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import of_lengths, write_prepared
from stores import FolderStore

from shoal.data import access as access_module
from shoal.data import reader as reader_module
from shoal.data.order import Order
from shoal.data.prepared import Prepared
from shoal.data.reader import Reader
from shoal.errors import Problem, StorageError
from shoal.storage import Storage

SEQUENCE_LENGTH = 32
WORLDS = (*range(1, 9), 13, 16, 31, 64)


def write(folder: Path, lengths, held_out=0) -> str:
    """Prepared data over two units; the last `held_out` samples are held out."""
    url = str(folder / "prepared")
    write_prepared(Storage(), url, of_lengths(lengths, held_out), SEQUENCE_LENGTH)
    return url


def open_at(url, folder, batch_size=4, packing=True) -> tuple[Prepared, Order]:
    prepared = Prepared.open(Storage(), url, folder / "cache")
    return prepared, Order(prepared.lengths, prepared.targets, 17, batch_size, SEQUENCE_LENGTH, packing)


def lengths_of(count: int) -> list[int]:
    return [int(length) for length in np.random.default_rng(count).integers(2, SEQUENCE_LENGTH + 1, count)]


def seen(step) -> list[int]:
    return [int(document.input_ids[0]) for micro in step.micro_batches for document in micro.documents]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def url(folder) -> str:
    return write(folder, lengths_of(40), held_out=7)


@pytest.fixture
def remote(tmp_path) -> tuple[FolderStore, str]:
    """The same samples in many shards of another place."""
    store, url = FolderStore(tmp_path / "store"), "s3://bucket/prepared"
    write_prepared(store, url, of_lengths(lengths_of(40), held_out=7, units=8), SEQUENCE_LENGTH)
    return store, url


def reader_at(store, url, cache, cache_bytes, batch_size=4) -> Reader:
    prepared = Prepared.open(store, url, cache, cache_bytes)
    order = Order(prepared.lengths, prepared.targets, 17, batch_size, SEQUENCE_LENGTH, packing=False)
    return Reader(prepared, order, 0, 1, 1)


@pytest.mark.parametrize("packing", [True, False])
def test_the_union_over_ranks_is_one_global_batch_for_every_world(url, folder, packing):
    prepared, order = open_at(url, folder, packing=packing)
    for step in range(1, 2 * order.batches_of(0) + 1):
        whole = Reader(prepared, order, 0, 1, 1).step(step)
        for workers in WORLDS:
            parts = [Reader(prepared, order, rank, workers, 2).step(step) for rank in range(workers)]
            assert sorted(itertools.chain(*map(seen, parts))) == sorted(seen(whole))
            assert {(part.targets, part.tokens, part.epoch) for part in parts} == {
                (whole.targets, whole.tokens, whole.epoch)
            }
            assert len({len(part.micro_batches) for part in parts}) == 1
        documents = [document for micro in whole.micro_batches for document in micro.documents]
        assert whole.targets == sum(int(document.loss_mask[1:].sum()) for document in documents)
        assert whole.tokens == sum(len(document.input_ids) for document in documents)


@settings(max_examples=25)
@given(count=st.integers(1, 6), workers=st.integers(1, 64), micro=st.integers(1, 3), packing=st.booleans())
def test_tiny_data_keep_all_ranks_in_step(tmp_path_factory, count, workers, micro, packing):
    folder = tmp_path_factory.mktemp("tiny")
    prepared, order = open_at(write(folder, [9] * count), folder, packing=packing)
    parts = [
        list(Reader(prepared, order, rank, workers, micro).steps(1, order.batches_of(0))) for rank in range(workers)
    ]
    assert sorted(number for part in parts for step in part for number in seen(step)) == list(range(count))
    assert len({tuple(len(step.micro_batches) for step in part) for part in parts}) == 1


def test_resuming_at_any_step_reads_the_same_as_never_having_stopped(url, folder):
    prepared, order = open_at(url, folder)
    last = 2 * order.batches_of(0) + 1
    whole = [seen(step) for step in Reader(prepared, order, 1, 2, 1).steps(1, last)]
    for first in range(1, last + 1):
        again, order = open_at(url, folder)
        assert [seen(step) for step in Reader(again, order, 1, 2, 1).steps(first, last)] == whole[first - 1 :]


def test_what_was_read_ahead_is_not_consumed(url, folder):
    prepared, order = open_at(url, folder)
    reader = Reader(prepared, order, 0, 1, 1)
    steps = reader.steps(1, 6)
    whole = [seen(next(steps)), seen(next(steps))]
    steps.close()
    assert [seen(step) for step in reader.steps(3, 6)] == [seen(reader.step(number)) for number in range(3, 7)]
    assert whole == [seen(reader.step(1)), seen(reader.step(2))]


def test_reading_ahead_is_bounded_in_steps_and_ends_with_the_loop(remote, folder):
    store, url = remote
    reader = reader_at(store, url, folder / "none", cache_bytes=0)
    begun = []
    begin = reader._begin
    reader._begin = lambda step: begun.append(step) or begin(step)
    steps = reader.steps(1, 10_000)
    assert begun == []
    next(steps)
    time.sleep(0.2)
    steps.close()
    assert max(begun) <= 1 + 2 * reader.ahead
    assert begun == list(range(1, max(begun) + 1))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.mark.parametrize(("bytes_", "ahead"), [(2**26, 16), (9 * 4 * SEQUENCE_LENGTH * 3, 3), (1, 1)])
def test_reading_ahead_is_bounded_in_bytes(url, folder, monkeypatch, bytes_, ahead):
    prepared, order = open_at(url, folder)
    monkeypatch.setattr(reader_module, "AHEAD_BYTES", bytes_)
    assert Reader(prepared, order, 0, 1, 1).ahead == ahead
    assert len(list(Reader(prepared, order, 0, 1, 1).steps(1, 9))) == 9


def test_the_first_step_is_asked_for_alone_and_then_several_at_once(remote, folder):
    store, url = remote
    reader = reader_at(store, url, folder / "none", cache_bytes=0, batch_size=1)
    lock, running, most = threading.Lock(), [0], [0]

    def wait(name, ranges, found):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.2)
        with lock:
            running[0] -= 1
        return found

    store.change = wait
    asked = len(store.asked)
    produced = reader._produce(1, 20)
    next(produced)
    assert (most, len(store.asked) - asked) == ([1], 1)
    for _ in range(8):
        next(produced)
    assert most[0] >= 4


def test_a_refusal_comes_up_at_the_step_that_needs_it_and_not_before(remote, folder):
    store, url = remote
    reader = reader_at(store, url, folder / "none", cache_bytes=0, batch_size=1)
    refused = reader._begin(5)[1].wanted

    def change(name, ranges, found):
        mine = [(a, a + b) for a, b in zip(refused.offsets, refused.sizes, strict=True)]
        if name == f"shard-{refused.units[0]:05d}.bin" and any(a <= c < b for a, b in ranges for c, _ in mine):
            raise StorageError(Problem(name, "is gone"))
        return found

    whole = reader_at(store, url, folder / "none", cache_bytes=0, batch_size=1)
    expected = [seen(whole.step(number)) for number in range(1, 5)]
    store.change = change
    steps = reader.steps(1, 9)
    got = []
    with pytest.raises(StorageError, match="is gone"):
        for step in steps:
            got.append(seen(step))
    assert got == expected


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_each_held_out_sample_is_on_one_rank(url, folder, workers):
    prepared, order = open_at(url, folder)
    parts = [list(Reader(prepared, order, rank, workers, 2).validation()) for rank in range(workers)]
    numbers = [int(one.input_ids[0]) for part in parts for micro in part for one in micro.documents]
    assert sorted(numbers) == list(range(33, 40))
    assert len({len(part) for part in parts}) == 1


def test_no_held_out_samples_is_an_empty_validation(tmp_path):
    prepared, order = open_at(write(tmp_path, [5, 6]), tmp_path)
    assert len(Reader(prepared, order, 0, 2, 1).validation()) == 0


@pytest.mark.parametrize("gap", [0, 10, 2**16])
def test_ranges_give_the_same_tokens_as_whole_files(remote, url, folder, monkeypatch, gap):
    store, far = remote
    wanted = [30, 2, 2, 17, 0, 32]
    monkeypatch.setattr(access_module, "GAP_BYTES", gap)
    whole = open_at(url, folder)[0].read(wanted)
    ranged = Prepared.open(store, far, folder / "none", cache_bytes=0).read(wanted)
    assert store.shards_asked()
    for one, other in zip(whole, ranged, strict=True):
        assert one.input_ids.tolist() == other.input_ids.tolist()
        assert one.loss_mask.tolist() == other.loss_mask.tolist()
