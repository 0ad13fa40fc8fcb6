"""Local folders as a store: whole files appear at once, or not at all."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from shoal.errors import Forbidden, Problem, StorageError
from shoal.storage.objects import Children, ObjectInfo, replaced

PARTIAL = ".shoal-part"
"""Ending of a file that is still being written; never listed."""

REASONS = {
    errno.ENOSPC: ("the disk is full", "free space there, or choose another folder"),
    errno.EDQUOT: ("the disk quota is used up", "free space there, or choose another folder"),
    errno.EFBIG: ("the file is larger than this disk or process may write", "choose another folder"),
    errno.EACCES: ("no permission", "change the rights of the file or its folder, or choose another folder"),
    errno.EPERM: ("no permission", "change the rights of the file or its folder, or choose another folder"),
    errno.EROFS: ("the disk is read-only", "choose another folder"),
    errno.EISDIR: ("is a folder, not a file", 'end the location in "/" to mean all files under it'),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "choose another folder"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.ENOENT: ("no such file", "check the name"),
}


@contextmanager
def answering(where: str) -> Iterator[None]:
    """Turns an operating system's error about `where` into a StorageError."""
    try:
        yield
    except (StorageError, FileExistsError):
        raise
    except OSError as error:
        what, fix = REASONS.get(error.errno or 0, (error.strerror or str(error), ""))
        kind = Forbidden if isinstance(error, PermissionError) else StorageError
        raise kind(Problem(where, what, fix)) from error


@contextmanager
def replacing(path: Path, if_absent: bool = False) -> Iterator[Path]:
    """Gives a temporary path beside `path`; what was written there becomes `path` at the end, durably and at once.

    Raises FileExistsError when `if_absent` and `path` exists by then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from error
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        yield temporary
        _to_disk(temporary)
        if if_absent:
            os.link(temporary, path)
        else:
            temporary.replace(path)
        _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _etag(status: os.stat_result) -> str:
    return f"{status.st_size:x}-{status.st_mtime_ns:x}"


def _unless_gone(function: object, path: str, error: tuple) -> None:
    """For shutil.rmtree: what somebody else deletes meanwhile is deleted."""
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LocalFiles:
    """Files under `root`, named by urls that begin with `prefix`; both are empty for plain local paths."""

    def __init__(self, prefix: str = "", root: str = ""):
        self._prefix, self._root = prefix, root

    def path(self, url: str) -> Path:
        return Path(self._root + url.removeprefix(self._prefix))

    def _info(self, path: Path | os.DirEntry) -> ObjectInfo:
        status = path.stat()
        url = self._prefix + os.fspath(path).removeprefix(self._root)
        return ObjectInfo(url, status.st_size, _etag(status))

    def read(self, url: str) -> bytes:
        with answering(url):
            return self.path(url).read_bytes()

    def read_ranges(self, url: str, ranges: Sequence[tuple[int, int]], etag: str | None) -> list[bytes]:
        with answering(url), self._opened(url, etag) as file:
            found = []
            for start, end in ranges:
                file.seek(start)
                found.append(file.read(end - start))
            return found

    def open(self, url: str, etag: str | None) -> BinaryIO:
        with answering(url):
            return self._opened(url, etag)

    def _opened(self, url: str, etag: str | None) -> BinaryIO:
        file = self.path(url).open("rb")
        if etag and _etag(os.fstat(file.fileno())) != etag:
            file.close()
            raise replaced(url)
        return file

    def write(self, url: str, data: bytes, if_absent: bool) -> None:
        with answering(url), replacing(self.path(url), if_absent) as temporary:
            temporary.write_bytes(data)

    def upload(self, source: Path, url: str) -> None:
        with answering(url), replacing(self.path(url)) as temporary:
            shutil.copyfile(source, temporary)

    def download(self, url: str, target: Path) -> None:
        with answering(url):
            shutil.copyfile(self.path(url), target)

    def find(self, url: str) -> ObjectInfo | None:
        path = self.path(url)
        with answering(url), suppress(FileNotFoundError):  # deleted between the two looks
            return self._info(path) if path.is_file() else None
        return None

    def children(self, url: str) -> Children:
        folders, objects = [], []
        with answering(url), suppress(FileNotFoundError):  # a missing folder is an empty one
            if not self.path(url).is_dir():
                return Children([], [])
            with os.scandir(self._root + url.removeprefix(self._prefix)) as entries:
                for entry in entries:
                    if entry.is_dir():
                        folders.append(f"{url}{entry.name}/")
                    elif entry.is_file() and not entry.name.endswith(PARTIAL):
                        with suppress(FileNotFoundError):  # deleted since the folder was read
                            objects.append(self._info(entry))
        return Children(folders, objects)

    def under(self, url: str) -> list[ObjectInfo]:
        children = self.children(url)
        return children.objects + [one for folder in children.folders for one in self.under(folder)]

    def delete(self, url: str) -> None:
        with answering(url):
            if not url.endswith("/"):
                self.path(url).unlink(missing_ok=True)
            elif self.path(url).is_dir():
                shutil.rmtree(self.path(url), onerror=_unless_gone)

    def make_bucket(self, bucket: str) -> None:
        url = f"{self._prefix}{bucket}"
        with answering(url):
            self.path(url).mkdir(parents=True, exist_ok=True)
