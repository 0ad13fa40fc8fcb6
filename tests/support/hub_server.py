"""Local model folders served on loopback as a Hugging Face hub, for `HF_ENDPOINT`: what huggingface_hub asks for."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+?)(/(?P<what>revision|tree)/(?P<revision>[^/]+)/?)?")
RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
RANGE = re.compile(r"bytes=(\d+)-(\d*)")
STRANGER = "hf_stranger"
"""A token of somebody who exists, but has no access to a gated model."""


@dataclass
class Hub:
    """A running hub. `requests` holds "METHOD PATH" of all that was asked, so that a test can count downloads."""

    endpoint: str
    models: dict[str, Path]
    token: str | None
    requests: list[str] = field(default_factory=list)

    def commit(self, repo: str) -> str:
        """40 hex digits over the names and contents of a model's files."""
        digest = hashlib.sha1()
        for path in self.files(repo):
            digest.update(f"{path.relative_to(self.models[repo])} {self.etag(path)}\n".encode())
        return digest.hexdigest()

    def files(self, repo: str) -> list[Path]:
        return sorted(path for path in self.models[repo].rglob("*") if path.is_file())

    def etag(self, path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def serving_hub(models: dict[str, Path], token: str | None = None) -> Iterator[Hub]:
    """Serves each "owner/name" from its folder; with `token`, files (not names) are given to its bearer alone."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}", models, token)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Stays silent: `Hub.requests` is the log."""

    @property
    def _hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self._hub.requests.append(f"{self.command} {path}")
        match = API.fullmatch(path) or RESOLVE.fullmatch(path)
        if match is None or match["repo"] not in self._hub.models:
            self._refuse(404, "RepoNotFound", "Repository not found")
            return
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if bearer and self._hub.token and bearer not in (self._hub.token, STRANGER):
            self._refuse(401, "", "Invalid username or password.")
        elif match["revision"] not in (None, "main", self._hub.commit(match["repo"])):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {match['revision']}")
        elif match.re is API:
            body = self._tree(match["repo"]) if match["what"] == "tree" else self._info(match["repo"])
            self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        elif self._hub.token and bearer != self._hub.token:
            self._refuse(403 if bearer else 401, "GatedRepo", f"Access to model {match['repo']} is restricted.")
        else:
            self._file(match["repo"], match["path"])

    def _info(self, repo: str) -> dict:
        names = [path.relative_to(self._hub.models[repo]).as_posix() for path in self._hub.files(repo)]
        return {
            "_id": "1",
            "id": repo,
            "modelId": repo,
            "sha": self._hub.commit(repo),
            "private": False,
            "gated": "manual" if self._hub.token else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": name} for name in names],
        }

    def _tree(self, repo: str) -> list[dict]:
        entries = []
        for path in self._hub.files(repo):
            size, name = path.stat().st_size, path.relative_to(self._hub.models[repo]).as_posix()
            etag = self._hub.etag(path)
            entry = {"type": "file", "path": name, "size": size, "oid": etag[:40]}
            if path.suffix in (".safetensors", ".gguf"):
                entry["lfs"] = {"oid": etag, "size": size, "pointerSize": 135}
            entries.append(entry)
        return entries

    def _file(self, repo: str, name: str) -> None:
        path = self._hub.models[repo] / name
        if path not in self._hub.files(repo):
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        data, status = path.read_bytes(), 200
        large = path.suffix in (".safetensors", ".gguf")
        etag = self._hub.etag(path) if large else self._hub.etag(path)[:40]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self._hub.commit(repo), "Accept-Ranges": "bytes"}
        if wanted := RANGE.fullmatch(self.headers.get("Range", "")):
            start, end = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data, status = data[start : end + 1], 206
        self._send(status, data, headers)

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json"}
        body = json.dumps({"error": message}).encode()
        self._send(status, body, headers | ({"X-Error-Code": code} if code else {}))

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
