"""Local folders of models and data sets served on loopback as a Hugging Face hub, for `HF_ENDPOINT`."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+?)"
    r"(/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+)(/(?P<path>.*))?)?"
)
RESOLVE = re.compile(r"/((?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
RANGE = re.compile(r"bytes=(\d+)-(\d*)")
STRANGER = "hf_stranger"
"""A token of somebody who exists, but has no access to a gated repository."""
LARGE = (".safetensors", ".gguf", ".parquet")
"""Endings of files that a hub keeps apart from git."""


@dataclass
class Hub:
    """A running hub. `requests` holds "METHOD PATH" of all that was asked, so that a test can count downloads."""

    endpoint: str
    models: dict[str, Path]
    token: str | None
    datasets: dict[str, Path] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failing: list[int] = field(default_factory=list)
    """Statuses that the next downloads are answered with."""

    def root(self, repo: str) -> Path:
        return self.models.get(repo) or self.datasets[repo]

    def commit(self, repo: str) -> str:
        """40 hex digits over the names and contents of a repository's files."""
        digest = hashlib.sha1()
        for path in self.files(repo):
            digest.update(f"{path.relative_to(self.root(repo))} {self.etag(path)}\n".encode())
        return digest.hexdigest()

    def files(self, repo: str) -> list[Path]:
        return sorted(path for path in self.root(repo).rglob("*") if path.is_file())

    def etag(self, path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def serving_hub(
    models: dict[str, Path], token: str | None = None, datasets: dict[str, Path] | None = None
) -> Iterator[Hub]:
    """Serves each "owner/name" from its folder; with `token`, files (not names) are given to its bearer alone."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}", models, token, datasets or {})
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

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Stays silent: `Hub.requests` is the log."""

    @property
    def _hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
        self._hub.requests.append(f"{self.command} {path}")
        match = API.fullmatch(path) or RESOLVE.fullmatch(path)
        if match is None or match["repo"] not in (
            self._hub.datasets if match["kind"] == "datasets" else self._hub.models
        ):
            self._refuse(404, "RepoNotFound", "Repository not found")
            return
        bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if bearer and self._hub.token and bearer not in (self._hub.token, STRANGER):
            self._refuse(401, "", "Invalid username or password.")
        elif match["revision"] not in (None, "main", self._hub.commit(match["repo"])):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {match['revision']}")
        elif match.re is API:
            self._api(match, form.get("paths", []))
        elif self._hub.token and bearer != self._hub.token:
            self._refuse(403 if bearer else 401, "GatedRepo", f"Access to {match['repo']} is restricted.")
        elif self._hub.failing:
            self._refuse(self._hub.failing.pop(), "", "Try again.")
        else:
            self._file(match["repo"], match["path"])

    def _api(self, match: re.Match[str], paths: list[str]) -> None:
        entries = self._entries(match["repo"])
        if match["what"] == "tree":
            folder = f"{match['path'].rstrip('/')}/" if match["path"] else ""
            recursive = "recursive=true" in urlsplit(self.path).query.lower()
            body: object = [
                one
                for one in entries
                if one["path"].startswith(folder) and (recursive or "/" not in one["path"][len(folder) :])
            ]
            if folder and not body:
                self._refuse(404, "EntryNotFound", f"{folder} does not exist on main")
                return
        elif match["what"] == "paths-info":
            body = [one for one in entries if one["path"] in paths]
        else:
            body = self._info(match["repo"])
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _info(self, repo: str) -> dict:
        names = [path.relative_to(self._hub.root(repo)).as_posix() for path in self._hub.files(repo)]
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

    def _entries(self, repo: str) -> list[dict]:
        """Every folder and file, with its path from the repository's root."""
        root, entries = self._hub.root(repo), []
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.is_dir():
                entries.append({"type": "directory", "path": name, "size": 0, "oid": "0" * 40})
                continue
            size, etag = path.stat().st_size, self._hub.etag(path)
            entry = {"type": "file", "path": name, "size": size, "oid": etag[:40]}
            if path.suffix in LARGE:
                entry["lfs"] = {"oid": etag, "size": size, "pointerSize": 135}
            entries.append(entry)
        return entries

    def _file(self, repo: str, name: str) -> None:
        path = self._hub.root(repo) / name
        if path not in self._hub.files(repo):
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        data, status = path.read_bytes(), 200
        large = path.suffix in LARGE
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
