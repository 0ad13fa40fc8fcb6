"""A model's files wherever they lie: local folder, object store or hub, read in parts without downloading weights."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shoal import hub
from shoal.errors import ModelError, Problem
from shoal.storage import Storage, join
from shoal.storage.local import answering


@dataclass(frozen=True)
class File:
    size: int
    """Bytes."""
    identity: str
    """Changes when the content does."""


class ModelFiles(Protocol):
    """The files directly in a model's folder."""

    @property
    def files(self) -> dict[str, File]: ...
    def read(self, name: str) -> bytes: ...
    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes start to end, or fewer where the file ends."""
        ...


class FolderFiles:
    """A local folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        with answering(str(folder)):
            self.files = {path.name: self._file(path) for path in sorted(folder.iterdir()) if path.is_file()}

    def _file(self, path: Path) -> File:
        status = path.stat()
        return File(status.st_size, f"{status.st_size}-{status.st_mtime_ns}")

    def read(self, name: str) -> bytes:
        with answering(str(self.folder / name)):
            return (self.folder / name).read_bytes()

    def read_range(self, name: str, start: int, end: int) -> bytes:
        with answering(str(self.folder / name)), (self.folder / name).open("rb") as file:
            file.seek(start)
            return file.read(end - start)


class StoredFiles:
    """The objects directly under an s3:// prefix."""

    def __init__(self, storage: Storage, prefix: str):
        self.storage, self.prefix = storage, prefix
        objects = [(one.url[len(prefix) :], one) for one in storage.list(prefix)]
        self.files = {name: File(one.size, one.etag) for name, one in objects if "/" not in name}

    def read(self, name: str) -> bytes:
        return self.storage.read(join(self.prefix, name))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        return self.storage.read_ranges(join(self.prefix, name), [(start, min(end, self.files[name].size))])[0]


class HubFiles:
    """A model's repository on the hub at one commit. Small files go through the hub's own cache."""

    def __init__(self, repo: str, revision: str | None, token: str | None):
        from huggingface_hub import model_info

        self.repo, self.token = repo, token
        info = model_info(repo, revision=revision, token=token, files_metadata=True, timeout=hub.CONNECT_TIMEOUT_S)
        assert info.sha, "the hub names the commit of every model"
        self.commit = info.sha
        siblings = [one for one in info.siblings or [] if "/" not in one.rfilename or one.rfilename.endswith(".gguf")]
        self.files = {one.rfilename: File(one.size or 0, one.blob_id or info.sha) for one in siblings}

    def read(self, name: str) -> bytes:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self.repo, name, revision=self.commit, token=self.token)).read_bytes()

    def read_range(self, name: str, start: int, end: int) -> bytes:
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        headers = {**build_hf_headers(token=self.token), "Range": f"bytes={start}-{end - 1}"}
        url = hf_hub_url(self.repo, name, revision=self.commit)
        response = get_session().get(url, headers=headers, timeout=30, follow_redirects=True)
        hf_raise_for_status(response)
        # A server that ignores ranges sends the whole file.
        return response.content if response.status_code == 206 else response.content[start:end]


def cached_snapshot(repo: str, revision: str | None) -> Path | None:
    """The hub's local cache of `repo`; None when it holds none with a configuration."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if (folder / "config.json").exists() else None


def open_files(base: str, storage: Storage, where: str) -> ModelFiles:
    """The files of a local folder or an s3:// prefix. Raises ModelError at the field `where` when there are none."""
    if "://" in base:
        files = StoredFiles(storage, base.rstrip("/") + "/")
        if files.files:
            return files
        raise ModelError(
            Problem(where, f"{base}: no such files", "check the name; `shoal store ls` lists what is there")
        )
    folder = Path(base).expanduser()
    if not folder.is_dir():
        raise ModelError(Problem(where, f"{base}: no such folder", "check the name; a hub id has the form ORG/NAME"))
    return FolderFiles(folder)


def digest(parts: Iterable[object]) -> str:
    """32 hex digits over the parts, told apart."""
    body = hashlib.sha256()
    for part in parts:
        data = str(part).encode()
        body.update(len(data).to_bytes(8, "little") + data)
    return body.hexdigest()[:32]
