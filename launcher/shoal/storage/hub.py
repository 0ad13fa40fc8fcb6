"""hf://datasets/ORG/NAME[@REVISION]/PATH as a store to read from, through huggingface_hub.

A revision is resolved to its commit once per process, and all is read at that commit: what changes there meanwhile is
not seen. The token is huggingface_hub's own (HF_TOKEN, or `hf auth login`), the endpoint HF_ENDPOINT.
"""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import unquote

from shoal.errors import Problem, StorageError
from shoal.storage.faults import Fault, Passing, Retries, Truncated
from shoal.storage.objects import Children, ObjectInfo, replaced
from shoal.storage.ranges import PIECE, Range, cut, requests, split
from shoal.storage.stream import stream

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

SIDE_BY_SIDE = 4
"""Requests at once: the hub answers 429 to those who ask for much more."""
TIMEOUT_S = 30
PASSING = frozenset({408, 429, 500, 502, 503, 504})
_URL = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)


def parse(url: str) -> tuple[str, str, str]:
    """Repository, revision and path; the path may be empty. Raises StorageError for anything else."""
    match = _URL.fullmatch(url)
    if match is None:
        raise StorageError(Problem(url, "is no data set of the hub", "write hf://datasets/ORG/NAME/FILE.jsonl"))
    return match["repo"], unquote(match["revision"] or "main"), match["path"] or ""


class HubFiles:
    """Files of data sets on the hub. Nothing can be written."""

    def __init__(self, on_fault: Callable[[Fault], None] | None = None):
        self._retries = Retries(_passing, on_fault)
        self._lock = threading.Lock()
        self._commits: dict[tuple[str, str], str] = {}
        self._threads: ThreadPoolExecutor | None = None

    def __reduce__(self) -> Any:
        return HubFiles, ()

    @property
    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="shoal-hub")
        return self._threads

    @property
    def _api(self) -> "HfApi":
        from huggingface_hub import HfApi

        return HfApi()

    def _run(self, url: str, operation: str, call: Callable[[], T], size: int = 0) -> T:
        with _answering(url):
            return self._retries.run(url, operation, call, size)

    def _place(self, url: str) -> tuple[str, str, str]:
        """Repository, commit and path."""
        repo, revision, path = parse(url)
        with self._lock:
            if (repo, revision) not in self._commits:
                asked = self._run(
                    url, "info", lambda: self._api.dataset_info(repo, revision=revision, timeout=TIMEOUT_S)
                )
                self._commits[repo, revision] = asked.sha or revision
            return repo, self._commits[repo, revision], path

    # Reading

    def _piece(self, url: str, one: Range) -> bytes:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        repo, commit, path = self._place(url)
        where = hf_hub_url(repo, path, repo_type="dataset", revision=commit)
        start, end = one
        headers = build_hf_headers() | {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}

        def call() -> bytes:
            reply = get_session().get(where, headers=headers, timeout=TIMEOUT_S)
            hf_raise_for_status(reply)
            # A server that knows no ranges answers 200 with everything.
            body = reply.content if reply.status_code == 206 else reply.content[start:end]
            if len(body) != end - start:
                raise Truncated(len(body), end - start)
            return body

        return self._run(url, "get", call, end - start)

    def read(self, url: str) -> bytes:
        size = self._there(url, None).size
        return b"".join(self._pool.map(lambda one: self._piece(url, one), split(0, size)))

    def read_ranges(self, url: str, ranges: Sequence[Range], etag: str | None) -> list[bytes]:
        size = self._there(url, etag).size
        wanted = [(start, min(end, size)) for start, end in ranges]
        sent = requests([one for one in wanted if one[1] > one[0]])
        views = [memoryview(body) for body in self._pool.map(lambda one: self._piece(url, one), sent)]
        return [cut(one, sent, views) for one in wanted]

    def open(self, url: str, etag: str | None) -> BinaryIO:
        info = self._there(url, etag)
        return stream(info.size, lambda start, end: self._piece(url, (start, end)), self._pool)

    def download(self, url: str, target: Path) -> None:
        with target.open("wb") as file:
            for one in split(0, self._there(url, None).size, PIECE * SIDE_BY_SIDE):
                file.writelines(self._pool.map(lambda part: self._piece(url, part), split(*one)))

    def _there(self, url: str, etag: str | None) -> ObjectInfo:
        info = self.find(url)
        if info is None:
            raise StorageError(Problem(url, "no such file", "check the name"))
        if etag and info.etag != etag:
            self._retries.tell(Fault(url, "get", "was replaced", 1, 0.0))
            raise replaced(url)
        return info

    # Asking

    def find(self, url: str) -> ObjectInfo | None:
        repo, commit, path = self._place(url)
        if not path:
            return None
        call = lambda: self._api.get_paths_info(repo, [path], repo_type="dataset", revision=commit)  # noqa: E731
        found = [one for one in self._run(url, "head", call) if hasattr(one, "blob_id") and one.path == path]
        return _info(url, found[0]) if found else None

    def children(self, url: str) -> Children:
        entries = self._tree(url, recursive=False)
        root = url[: len(url) - len(parse(url)[2])]
        files = [one for one in entries if hasattr(one, "blob_id")]
        folders = [f"{root}{one.path}/" for one in entries if not hasattr(one, "blob_id")]
        return Children(folders, [_info(root + one.path, one) for one in files])

    def under(self, url: str) -> list[ObjectInfo]:
        root = url[: len(url) - len(parse(url)[2])]
        return [_info(root + one.path, one) for one in self._tree(url, recursive=True) if hasattr(one, "blob_id")]

    def _tree(self, url: str, recursive: bool) -> list[Any]:
        from huggingface_hub.errors import EntryNotFoundError

        repo, commit, path = self._place(url)
        folder = path.strip("/") or None

        def call() -> list[Any]:
            try:
                listed = self._api.list_repo_tree(
                    repo, folder, recursive=recursive, repo_type="dataset", revision=commit
                )
                return list(listed)
            except EntryNotFoundError:
                return []

        return self._run(url, "list", call)

    # Writing

    def write(self, url: str, data: bytes, if_absent: bool) -> None:
        raise _read_only(url)

    def upload(self, source: Path, url: str) -> None:
        raise _read_only(url)

    def delete(self, url: str) -> None:
        raise _read_only(url)


def _read_only(url: str) -> StorageError:
    return StorageError(Problem(url, "the hub is only read from", "use a local folder or s3://bucket/key"))


def _info(url: str, file: Any) -> ObjectInfo:
    return ObjectInfo(url, file.size, file.lfs.sha256 if file.lfs else file.blob_id)


def _passing(error: BaseException) -> Passing | None:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if isinstance(error, Truncated):
        return Passing(str(error))
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return Passing(str(status)) if status in PASSING else None
    if isinstance(error, HTTPError):
        name = type(error).__name__
        words = "no connection" if name.startswith("Connect") else "the connection broke"
        return Passing("no answer in time" if name == "ReadTimeout" else words, nobody=name.startswith("Connect"))
    return None


@contextmanager
def _answering(url: str) -> Iterator[None]:
    """Turns what huggingface_hub raises about `url` into a StorageError of one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    (repo, revision, _), hub = parse(url), constants.ENDPOINT
    try:
        yield
        return
    except GatedRepoError as error:
        what, fix = f"{repo} is gated and this token does not open it", f"accept its terms at {hub}/datasets/{repo}"
        fix, cause = f"{fix} and set HF_TOKEN", error
    except RepositoryNotFoundError as error:
        what, fix = f"{hub} has no data set {repo} that this token may see", "check ORG/NAME; if private, set HF_TOKEN"
        cause = error
    except RevisionNotFoundError as error:
        what, fix, cause = f"{repo} has no revision {revision}", f"see {hub}/datasets/{repo}/commits/main", error
    except EntryNotFoundError as error:
        what, fix, cause = "no such file", "check the name", error
    except OfflineModeIsEnabled as error:
        what, fix, cause = "HF_HUB_OFFLINE=1 forbids asking the hub", "unset it, or use a local copy", error
    except HfHubHTTPError as error:
        status, cause = error.response.status_code, error
        what, fix = f"{hub} answered {status}", "check HF_TOKEN" if status in (401, 403) else "try again later"
    except HTTPError as error:
        what, fix, cause = f"{hub} cannot be reached", "check the network or HF_ENDPOINT, or use a local copy", error
    except Truncated as error:
        what, fix, cause = str(error), "try again", error
    raise StorageError(Problem(url, what, fix)) from cause
