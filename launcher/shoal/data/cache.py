"""What a node keeps of prepared data on its own disk: whole files, each fetched once, within a bound, for all processes.

Everything is decided under locks of the kernel's, which it lets go of even after SIGKILL: a digest's folder is in use
while somebody holds `in-use`, a file is being fetched while somebody holds FILE.arriving, and a file that has its name
is whole.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from shoal.data.summary import File
from shoal.errors import DataError, Problem, StorageError
from shoal.storage import Storage, join

CACHE_BYTES = 20 * 2**30
"""What a node keeps of prepared data, all digests together. Those that do not fit are read by ranges."""
SPARE_BYTES = 2**30
"""What is left free on the disk."""
PIECE_BYTES = 2**20
PIECES = 4
"""A process fetches one file at a time, by so many requests of PIECE_BYTES side by side: larger or more of them are not
faster, and are what a reader's memory consists of."""
LOOK_AGAIN_S = 0.1
"""How often it is looked whether other processes have fetched something."""
TRIES = 3

IN_USE, ARRIVING = "in-use", ".arriving"

Tell = Callable[[str, str], None]
"""Told (where, what) when the cache cannot do what it is for; reading goes on without it."""


@contextmanager
def scratch(cache: Path, name: str) -> Iterator[Path]:
    """An empty folder of this process under `cache`, gone afterwards; those that a killed process left go now."""
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{name}.lock"):
        for left in cache.glob(f"{name}-*"):
            # its owner may be taking it away just now
            with suppress(FileNotFoundError), _open(left / IN_USE) as file:
                if _try_lock(file):
                    shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=cache, prefix=f"{name}-"))
        lock = _open(folder / IN_USE)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with lock:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Shelf:
    """The folder of one digest, kept from being evicted until this object is gone."""

    def __init__(self, root: Path, digest: str, needed: int, limit: int):
        """`needed`: bytes of all its files; of all digests under `root` no more than `limit` are kept.

        Raises OSError when this disk takes nothing.
        """
        self.folder = root / digest
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / "lock"):
            self.folder.mkdir(exist_ok=True)
            lock = _open(self.folder / IN_USE)
            weakref.finalize(self, lock.close)
            fcntl.flock(lock, fcntl.LOCK_SH)
            os.utime(lock.fileno())
            self.keeps_whole = _make_room(root, digest, needed, limit)
            """Whether all its files may be fetched."""
            if self.keeps_whole:
                lock.truncate(0)
                lock.write(str(needed).encode())
                lock.flush()
        self._names: frozenset[str] = frozenset()
        self._looked = float("-inf")

    def path(self, name: str) -> str | None:
        """Where a file lies on this node; None while it does not."""
        if name not in self._names and time.monotonic() - self._looked > LOOK_AGAIN_S:
            self._looked = time.monotonic()
            self._names = frozenset(os.listdir(self.folder))  # noqa: PTH208
        return f"{self.folder}/{name}" if name in self._names else None

    def drop(self, name: str) -> None:
        """Forgets a file that turned out to be damaged."""
        self._names -= {name}
        (self.folder / name).unlink(missing_ok=True)

    def fetch(self, storage: Storage, url: str, file: File, stop: threading.Event | None = None) -> bool:
        """Makes sure that this file of the folder `url` lies here; False when another process is about it.

        Without `stop` that is waited for, and the file is compared with its checksum; with it, fetching ends soon after
        it is set. Raises StorageError when the store refuses, DataError for a wrong checksum, OSError of this disk.
        """
        path, arriving = self.folder / file.name, self.folder / f"{file.name}{ARRIVING}"
        while not path.exists():
            with _open(arriving) as out:
                if stop is None:
                    fcntl.flock(out, fcntl.LOCK_EX)
                elif not _try_lock(out):
                    return False
                if not _is_at(out, arriving):
                    continue  # it arrived, or was given up, while the lock was waited for
                if path.exists():
                    arriving.unlink()
                    continue
                whole = False
                try:
                    whole = _copy(storage, url, file, out, stop)
                finally:
                    if whole:
                        arriving.rename(path)
                    else:
                        arriving.unlink()
                if not whole:
                    return False
        return True


def _copy(storage: Storage, url: str, file: File, out: BinaryIO, stop: threading.Event | None) -> bool:
    """Whether it came to the end."""
    where, hashed = join(url, file.name), hashlib.sha256()
    out.truncate(0)
    for first in range(0, file.size, PIECE_BYTES * PIECES):
        if stop is not None and stop.is_set():
            return False
        last = min(file.size, first + PIECE_BYTES * PIECES)
        ranges = [(start, min(start + PIECE_BYTES, last)) for start in range(first, last, PIECE_BYTES)]
        for piece in storage.read_ranges(where, ranges):
            out.write(piece)
            if stop is None:
                hashed.update(piece)
    out.flush()
    if stop is None and hashed.hexdigest() != file.sha256:
        raise DataError(
            Problem(where, "its checksum is wrong", "delete the folder of these prepared data and run again")
        )
    return True


class Fetcher:
    """Fetches files into a shelf in the background, while this object lives. Processes of a node share the work."""

    def __init__(self, shelf: Shelf, storage: Storage, url: str, files: Sequence[File], tell: Tell):
        self._stop = threading.Event()
        weakref.finalize(self, self._stop.set)
        self._shelf, self._sizes = shelf, {file.name: file.size for file in files}
        self._began, self._had = time.monotonic(), self._there()
        self.thread = threading.Thread(
            target=_fetch_all,
            args=(shelf, storage, url, _rotated(files, os.getpid()), tell, self._stop),
            name="fetcher",
            daemon=True,
        )
        self.thread.start()

    @property
    def is_at_work(self) -> bool:
        return self.thread.is_alive()

    @property
    def left_s(self) -> float:
        """Seconds until all files are here at the rate so far, whoever fetches them; infinite before anything came."""
        there = self._there()
        left, gained = sum(self._sizes.values()) - there, there - self._had
        if left <= 0:
            return 0.0
        return left * (time.monotonic() - self._began) / gained if gained > 0 else float("inf")

    def _there(self) -> int:
        """Bytes that have come, of those that are still on their way too."""
        there = 0
        with suppress(FileNotFoundError):  # a file that has just arrived has another name
            for entry in os.scandir(self._shelf.folder):
                if entry.name.removesuffix(ARRIVING) in self._sizes:
                    there += entry.stat().st_size
        return there


def _rotated(files: Sequence[File], start: int) -> list[File]:
    """From another place in each process, so that they meet seldom."""
    start = start * 7919 % len(files)
    return [*files[start:], *files[:start]]


def _fetch_all(shelf: Shelf, storage: Storage, url: str, files: list[File], tell: Tell, stop: threading.Event) -> None:
    failures = 0
    while files and not stop.is_set():
        left = []
        for file in files:
            try:
                if not shelf.fetch(storage, url, file, stop):
                    left.append(file)
            except StorageError:
                left.append(file)
                failures += 1
                if failures == TRIES:  # those who need the samples will say what is wrong
                    return
            except OSError as error:
                if not stop.is_set():
                    stop.set()
                    why = os.strerror(error.errno or errno.EIO)
                    tell(str(shelf.folder), f"{why}: samples are read from the store as they are needed")
        files = left
        stop.wait(LOOK_AGAIN_S if left else 0)


def _make_room(root: Path, digest: str, needed: int, limit: int) -> bool:
    """Evicts the digests that were used longest ago, none in use, until `needed` bytes fit; whether they do."""
    if needed > min(limit, _there(root / digest) + shutil.disk_usage(root).free - SPARE_BYTES):
        return False
    others = {folder: _size(folder) for folder in root.iterdir() if folder.is_dir() and folder.name != digest}
    for folder in sorted(others, key=_last_used):
        if sum(others.values()) + needed <= limit:
            break
        with _open(folder / IN_USE) as lock:
            if _try_lock(lock):
                shutil.rmtree(folder, ignore_errors=True)
                del others[folder]
    return sum(others.values()) + needed <= limit


def _last_used(folder: Path) -> float:
    lock = folder / IN_USE
    return lock.stat().st_mtime if lock.exists() else 0.0


def _size(folder: Path) -> int:
    """Bytes that a digest has or will have: what it was promised stands in its lock file."""
    lock = folder / IN_USE
    promised = lock.read_text() if lock.exists() else ""
    return max(int(promised or 0), _there(folder))


def _there(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())


def _open(path: Path) -> BinaryIO:
    """For appending and locking; it is made when it is not there."""
    return path.open("ab")


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process of this node at a time."""
    with _open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
