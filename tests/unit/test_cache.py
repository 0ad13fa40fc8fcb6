import errno
import multiprocessing
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from shards import of_lengths, write_prepared
from stores import FolderStore

from shoal.data import cache as cache_module
from shoal.data.cache import IN_USE, Fetcher, Shelf, scratch
from shoal.data.prepared import Prepared
from shoal.data.summary import File
from shoal.errors import Problem, StorageError

URL = "s3://bucket/prepared/d1"


@pytest.fixture(autouse=True)
def full_disks_are_fine(monkeypatch):
    """This machine's own free space is no part of these tests."""
    monkeypatch.setattr(cache_module, "SPARE_BYTES", 0)


def filled(root: Path, digest: str, size: int, limit: int = 10**9) -> Shelf:
    shelf = Shelf(root, digest, size, limit)
    (shelf.folder / "shard").write_bytes(b"x" * size)
    return shelf


def test_a_digest_that_does_not_fit_is_not_kept_whole(tmp_path):
    assert not Shelf(tmp_path, "d1", 101, 100).keeps_whole
    assert Shelf(tmp_path, "d1", 100, 100).keeps_whole


def test_the_digest_that_was_used_longest_ago_makes_room(tmp_path):
    for number, digest in enumerate(("old", "older", "new")):
        filled(tmp_path, digest, 30)
        at = 500 if digest == "older" else 1000 + number
        os.utime(tmp_path / digest / IN_USE, (at, at))
    assert Shelf(tmp_path, "more", 40, 110).keeps_whole
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["more", "new", "old"]


def test_nothing_in_use_is_evicted(tmp_path):
    held = filled(tmp_path, "held", 80)
    assert not Shelf(tmp_path, "more", 40, 100).keeps_whole
    assert (held.folder / "shard").exists()
    del held
    assert Shelf(tmp_path, "more", 40, 100).keeps_whole
    assert not (tmp_path / "held").exists()


def holds(root: Path, ready, done) -> None:
    shelf = filled(root, "held", 80)
    ready.set()
    done.wait()
    del shelf


def test_nothing_that_another_process_uses_is_evicted_until_it_dies(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=holds, args=(tmp_path, ready, context.Event()))
    child.start()
    assert ready.wait(30)
    assert not Shelf(tmp_path, "more", 40, 100).keeps_whole
    child.kill()
    child.join()
    assert Shelf(tmp_path, "more", 40, 100).keeps_whole


def test_what_was_promised_counts_before_it_is_there(tmp_path):
    first = Shelf(tmp_path, "first", 70, 100)
    assert first.keeps_whole
    assert not Shelf(tmp_path, "second", 40, 100).keeps_whole
    assert Shelf(tmp_path, "third", 30, 100).keeps_whole


def test_little_room_on_the_disk_is_not_used_up(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "SPARE_BYTES", 2**60)
    assert not Shelf(tmp_path, "d1", 1, 100).keeps_whole


@pytest.fixture
def store(tmp_path) -> FolderStore:
    store = FolderStore(tmp_path / "store")
    write_prepared(store, URL, of_lengths([8] * 60, units=6))
    return store


def wait_for(fetcher: Fetcher | None) -> None:
    assert fetcher is not None
    fetcher.thread.join(timeout=60)
    assert not fetcher.thread.is_alive()


def numbers(prepared: Prepared, indices) -> list[int]:
    return [int(one.input_ids[0]) for one in prepared.read(indices)]


def test_samples_are_there_at_once_and_shards_later(store, tmp_path):
    gate = threading.Event()

    def change(name, ranges, found):
        if name.startswith("shard-") and ranges[0] == (0, 170) and not gate.is_set():
            gate.wait(30)  # a whole shard takes its time
        return found

    store.change = change
    prepared = Prepared.open(store, URL, tmp_path / "cache")
    assert {unit.shard.size for unit in prepared.summary.units} == {170}
    prepared.keep()
    assert numbers(prepared, [59, 3, 31]) == [59, 3, 31]
    assert not list((tmp_path / "cache").rglob("shard-?????.bin"))
    gate.set()
    wait_for(prepared._fetcher)
    store.asked.clear()
    time.sleep(cache_module.LOOK_AGAIN_S)
    assert numbers(prepared, range(60)) == list(range(60))
    assert store.asked == []


def reads_all(store: FolderStore, cache: Path, asked) -> None:
    prepared = Prepared.open(store, URL, cache)
    prepared.keep()
    wait_for(prepared._fetcher)
    asked.put([name for name, ranges in store.asked if name.startswith("shard-") and ranges == [(0, 170)]])


def test_each_shard_is_fetched_by_one_process_of_the_node(store, tmp_path):
    context = multiprocessing.get_context("fork")
    asked = context.Queue()
    children = [context.Process(target=reads_all, args=(store, tmp_path / "cache", asked)) for _ in range(4)]
    for child in children:
        child.start()
    fetched = [name for _ in children for name in asked.get(timeout=60)]
    for child in children:
        child.join()
    assert sorted(fetched) == [f"shard-{number:05d}.bin" for number in range(6)]


def test_what_a_killed_process_was_fetching_is_fetched_anew(store, tmp_path):
    context = multiprocessing.get_context("fork")
    begun = context.Event()

    def dies() -> None:
        def change(name, ranges, found):
            if name.startswith("shard-"):
                begun.set()
                time.sleep(600)
            return found

        store.change = change
        prepared = Prepared.open(store, URL, tmp_path / "cache")
        prepared.keep()
        time.sleep(600)

    child = context.Process(target=dies)
    child.start()
    assert begun.wait(30)
    prepared = Prepared.open(store, URL, tmp_path / "cache")
    prepared.keep()
    child.kill()
    child.join()
    wait_for(prepared._fetcher)
    assert len(list((tmp_path / "cache").rglob("shard-?????.bin"))) == 6
    assert not list((tmp_path / "cache").rglob("*.arriving"))


def test_nothing_is_fetched_that_does_not_fit(store, tmp_path):
    prepared = Prepared.open(store, URL, tmp_path / "cache", cache_bytes=1000)
    prepared.keep()
    assert prepared._fetcher is None
    assert numbers(prepared, [59, 3, 31]) == [59, 3, 31]
    assert not list((tmp_path / "cache").rglob("shard-?????.bin"))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to write more into one file, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_is_told_once_and_reading_goes_on(store, tmp_path):
    prepared = Prepared.open(store, URL, tmp_path / "cache")
    with files_of_at_most(100):
        prepared.keep()
        wait_for(prepared._fetcher)
    assert [fault.what for fault in store.faults] == [
        f"{os.strerror(errno.EFBIG)}: samples are read from the store as they are needed"
    ]
    assert numbers(prepared, range(60)) == list(range(60))
    assert not list((tmp_path / "cache").rglob("shard-*"))


def test_a_disk_that_takes_nothing_at_all_is_told_and_reading_goes_on(store, tmp_path):
    with files_of_at_most(20):
        prepared = Prepared.open(store, URL, tmp_path / "cache")
        assert numbers(prepared, range(60)) == list(range(60))
    assert store.faults and all("is held in memory" in fault.what for fault in store.faults)
    (tmp_path / "file").write_text("")
    prepared = Prepared.open(store, URL, tmp_path / "file" / "cache")
    assert numbers(prepared, range(60)) == list(range(60))
    assert store.faults[-1].what.endswith("nothing is kept on this node")


def test_a_store_that_refuses_stops_fetching_but_not_reading(store, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "LOOK_AGAIN_S", 0.01)

    def change(name, ranges, found):
        if ranges == [(0, 170)]:
            raise StorageError(Problem(name, "is too busy"))
        return found

    store.change = change
    prepared = Prepared.open(store, URL, tmp_path / "cache")
    prepared.keep()
    wait_for(prepared._fetcher)
    assert numbers(prepared, [59, 3, 31]) == [59, 3, 31]


def test_fetching_ends_when_nobody_reads_any_more(store, tmp_path):
    store.change = lambda name, ranges, found: time.sleep(0.01) or found
    prepared = Prepared.open(store, URL, tmp_path / "cache")
    prepared.keep()
    assert prepared._fetcher is not None
    thread = prepared._fetcher.thread
    del prepared
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_file_of_several_requests_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "PIECE_BYTES", 7)
    store = FolderStore(tmp_path / "store")
    data = bytes(range(100))
    store.write(f"{URL}/x", data)
    shelf = Shelf(tmp_path / "cache", "d1", 100, 1000)
    assert shelf.fetch(store, URL, File(name="x", size=100, sha256=""), threading.Event())
    assert (shelf.folder / "x").read_bytes() == data
    assert [len(ranges) for _, ranges in store.asked] == [4, 4, 4, 3]


def test_scratch_is_gone_afterwards_and_so_is_what_the_dead_left(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def dies() -> None:
        with scratch(tmp_path, "work") as folder:
            (folder / "file").write_text("x")
            ready.set()
            time.sleep(600)

    child = context.Process(target=dies)
    child.start()
    assert ready.wait(30)
    with scratch(tmp_path, "work") as folder:
        assert len(list(tmp_path.glob("work-*/"))) == 2
        assert folder.is_dir()
    child.kill()
    child.join()
    assert len(list(tmp_path.glob("work-*/"))) == 1
    with scratch(tmp_path, "work"):
        assert len(list(tmp_path.glob("work-*/"))) == 1
    assert not list(tmp_path.glob("work-*/"))
