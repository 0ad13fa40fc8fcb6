"""One driver per run: a lease in the run folder with a heartbeat, taken by conditional put.

Leases are numbered. The newest number holds the run; a driver takes it by creating the next number, which one writer
alone can do. A holder that was paused past its time finds a newer number and must leave.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from shoal.errors import ClusterError, Problem, SpecError, StorageError
from shoal.runs import RunFolder
from shoal.spec.base import unreadable
from shoal.storage import join

HEARTBEAT_S = 4.0
STALE_AFTER_S = 20.0
START = 22 - 3
"""Where the time of start stands among the fields of /proc/PID/stat (counted from 1), the first two of them left out."""


@dataclass(frozen=True)
class Holder:
    """Who holds a run."""

    host: str
    machine: str
    """Tells machines, a machine's earlier lives and containers apart: a pid means something within one of these alone."""
    pid: int
    token: str
    beat: float
    """Seconds since the epoch."""
    started: int | None = None
    """When the process began, in clock ticks since boot: a pid is given out again. None where the system does not say."""

    def alive(self, now: float, machine: str, runs: Callable[[int, int | None], bool]) -> bool:
        """Whether the holder still works, as far as one can know: its process on this machine, its heartbeat elsewhere."""
        if self.machine == machine:
            return runs(self.pid, self.started)
        return now - self.beat < STALE_AFTER_S


@contextlib.contextmanager
def held(
    folder: RunFolder,
    on_lost: Callable[[], None],
    wait_s: float = 0.0,
    on_asked: Callable[[str], None] = lambda by: None,
) -> Iterator[None]:
    """Hold the run inside the block. `on_lost` is called from another thread when a newer holder has taken over;
    `on_asked`, with who it was, when somebody asks the holder to leave (`ask_to_leave`).

    A dead driver's lease on another machine stands for a while: a driver that takes its place waits `wait_s` for it.
    Raises: ClusterError when another driver holds it.
    """
    lease = _take_within(folder, wait_s)
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(lease, over, on_lost, on_asked), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(StorageError):  # what happened inside the block matters more
            if lease.is_own():
                folder.storage.delete(lease.url)
                folder.storage.delete(_mark(folder))


def ask_to_leave(folder: RunFolder, by: str) -> None:
    """Whoever holds the run finishes its step, saves and leaves, some seconds from now; `by` says who asks, in words.

    A mark beside the lease, which the heartbeat lists anyway: it reaches a driver on any machine, however it was started.
    """
    folder.storage.write(_mark(folder), json.dumps({"by": by, "at": time.time()}).encode())


def is_held(folder: RunFolder) -> bool:
    """Whether somebody trains this run now, as far as one can know."""
    holder = last_holder(folder)
    return holder is not None and works(holder)


def last_holder(folder: RunFolder) -> Holder | None:
    """Whoever took the run last and has not let it go in order: he works, or he died."""
    numbers = _numbers(folder)
    return _holder(folder, numbers[-1]) if numbers else None


def works(holder: Holder) -> bool:
    """Whether that holder still works, as far as one can know from this machine."""
    return holder.alive(time.time(), _machine(), _running)


@dataclass(frozen=True)
class _Lease:
    folder: RunFolder
    number: int
    holder: Holder

    @property
    def url(self) -> str:
        return _url(self.folder, self.number)

    def is_lost(self) -> bool:
        """Whether somebody took the run since: perhaps he is done already, and his lease gone like this one."""
        return max(_numbers(self.folder), default=0) != self.number or not self.is_own()

    def is_own(self) -> bool:
        """Whether what stands under the number is this lease, not one by somebody who counted from 1 again."""
        holder = _holder(self.folder, self.number)
        return holder is not None and holder.token == self.holder.token

    def write(self, *, if_absent: bool) -> None:
        body = asdict(self.holder) | {"beat": time.time()}
        self.folder.storage.write(self.url, json.dumps(body).encode(), if_absent=if_absent)


def _take(folder: RunFolder) -> _Lease:
    me = Holder(
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        token=secrets.token_hex(8),
        beat=0.0,
        started=_started(os.getpid()),
    )
    numbers = _numbers(folder)
    holder = _holder(folder, numbers[-1]) if numbers else None
    if holder is not None and works(holder):
        raise ClusterError(_busy(folder, holder))
    lease = _Lease(folder, numbers[-1] + 1 if numbers else 1, me)
    try:
        lease.write(if_absent=True)
    except FileExistsError:
        holder = _holder(folder, lease.number)
        raise ClusterError(_busy(folder, holder)) from None
    newest = max(_numbers(folder), default=0)
    if newest > lease.number:  # a folder that changes while it is listed may show neither the old lease nor the new one
        folder.storage.delete(lease.url)
        raise ClusterError(_busy(folder, _holder(folder, newest)))
    for number in numbers:
        folder.storage.delete(_url(folder, number))
    folder.storage.delete(_mark(folder))  # it was meant for a driver before this one
    return lease


def _take_within(folder: RunFolder, wait_s: float) -> _Lease:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        try:
            return _take(folder)
        except ClusterError:
            time.sleep(1.0)
    return _take(folder)


def _beat(lease: _Lease, over: threading.Event, on_lost: Callable[[], None], on_asked: Callable[[str], None]) -> None:
    asked = False
    while not over.wait(HEARTBEAT_S):
        try:
            if lease.is_lost():
                on_lost()
                return
            if not asked and (by := _asked_by(lease.folder)) is not None:
                asked = True
                on_asked(by)
            lease.write(if_absent=False)
        except StorageError:
            continue  # the store is away for now; training itself finds out if it stays away


def _numbers(folder: RunFolder) -> list[int]:
    names = [one.url.rpartition("/")[2] for one in folder.storage.list(join(folder.url, "lease/"))]
    return sorted(int(name.removesuffix(".json")) for name in names if name.removesuffix(".json").isdecimal())


def _holder(folder: RunFolder, number: int) -> Holder | None:
    """None when it was let go meanwhile. Raises: StorageError when it is there and cannot be read just now, SpecError
    when it is no lease of this Shoal's."""
    url = _url(folder, number)
    try:
        text = folder.storage.read(url)
    except StorageError:
        if folder.storage.exists(url):
            raise
        return None
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        raise SpecError(unreadable(text, url, "remove it, if nobody drives the run")) from None


def _asked_by(folder: RunFolder) -> str | None:
    """Who asked the holder to leave; None when nobody did."""
    url = _mark(folder)
    return json.loads(folder.storage.read(url))["by"] if folder.storage.exists(url) else None


def _mark(folder: RunFolder) -> str:
    return join(folder.url, "lease", "leave.json")


def _url(folder: RunFolder, number: int) -> str:
    return join(folder.url, "lease", f"{number:06d}.json")


def _machine() -> str:
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not boot.exists() or not namespace.exists():
        return socket.gethostname()
    return f"{boot.read_text().strip()} {namespace.readlink()}"


def _running(pid: int, started: int | None) -> bool:
    """Whether that process is there; a dead one that its parent has not yet asked about is not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's process, perhaps one that was given the pid later
    stat = _stat(pid)
    if stat is None:
        return True
    return stat[0] not in "ZX" and started in (None, int(stat[START]))


def _started(pid: int) -> int | None:
    stat = _stat(pid)
    return int(stat[START]) if stat else None


def _stat(pid: int) -> list[str] | None:
    """What /proc says of a process, from its state on; None where there is no /proc, or no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _busy(folder: RunFolder, holder: Holder | None) -> Problem:
    by = f"process {holder.pid} on {holder.host}" if holder else "another process"
    fix = f"stop that one first; should its machine be dead, try again in {STALE_AFTER_S:.0f} s"
    return Problem(folder.id, f"is being trained by {by}", fix)
