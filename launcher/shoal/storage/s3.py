"""s3:// as a store, through s3fs. Keys are found by reference when the client is made, and never kept by us."""

import errno
import io
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from shoal import store
from shoal.errors import Problem, StorageError
from shoal.spec.cluster import CredentialRef, S3Spec
from shoal.storage.answers import answer, code_of
from shoal.storage.objects import Children, ObjectInfo

BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
PART = 16 << 20
"""Bytes per part of a large upload; an object has at most 10,000 parts."""
LOCAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EISDIR, errno.ENOTDIR})
"""Errors of this machine's disk during a download; without the store's code they are not about the object."""
STREAM_BUFFER = 8 << 20
STREAM_RANGES = 4
"""A stream fills its buffer by so many requests at once: one request alone does not fill the line."""


def split(url: str) -> tuple[str, str]:
    """Bucket and key of "s3://BUCKET/KEY"; the key may be empty. Raises StorageError for an impossible bucket."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not BUCKET.fullmatch(bucket):
        fix = "use 3 to 63 lower-case letters, digits, dots and dashes, as in s3://bucket/key"
        raise StorageError(Problem(url, f"{bucket!r} is no bucket name", fix))
    return bucket, key


def key_pair(credentials: CredentialRef) -> dict[str, str]:
    """s3fs's `key` and `secret`, looked up by reference; empty when the AWS chain is to be asked."""
    where = "storage.s3.credentials"
    if credentials.access_key_env or credentials.secret_key_env:
        names = {"access_key_env": credentials.access_key_env, "secret_key_env": credentials.secret_key_env}
        problems = [
            Problem(
                f"{where}.{field}", f"the variable {name} is not set" if name else "is missing beside the other", fix
            )
            for field, name in names.items()
            if not (name and os.environ.get(name))
            for fix in ["set it, or name another"]
        ]
        if problems:
            raise StorageError(*problems)
        return {"key": os.environ[str(names["access_key_env"])], "secret": os.environ[str(names["secret_key_env"])]}
    if credentials.file:
        path = Path(credentials.file).expanduser()
        try:
            if path.stat().st_mode & stat.S_IROTH:
                raise StorageError(Problem(f"{where}.file", f"everybody can read {path}", f"chmod 600 {path}"))
            body = json.loads(path.read_text())
            return {"key": str(body["access_key"]), "secret": str(body["secret_key"])}
        except StorageError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            fix = 'write {"access_key": "...", "secret_key": "..."} there, mode 0600'
            raise StorageError(Problem(f"{where}.file", f"{path} cannot be read as a key file", fix)) from error
    return {}


def connect(s3: S3Spec) -> Any:
    """A new s3fs file system. It cannot be pickled or used after a fork."""
    from s3fs import S3FileSystem

    endpoint, region, anonymous = s3.endpoint_url, s3.region, s3.credentials.anonymous
    options: dict[str, Any] = {"profile": s3.credentials.profile} if s3.credentials.profile else {}
    if s3.server == "embedded":
        server = store.connection(s3)
        endpoint, anonymous, options = server.endpoint, False, {"key": server.access_key, "secret": server.secret_key}
    else:
        options |= key_pair(s3.credentials)
    config: dict[str, Any] = {
        # Fails within seconds when nothing listens, yet outlives a slow part of a large upload.
        "connect_timeout": 3,
        "read_timeout": 60,
        "retries": {"mode": "standard", "total_max_attempts": 3},
        "max_pool_connections": 32,
    }
    if endpoint:
        # Stores other than AWS know paths rather than host names, and often not the newer checksum trailers.
        config |= {
            "s3": {"addressing_style": "path"},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
    if s3.server == "embedded":
        # It listens on loopback, where no proxy leads.
        config["proxies"] = {}
    return S3FileSystem(
        anon=anonymous,
        endpoint_url=endpoint,
        client_kwargs={"region_name": region or "us-east-1"} if region or endpoint else {},
        config_kwargs=config,
        use_listings_cache=False,
        skip_instance_cache=True,
        **options,
    )


class S3Objects:
    """Objects named "s3://BUCKET/KEY". One per process: made anew after pickling and after a fork."""

    def __init__(self, s3: S3Spec):
        self._s3 = s3
        self._client: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_s3": self._s3, "_client": None}

    @property
    def _fs(self) -> Any:
        if self._client is None or self._client[0] != os.getpid():
            self._client = (os.getpid(), connect(self._s3))
        return self._client[1]

    @contextmanager
    def _answering(self, url: str) -> Iterator[None]:
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError
        from botocore.exceptions import ClientError as StoreError

        try:
            yield
        except (StorageError, FileExistsError):
            raise
        except (OSError, BotoCoreError, StoreError, ClientError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in LOCAL and not code_of(error):
                raise
            if isinstance(error, FileNotFoundError) and code_of(error) in ("", "404"):
                self.need_bucket(url)
            raise answer(error, url, self._s3) from error

    def need_bucket(self, url: str) -> None:
        """Tells a missing bucket from a missing object: the store answers 404 to both."""
        bucket = split(url)[0]
        try:
            self._fs.call_s3("head_bucket", Bucket=bucket)
        except FileNotFoundError as error:
            fix = "check its name and the endpoint, or make it"
            raise StorageError(Problem(url, f"no bucket {bucket!r}", fix)) from error
        except PermissionError:
            # A key may be allowed to read objects and yet not to ask for the bucket.
            return

    def _path(self, url: str) -> str:
        return "/".join(split(url))

    def read(self, url: str) -> bytes:
        with self._answering(url):
            return self._fs.cat_file(self._path(url))

    def read_ranges(self, url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        wanted = [(start, end) for start, end in ranges if end > start]
        with self._answering(url):
            starts, ends = [start for start, _ in wanted], [end for _, end in wanted]
            found = iter(self._fs.cat_ranges([self._path(url)] * len(wanted), starts, ends, on_error="raise"))
        return [next(found) if end > start else b"" for start, end in ranges]

    def open(self, url: str) -> BinaryIO:
        info = self.find(url)
        if info is None:
            self.need_bucket(url)
            raise StorageError(Problem(url, "no such object", "check the name"))
        return io.BufferedReader(_Stream(self, url, info.size), STREAM_BUFFER)

    def write(self, url: str, data: bytes, if_absent: bool) -> None:
        with self._answering(url):
            try:
                self._fs.pipe_file(
                    self._path(url), data, chunksize=_part(len(data)), mode="create" if if_absent else "overwrite"
                )
            except OSError as error:
                # s3fs raises FileExistsError for AWS's answer alone; other stores leave out the failed condition's name.
                if if_absent and code_of(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412"):
                    raise FileExistsError(url) from error
                raise

    def upload(self, source: Path, url: str) -> None:
        with self._answering(url):
            self._fs.put_file(str(source), self._path(url), chunksize=_part(source.stat().st_size))

    def download(self, url: str, target: Path) -> None:
        with self._answering(url):
            self._fs.get_file(self._path(url), str(target))

    def find(self, url: str) -> ObjectInfo | None:
        bucket, key = split(url)
        if not key:
            return None
        with self._answering(url):
            try:
                head = self._fs.call_s3("head_object", Bucket=bucket, Key=key)
            except FileNotFoundError:
                return None
            return ObjectInfo(url, head["ContentLength"], head["ETag"].strip('"'))

    def children(self, url: str) -> Children:
        folders, objects = [], []
        for page in self._pages(url, Delimiter="/"):
            folders += [f"s3://{split(url)[0]}/{one['Prefix']}" for one in page.get("CommonPrefixes", [])]
            objects += self._infos(url, page)
        return Children(folders, objects)

    def under(self, url: str) -> list[ObjectInfo]:
        return [one for page in self._pages(url) for one in self._infos(url, page)]

    def _infos(self, url: str, page: dict[str, Any]) -> list[ObjectInfo]:
        bucket = split(url)[0]
        return [
            ObjectInfo(f"s3://{bucket}/{one['Key']}", one["Size"], one["ETag"].strip('"'))
            for one in page.get("Contents", [])
            if not one["Key"].endswith("/")
        ]

    def _pages(self, url: str, **options: str) -> Iterator[dict[str, Any]]:
        bucket, prefix = split(url)
        token: dict[str, str] = {}
        while True:
            with self._answering(url):
                page = self._fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **options, **token)
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, url: str) -> None:
        bucket, key = split(url)
        if not url.endswith("/"):
            with self._answering(url):
                self._fs.call_s3("delete_object", Bucket=bucket, Key=key)
            return
        keys = [{"Key": split(one.url)[1]} for one in self.under(url)]
        for first in range(0, len(keys), 1000):
            with self._answering(url):
                batch = {"Objects": keys[first : first + 1000], "Quiet": True}
                failed = self._fs.call_s3("delete_objects", Bucket=bucket, Delete=batch).get("Errors", [])
            if failed:
                what = f"{len(failed)} objects could not be deleted ({failed[0].get('Code')})"
                raise StorageError(Problem(url, what, "check the key's rights and delete again"))

    def make_bucket(self, bucket: str) -> None:
        url = f"s3://{bucket}/"
        split(url)
        with self._answering(url):
            try:
                self._fs.mkdir(bucket)
            except FileExistsError:
                return


def _part(size: int) -> int:
    return max(PART, -(-size // 10_000))


class _Stream(io.RawIOBase):
    """An object as a seekable raw stream of `size` bytes; a BufferedReader in front asks for large pieces."""

    def __init__(self, objects: S3Objects, url: str, size: int):
        self._objects, self._url, self._size, self._place = objects, url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence])
        return self._place

    def tell(self) -> int:
        return self._place

    def readall(self) -> bytes:
        # The inherited one would ask for 8 KiB at a time.
        rest = bytearray(max(0, self._size - self._place))
        self.readinto(rest)
        return bytes(rest)

    def readinto(self, buffer: Any) -> int:
        start, end = self._place, min(self._size, self._place + len(buffer))
        if start >= end:
            return 0
        step = max(64 << 10, -(-(end - start) // STREAM_RANGES))
        ranges = [(first, min(first + step, end)) for first in range(start, end, step)]
        data = b"".join(self._objects.read_ranges(self._url, ranges))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)
