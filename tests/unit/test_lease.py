"""One driver per run: who may take a run, and who finds out that it was taken."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shoal import lease
from shoal.errors import ClusterError, StorageError
from shoal.lease import Holder, held, is_held
from shoal.runs import RunFolder
from shoal.storage import Storage, join

ID = "tiny-20260101-000000-abcd"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(Storage(), str(tmp_path / ID))


def never() -> None:
    raise AssertionError("nobody took this run")


def leave(folder: RunFolder, number: int, **changes: object) -> None:
    """A lease that somebody left behind: this machine, a process that is gone."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    body = {"host": "here", "machine": lease._machine(), "pid": done.pid, "token": "t", "beat": 9e9} | changes
    folder.storage.write(join(folder.url, "lease", f"{number:06d}.json"), json.dumps(body).encode())


def test_a_second_driver_is_refused_and_told_who_holds_the_run(folder: RunFolder) -> None:
    with held(folder, never):
        assert is_held(folder)
        with pytest.raises(ClusterError, match=f"{ID}: is being trained by process {os.getpid()}"), held(folder, never):
            pass
    assert not is_held(folder)
    with held(folder, never):
        pass


def test_a_killed_driver_of_this_machine_holds_nothing(folder: RunFolder) -> None:
    leave(folder, 7)
    assert not is_held(folder)
    with held(folder, never):
        assert is_held(folder)
    assert folder.storage.list(join(folder.url, "lease/")) == []


def test_a_driver_that_replaces_another_waits_for_its_lease_to_run_out(folder: RunFolder) -> None:
    leave(folder, 7, machine="other", beat=time.time() - lease.STALE_AFTER_S + 1.5)
    with pytest.raises(ClusterError), held(folder, never):
        pass
    with held(folder, never, wait_s=60):
        assert is_held(folder)


def test_another_machine_holds_a_run_while_its_heart_beats() -> None:
    holder = Holder(host="there", machine="other", pid=1, token="t", beat=1000.0)
    assert holder.alive(1000.0 + lease.STALE_AFTER_S - 1, "mine", lambda pid, started: False)
    assert not holder.alive(1000.0 + lease.STALE_AFTER_S, "mine", lambda pid, started: True)


def test_this_machines_holder_is_alive_as_long_as_its_process() -> None:
    holder = Holder(host="here", machine="mine", pid=5, token="t", beat=0.0)
    assert holder.alive(1e9, "mine", lambda pid, started: pid == 5)
    assert not holder.alive(0.0, "mine", lambda pid, started: False)


def test_of_many_drivers_one_wins(folder: RunFolder) -> None:
    leave(folder, 3)
    start, over, won, refused = threading.Barrier(8), threading.Event(), [], []

    def drive(number: int) -> None:
        start.wait()
        try:
            with held(folder, never):
                won.append(number)
                over.wait(10)
        except ClusterError:
            refused.append(number)
            if len(refused) == 7:
                over.set()

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(refused) == 7


def test_a_driver_that_saw_an_empty_folder_gives_way_to_the_newer_lease(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listing a folder while one lease replaces another may show neither."""
    leave(folder, 4, machine="other", beat=time.time())
    true, listings = lease._numbers, []

    def torn(of: RunFolder) -> list[int]:
        listings.append(true(of))
        return [] if len(listings) == 1 else listings[-1]

    monkeypatch.setattr(lease, "_numbers", torn)
    with pytest.raises(ClusterError, match="on here"), held(folder, never):
        pass
    assert true(folder) == [4]


def test_a_holder_that_slept_past_its_time_finds_out(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)
    lost = threading.Event()
    with held(folder, lost.set):
        leave(folder, 2, machine="other")
        assert lost.wait(10)
    assert is_held(folder), "the newer holder's lease stays"


def test_a_holder_that_slept_through_its_successors_whole_run_finds_out(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.2)
    lost = threading.Event()
    with held(folder, lost.set):
        for _ in range(100):  # a heartbeat under way may write it once more
            folder.storage.delete(join(folder.url, "lease/"))
            if lost.wait(0.1):
                break
        assert lost.is_set()
        leave(folder, 1, token="other")
    assert folder.storage.list(join(folder.url, "lease/")), "another's lease under the same number stays"


def test_a_lease_under_the_same_number_is_not_ones_own(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third driver counts from 1 again when the second one's lease is gone."""
    mine = lease._take(folder)
    assert not mine.is_lost()
    leave(folder, 1, token="other")
    assert mine.is_lost()


def test_a_pid_that_was_given_out_again_holds_nothing(folder: RunFolder) -> None:
    now = lease._started(os.getpid())
    assert now is not None
    leave(folder, 1, pid=os.getpid(), started=now)
    assert is_held(folder)
    leave(folder, 1, pid=os.getpid(), started=now - 1)
    assert not is_held(folder)
    leave(folder, 1, pid=1, started=now)
    assert not is_held(folder), "the first process is somebody else's, and began earlier"


def test_a_store_that_fails_for_a_while_takes_the_run_from_nobody(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.02)
    asked: list[str] = []
    lost = threading.Event()

    def fails(self: Storage, url: str) -> bytes:
        asked.append(url)
        raise StorageError("500 InternalError")

    with held(folder, lost.set):
        with monkeypatch.context() as away:
            away.setattr(Storage, "read", fails)
            deadline = time.monotonic() + 30
            while len(asked) < 3:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert is_held(folder) and not lost.is_set()


def test_whoever_holds_a_run_hears_once_that_it_is_asked_to_leave(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)
    heard: list[str] = []
    lease.ask_to_leave(folder, "somebody of yesterday")  # meant for the driver before
    with held(folder, never, on_asked=heard.append):
        time.sleep(0.3)
        assert heard == []
        lease.ask_to_leave(folder, "anna on laptop")
        deadline = time.monotonic() + 20
        while not heard and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        assert heard == ["anna on laptop"]
    assert folder.storage.list(join(folder.url, "lease/")) == []
