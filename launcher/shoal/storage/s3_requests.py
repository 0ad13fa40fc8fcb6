"""How requests to an S3 store are made: a client per bucket, threads, answers in one line, and new attempts."""

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from shoal.errors import Problem, StorageError
from shoal.spec.cluster import S3Spec
from shoal.storage.answers import answer, passing
from shoal.storage.client import connect, need_own_runtime
from shoal.storage.faults import Fault, Retries, Truncated
from shoal.storage.ranges import Range

if TYPE_CHECKING:
    from obstore.store import S3Store

T = TypeVar("T")

BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
SIDE_BY_SIDE = 8
"""Requests at once of one Storage."""


def split_url(url: str) -> tuple[str, str]:
    """Bucket and key of "s3://BUCKET/KEY"; the key may be empty. Raises StorageError for an impossible bucket."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not BUCKET.fullmatch(bucket):
        fix = "use 3 to 63 lower-case letters, digits, dots and dashes, as in s3://bucket/key"
        raise StorageError(Problem(url, f"{bucket!r} is no bucket name", fix))
    return bucket, key


class S3Requests:
    """What all operations share. Clients are made per process and bucket, anew after pickling."""

    def __init__(self, s3: S3Spec, on_fault: Callable[[Fault], None] | None = None):
        self._s3 = s3
        self._retries = Retries(partial(passing, s3=s3), on_fault)
        self._clients: dict[tuple[str, bool], S3Store] = {}
        self._threads: ThreadPoolExecutor | None = None

    def patient(self, seconds: float) -> Self:
        """The same, with the same clients, asking again for so long."""
        other = copy(self)
        other._retries = self._retries.patient(seconds)
        return other

    def __reduce__(self) -> Any:
        return type(self), (self._s3,)

    def _client(self, url: str, parts: bool = False) -> "S3Store":
        bucket = split_url(url)[0]
        need_own_runtime(url)
        if (bucket, parts) not in self._clients:
            self._clients[bucket, parts] = connect(self._s3, bucket, parts)
        return self._clients[bucket, parts]

    @property
    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="shoal-s3")
        return self._threads

    @contextmanager
    def _answering(self, url: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except (StorageError, FileExistsError):
            raise
        except (BaseError, FileNotFoundError, ValueError, Truncated) as error:
            raise answer(error, url, self._s3) from error

    def _run(self, url: str, operation: str, call: Callable[[], T], size: int = 0) -> T:
        with self._answering(url):
            return self._retries.run(url, operation, call, size)

    def _each(self, call: Callable[[Range], T], ranges: Iterable[Range]) -> list[T]:
        """`call` for every range, side by side; the first failure ends it, once what has begun is over."""
        futures = [self._pool.submit(call, one) for one in ranges]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            future.cancel()
        wait(futures)
        return [future.result() for future in futures if not future.cancelled()]
