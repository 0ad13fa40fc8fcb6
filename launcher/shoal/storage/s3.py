"""s3:// as a store, through obstore. Reads are ranges of known length, pinned to an etag where one is given."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from shoal.errors import Problem, StorageError
from shoal.storage.answers import cause_of, passing
from shoal.storage.client import make_bucket
from shoal.storage.faults import Fault, Truncated
from shoal.storage.objects import Children, ObjectInfo, replaced
from shoal.storage.ranges import PIECE, Range, cut, requests, split
from shoal.storage.s3_requests import S3Requests, split_url
from shoal.storage.stream import stream

PART = 8 << 20
"""Bytes per part of a large upload; an object has at most 10,000 parts."""
PARTS_AT_ONCE = 8
SMALL = 1 << 20
"""Requests up to here go to the client in one call: it overlaps them with less work than threads do."""


class S3Objects(S3Requests):
    """Objects named "s3://BUCKET/KEY"."""

    # Reading

    def _get(self, url: str, one: Range, etag: str | None) -> tuple[ObjectInfo, Any]:
        """One request: what the object is, and the body of `one`, which is shorter only where the object ends."""
        import obstore
        from obstore.exceptions import PreconditionError

        client, key = self._client(url), split_url(url)[1]
        options: dict[str, Any] = {"range": one} | ({"if_match": f'"{etag}"'} if etag else {})

        def call() -> tuple[ObjectInfo, Any]:
            try:
                found = obstore.get(client, key, options=options)  # pyright: ignore[reportArgumentType]
            except PreconditionError as error:
                raise self._replaced(url) from error
            info = ObjectInfo(url, found.meta["size"], (found.meta["e_tag"] or "").strip('"'))
            # A store may not know If-Match.
            if etag and info.etag and info.etag != etag:
                raise self._replaced(url)
            body = found.bytes()
            wanted = min(one[1], info.size) - one[0]
            if len(body) != wanted:
                raise Truncated(len(body), wanted)
            return info, body

        return self._retries.run(url, "get", call, one[1] - one[0])

    def _replaced(self, url: str) -> StorageError:
        self._retries.tell(Fault(url, "get", "was replaced", 1, 0.0))
        return replaced(url)

    def _piece(self, url: str, one: Range, etag: str | None) -> Any:
        """The body of one request. Past the object's end it is empty."""
        from obstore.exceptions import GenericError

        with self._answering(url):
            try:
                return self._get(url, one, etag)[1]
            except GenericError as error:
                if cause_of(error).status != 416:
                    raise
                return b""

    def _first(self, url: str) -> tuple[ObjectInfo, bytes]:
        """What the object is, and its first piece."""
        from obstore.exceptions import GenericError

        with self._answering(url):
            try:
                info, body = self._get(url, (0, PIECE), None)
                return info, bytes(body)
            except GenericError as error:
                # The answer to any range of an empty object.
                if cause_of(error).status != 416:
                    raise
                info = self.find(url)
                if info is None or info.size:
                    raise
                return info, b""

    def read(self, url: str) -> bytes:
        info, first = self._first(url)
        if len(first) == info.size:
            return first
        rest = self._each(lambda one: self._piece(url, one, info.etag), split(len(first), info.size))
        return b"".join([first, *rest])

    def read_ranges(self, url: str, ranges: Sequence[Range], etag: str | None) -> list[bytes]:
        sent = requests([(start, end) for start, end in ranges if end > start])
        small = [] if etag else [one for one in sent if one[1] - one[0] <= SMALL]
        bodies = dict(zip(small, self._batch(url, small), strict=True))
        large = [one for one in sent if one not in bodies]
        bodies |= zip(large, self._each(lambda one: self._piece(url, one, etag), large), strict=True)
        views = [memoryview(bodies[one]) for one in sent]
        return [cut(one, sent, views) for one in ranges]

    def _batch(self, url: str, small: Sequence[Range]) -> list[Any]:
        """Bodies of small requests. When one fails, the client says no more than that: they are then sent one by one."""
        if len(small) < 2:
            return [self._piece(url, one, None) for one in small]
        import obstore

        client, key = self._client(url), split_url(url)[1]
        tried = False

        def call() -> list[Any]:
            nonlocal tried
            if tried:
                return self._each(lambda one: self._piece(url, one, None), small)
            tried = True
            starts, ends = zip(*small, strict=True)
            bodies = obstore.get_ranges(client, key, starts=starts, ends=ends, coalesce=0)
            short = [(len(body), end - start) for body, (start, end) in zip(bodies, small, strict=True)]
            if any(got != wanted for got, wanted in short):
                info = self.find(url)
                if info is not None and info.size >= max(ends):
                    raise Truncated(*next(pair for pair in short if pair[0] != pair[1]))
            return bodies

        try:
            return self._run(url, "get", call, sum(end - start for start, end in small))
        except StorageError as error:
            if cause_of(error.__cause__ or error).status != 416:
                raise
            return self._each(lambda one: self._piece(url, one, None), small)

    def open(self, url: str, etag: str | None) -> BinaryIO:
        info = self.find(url)
        if info is None:
            self.need_bucket(url)
            raise StorageError(Problem(url, "no such object", "check the name"))
        if etag and info.etag != etag:
            raise self._replaced(url)
        # Pinned to what was found: a stream never joins two versions.
        return stream(info.size, lambda start, end: self._piece(url, (start, end), info.etag), self._pool)

    def download(self, url: str, target: Path) -> None:
        info, first = self._first(url)
        with target.open("wb") as file:
            file.write(first)
            file.flush()

            def fetch(one: Range) -> None:
                os.pwrite(file.fileno(), self._piece(url, one, info.etag), one[0])

            self._each(fetch, split(len(first), info.size))

    # Asking

    def find(self, url: str) -> ObjectInfo | None:
        import obstore
        from obstore.exceptions import BaseError

        client, key = self._client(url), split_url(url)[1]
        if not key:
            return None
        with self._answering(url):
            try:
                meta = self._retries.run(url, "head", lambda: obstore.head(client, key))
            except FileNotFoundError:
                return None
            except BaseError as error:
                if passing(error, self._s3) or not cause_of(error).status:
                    raise
                # The answer to HEAD has no body and so no reason: asked for a byte, the store gives it.
                return self._get(url, (0, 1), None)[0]
            return ObjectInfo(url, meta["size"], (meta["e_tag"] or "").strip('"'))

    def need_bucket(self, url: str) -> None:
        """Tells a missing bucket from a missing object: to HEAD the store answers 404 to both."""
        import obstore

        client, key = self._client(url), split_url(url)[1]
        try:
            # Nothing lies under the name of an object, so the answer is short.
            self._run(url, "list", lambda: obstore.list_with_delimiter(client, f"{key.rstrip('/')}/" if key else None))
        except StorageError as error:
            # A key may be allowed to read objects and yet not to list them.
            if cause_of(error.__cause__ or error).status != 403:
                raise

    def children(self, url: str) -> Children:
        import obstore

        client, (bucket, prefix) = self._client(url), split_url(url)
        found = self._run(url, "list", lambda: obstore.list_with_delimiter(client, prefix or None))
        folders = [f"s3://{bucket}/{path}/" for path in found["common_prefixes"]]
        return Children(folders, self._infos(bucket, prefix, found["objects"]))

    def under(self, url: str) -> list[ObjectInfo]:
        import obstore

        client, (bucket, prefix) = self._client(url), split_url(url)

        def call() -> list[Any]:
            return [one for page in obstore.list(client, prefix or None, chunk_size=1000) for one in page]

        found = self._infos(bucket, prefix, self._run(url, "list", call))
        return self._without_markers(found)

    def _infos(self, bucket: str, prefix: str, objects: Iterable[Any]) -> list[ObjectInfo]:
        return [
            ObjectInfo(f"s3://{bucket}/{one['path']}", one["size"], (one["e_tag"] or "").strip('"'))
            for one in objects
            if one["path"].startswith(prefix)
        ]

    def _without_markers(self, found: list[ObjectInfo]) -> list[ObjectInfo]:
        """Without the empty objects "FOLDER/" that other tools make: the client lists them without their slash."""
        doubtful = {one.url.rpartition("/")[0] + "/" for one in found if one.size == 0}
        real = {one.url for folder in doubtful for one in self.children(folder).objects}
        return [one for one in found if one.size or one.url in real]

    # Writing

    def write(self, url: str, data: bytes, if_absent: bool) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        if len(data) > PART and not if_absent:
            self._upload(url, data, len(data))
            return
        client, key = self._client(url), split_url(url)[1]
        sent_before = False

        def call() -> None:
            nonlocal sent_before
            try:
                mode = "create" if if_absent else "overwrite"
                obstore.put(client, key, data, mode=mode, use_multipart=False)
            except AlreadyExistsError as error:
                # An answer may have been lost after the store had written: then what lies there is ours.
                if not (sent_before and self.read(url) == data):
                    raise FileExistsError(url) from error
            finally:
                sent_before = True

        self._run(url, "put", call, len(data))

    def upload(self, source: Path, url: str) -> None:
        self._upload(url, source, source.stat().st_size)

    def _upload(self, url: str, data: bytes | Path, size: int) -> None:
        import obstore

        part = max(PART, -(-size // 10_000))
        client, key = self._client(url, parts=size > part), split_url(url)[1]
        self._run(
            url,
            "upload",
            lambda: obstore.put(client, key, data, chunk_size=part, max_concurrency=PARTS_AT_ONCE),
            size,
        )

    def delete(self, url: str) -> None:
        import obstore

        client, key = self._client(url), split_url(url)[1]
        keys = [split_url(one.url)[1] for one in self.under(url)] if url.endswith("/") else [key]
        if keys:
            self._run(url, "delete", lambda: obstore.delete(client, keys if len(keys) > 1 else keys[0]))

    def make_bucket(self, bucket: str) -> None:
        url = f"s3://{bucket}/"
        client = self._client(url)
        self._run(url, "put", lambda: make_bucket(client))
