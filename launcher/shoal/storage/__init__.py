"""Object storage: one small interface over local folders, s3:// and, to read from, the hub's data sets.

Every failure is a StorageError of one line.
"""

import os
import re
from collections.abc import Callable, Sequence
from copy import copy
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

from shoal import store
from shoal.errors import Problem, StorageError
from shoal.spec.cluster import S3Spec
from shoal.storage.faults import Fault
from shoal.storage.hub import HubFiles
from shoal.storage.local import LocalFiles, answering, replacing
from shoal.storage.objects import ObjectInfo, search
from shoal.storage.s3 import S3Objects

__all__ = ["Fault", "ObjectInfo", "Storage", "absolute", "join"]

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def join(url: str, *parts: str) -> str:
    """`url` with `parts` below it, one slash between each; a trailing slash of the last part is kept."""
    return "/".join([url.rstrip("/") if parts else url, *(part.strip("/") for part in parts[:-1]), *parts[-1:]])


def absolute(url: str) -> str:
    """A local location without `~` and from the root, so that it means the same in every process; s3:// as it is."""
    if SCHEME.match(url):
        return url
    return os.path.abspath(os.path.expanduser(url)) + ("/" if url.endswith("/") and url != "/" else "")  # noqa: PTH100, PTH111


class Storage:
    """Local folders, s3:// and hf:// behind one interface. Picklable, without keys; clients are made where they are used.

    A url is "s3://BUCKET/KEY", "hf://datasets/ORG/NAME[@REVISION]/PATH" or a local path; one that ends in "/" means
    everything under it.
    `on_fault` hears of every request that failed, was cut short or was slow, from any thread; it is dropped on pickling.
    """

    def __init__(self, s3: S3Spec | None = None, on_fault: Callable[[Fault], None] | None = None):
        self.s3 = s3 or S3Spec()
        self.on_fault = on_fault
        self._local, self._hub = LocalFiles(), HubFiles(on_fault)
        if self.s3.server == "embedded" and not store.available():
            self._remote: LocalFiles | S3Objects = LocalFiles("s3://", f"{store.folder_of(self.s3)}/objects/")
        else:
            self._remote = S3Objects(self.s3, on_fault)

    def patient(self, seconds: float) -> "Storage":
        """This storage for work that nobody waits for: a store that is away is asked again for so long."""
        other = copy(self)
        if isinstance(self._remote, S3Objects):
            other._remote = self._remote.patient(seconds)
        return other

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "on_fault": None}

    def _of(self, url: str) -> LocalFiles | S3Objects | HubFiles:
        scheme = SCHEME.match(url)
        if scheme is None:
            return self._local
        if scheme[1] not in ("s3", "hf"):
            fix = "use a local path, s3://bucket/key or hf://datasets/ORG/NAME/FILE"
            raise StorageError(Problem(url, f"{scheme[1]}:// is not supported", fix))
        return self._remote if scheme[1] == "s3" else self._hub

    def read(self, url: str) -> bytes:
        url = absolute(url)
        return self._of(url).read(url)

    def read_ranges(self, url: str, ranges: Sequence[tuple[int, int]], *, etag: str | None = None) -> list[bytes]:
        """The bytes of each (start, end), end exclusive, fetched side by side. A range past the end is an error.

        With `etag`, an object that has another by now is an error as well.
        """
        url = absolute(url)
        found = self._of(url).read_ranges(url, ranges, etag)
        for data, (start, end) in zip(found, ranges, strict=True):
            if len(data) != end - start:
                what = f"bytes {start} to {end} were asked for, the object ends after {start + len(data)}"
                raise StorageError(Problem(url, what, "it was cut short or replaced; make it again"))
        return found

    def write(self, url: str, data: bytes, *, if_absent: bool = False) -> None:
        """Writes the whole object at once or not at all.

        Raises FileExistsError when `if_absent` and it is there already: of several writers, one wins.
        """
        url = absolute(url)
        self._of(url).write(url, data, if_absent)

    def open(self, url: str, *, etag: str | None = None) -> BinaryIO:
        """A seekable stream that reads ahead. With `etag`, an object that has another by now is an error."""
        url = absolute(url)
        return self._of(url).open(url, etag)

    def find(self, url: str) -> ObjectInfo | None:
        url = absolute(url)
        return self._of(url).find(url)

    def info(self, url: str) -> ObjectInfo:
        """Size and etag; StorageError, with the nearest name there is, when the object is missing."""
        url = absolute(url)
        found = self.find(url)
        if found is None:
            raise StorageError(self._missing(url))
        return found

    def exists(self, url: str) -> bool:
        """Whether the object is there; for "…/", whether anything lies under it."""
        url = absolute(url)
        if not url.endswith("/"):
            return self.find(url) is not None
        children = self._of(url).children(url)
        return bool(children.objects) or any(self.exists(folder) for folder in children.folders)

    def list(self, pattern: str) -> "list[ObjectInfo]":
        """Sorted by url: one file, a glob (`*`, `?`, `[ab]`, `**`), or everything under "…/". Empty when none fits.

        A missing bucket is a StorageError, a missing folder is not.
        """
        pattern = absolute(pattern)
        place = self._of(pattern)
        found = search(place, pattern)
        if not found and isinstance(place, S3Objects):
            place.need_bucket(pattern)
        return found

    def folders(self, url: str) -> "list[str]":
        """The folders directly under "…/", sorted, each ending in "/"."""
        url = absolute(url).rstrip("/") + "/"
        return sorted(self._of(url).children(url).folders)

    def delete(self, url: str) -> None:
        """Removes one object, or everything under "…/"; nothing there is no error."""
        url = absolute(url)
        self._of(url).delete(url)

    def make_bucket(self, bucket: str) -> None:
        """Makes a bucket of the s3:// store; one that is there already is kept."""
        self._remote.make_bucket(bucket)

    def download(self, url: str, path: Path) -> None:
        """One object to the file `path`, at once or not at all; for "…/", everything under it into the folder `path`."""
        url = absolute(url)
        if not url.endswith("/"):
            with answering(str(path)), replacing(path) as temporary:
                self._of(url).download(url, temporary)
            return
        objects = self.list(url)
        if not objects:
            raise StorageError(self._missing(url))
        for one in objects:
            name = one.url.removeprefix(url)
            if ".." in name.split("/") or name.startswith("/"):
                raise StorageError(Problem(one.url, "its name leads out of the folder", "rename it"))
            self.download(one.url, path / name)

    def upload(self, path: Path, url: str) -> None:
        """The file `path` to one object; for "…/", the files under the folder `path`, in the order of their names."""
        url = absolute(url)
        if not url.endswith("/"):
            with answering(str(path)), path.open("rb"):
                self._of(url).upload(path, url)
            return
        with answering(str(path)):
            files = sorted(file for file in path.rglob("*") if file.is_file())
        for file in files:
            self.upload(file, url + file.relative_to(path).as_posix())

    def _missing(self, url: str) -> Problem:
        remote = url.startswith("s3://")
        kind = ("objects" if remote else "files") if url.endswith("/") else ("object" if remote else "file")
        parent = url.rstrip("/").rpartition("/")[0] + "/"
        if parent == "s3://":
            return Problem(url, f"no such {kind}", "check the name")
        children = self._of(url).children(parent)
        near = get_close_matches(url, [*(one.url for one in children.objects), *children.folders], n=1, cutoff=0.8)
        if near:
            return Problem(url, f"no such {kind}", f"did you mean {near[0]}?")
        there = len(children.objects) + len(children.folders)
        return Problem(
            url,
            f"no such {kind}",
            f"check the name; {parent} holds {there} other names"
            if there
            else f"check the name; nothing lies in {parent}",
        )
