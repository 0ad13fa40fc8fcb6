"""Ray's dashboard over HTTP: its job API, as documented under "Ray Jobs REST API", and who its nodes are.

Plain HTTP rather than Ray's own client: the cluster's Ray need not be this machine's, and a submission imports no Ray.
"""

import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

from shoal.errors import ClusterError, Problem
from shoal.hub import secret

TIMEOUT_S = 20.0
"""Of one request; a head that is busy starting a job answers late."""
SILENT_S = 30.0
"""A driver that says nothing for so long is asked after."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
LOOK = (
    "is the head up, with its dashboard (pip install 'ray[default]'), and does {address} lead there from this machine?"
)


@dataclass(frozen=True)
class Job:
    """What Ray says of one submission."""

    id: str
    status: str
    """PENDING, RUNNING, or one of ENDED."""
    message: str
    exit_code: int | None
    """Of the driver; None while it runs, and where Ray does not know."""
    metadata: dict[str, str]
    start: float
    """Seconds since the epoch."""

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True)
class Node:
    """One machine of the cluster."""

    name: str
    resources: dict[str, float]
    """What there is in all, in Ray's words."""


class Unanswered(ClusterError):
    """Nobody answers at the address, at least just now."""


@dataclass(frozen=True)
class Dashboard:
    """The dashboard at `address`. Its token is looked up for each request, and shown nowhere."""

    address: str
    token: str | None = None
    """`env:NAME` or `file:PATH`; None: where Ray looks."""
    sent: list[int] = field(default_factory=list, compare=False)
    """Bytes of each request's body so far."""

    def version(self) -> dict[str, Any]:
        """`ray_version` and `session_name` among others. Raises: ClusterError for anything but a Ray dashboard."""
        found = self._json("GET", "/api/version")
        if not isinstance(found, dict) or "ray_version" not in found:
            raise ClusterError(self._no_dashboard("it says nothing of a Ray version"))
        return found

    def nodes(self) -> list[Node]:
        """Those that are alive."""
        rows = self._json("GET", "/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
        return [Node(row["node_name"], row["resources_total"]) for row in rows if row["state"] == "ALIVE"]

    def grows(self) -> bool:
        """Whether an autoscaler may add nodes: it has names for their types, where Ray itself says `node_ID`."""
        status = self._json("GET", "/api/cluster_status")["data"]["clusterStatus"] or {}
        types = ((status.get("autoscalerReport") or {}).get("nodeTypeMapping") or {}).values()
        return any(not name.startswith("node_") for name in types)

    def has_package(self, name: str) -> bool:
        return self._request("GET", f"/api/packages/gcs/{name}", missing=True) is not None

    def put_package(self, name: str, data: bytes) -> None:
        self._request("PUT", f"/api/packages/gcs/{name}", data)

    def submit(self, entrypoint: str, id: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        """Raises: ClusterError when the cluster has a job of that id, or refuses it."""
        body = {"entrypoint": entrypoint, "submission_id": id, "runtime_env": runtime_env, "metadata": metadata}
        self._json("POST", "/api/jobs/", json.dumps(body).encode())

    def job(self, id: str) -> Job | None:
        found = self._request("GET", f"/api/jobs/{quote(id, safe='')}", missing=True)
        return None if found is None else _job(json.loads(found))

    def jobs(self) -> list[Job]:
        """All submissions that the cluster remembers, oldest first."""
        rows = [row for row in self._json("GET", "/api/jobs/") if row.get("submission_id")]
        return sorted((_job(row) for row in rows), key=lambda one: one.start)

    def stop(self, id: str) -> None:
        """SIGTERM to the driver; Ray waits RAY_JOB_STOP_WAIT_TIME_S of its environment before it kills."""
        self._json("POST", f"/api/jobs/{quote(id, safe='')}/stop", b"{}")

    def hold(self, id: str) -> None:
        """Ray starts no job a second time by itself: there is nothing to prevent."""

    def log(self, id: str) -> str:
        """Everything that the driver has said so far."""
        return self._json("GET", f"/api/jobs/{quote(id, safe='')}/logs")["logs"] or ""

    def tail(self, id: str) -> Iterator[str]:
        """The driver's words from the first on, as they come, until the job has ended. Raises: Unanswered."""
        from websockets.exceptions import ConnectionClosedOK, WebSocketException
        from websockets.sync.client import connect

        url = f"ws{self.address.removeprefix('http').rstrip('/')}/api/jobs/{quote(id, safe='')}/logs/tail"
        try:
            # Ray's side never reads, so it answers no ping: whether it is still there is asked over HTTP.
            options = {"open_timeout": TIMEOUT_S, "ping_interval": None, "max_size": None, "compression": None}
            with connect(url, additional_headers=self._headers(), **options) as socket:
                while True:
                    try:
                        message = socket.recv(timeout=SILENT_S)
                    except TimeoutError:
                        if (job := self.job(id)) is None or job.ended:
                            return
                    else:
                        yield message if isinstance(message, str) else message.decode(errors="replace")
        except ConnectionClosedOK:
            return
        except (WebSocketException, OSError, EOFError) as error:
            raise Unanswered(self._away(error)) from error

    def _headers(self) -> dict[str, str]:
        token = token_of(self.token)
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    def _json(self, method: str, path: str, data: bytes | None = None) -> Any:
        answer = self._request(method, path, data)
        try:
            return json.loads(answer or b"")
        except ValueError as error:
            raise ClusterError(self._no_dashboard("its answer is no JSON")) from error

    def _request(self, method: str, path: str, data: bytes | None = None, missing: bool = False) -> bytes | None:
        """The answer's body; None for what is not there, where `missing` allows it."""
        kind = "application/octet-stream" if method == "PUT" else "application/json"
        headers = {"Content-Type": kind, **self._headers()}
        request = urllib.request.Request(f"{self.address.rstrip('/')}{path}", data, headers, method=method)  # noqa: S310
        self.sent.append(len(data or b""))
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code == 404 and missing:
                return None
            raise ClusterError(self._refusal(error)) from error
        except (urllib.error.URLError, OSError, HTTPException) as error:
            raise Unanswered(self._away(error)) from error

    def _refusal(self, error: urllib.error.HTTPError) -> Problem:
        with error:
            text = error.read(20_000).decode(errors="replace")
        if error.code in (401, 403) and "token" in text.lower():
            return self._token_problem(error.code)
        if error.code == 404:
            return self._no_dashboard("it does not know Ray's job API")
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
        what = f"{self.address} answers {error.code}: {last[:300] or error.reason}"
        return Problem(
            "address", what, "its log is dashboard_JobHead.log on the head, under /tmp/ray/session_latest/logs"
        )

    def _token_problem(self, status: int) -> Problem:
        where = self.token or _own_token()[1]
        if status == 401 or token_of(self.token) is None:
            fix = "name where it is found, `env:NAME` or `file:PATH`, or do as Ray does: RAY_AUTH_TOKEN or ~/.ray/auth_token"
            return Problem("token", f"{self.address} asks for a token, and none was given", fix)
        fix = "`ray get-auth-token` says it on the head; whoever runs the cluster gives it out"
        return Problem("token", f"{self.address} does not accept the one of {where}", fix)

    def _no_dashboard(self, why: str) -> Problem:
        fix = "name the head's dashboard, http://HEAD:8265 unless `ray start --dashboard-port` says otherwise"
        return Problem("address", f"something answers at {self.address}, but it is no Ray dashboard: {why}", fix)

    def _away(self, error: Exception) -> Problem:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            what = f"{self.address} cannot be trusted or speaks no TLS: {reason.reason or reason}"
            return Problem(
                "address", what, "write http:// for a dashboard without TLS; SSL_CERT_FILE names a CA of your own"
            )
        if isinstance(reason, HTTPException):
            return self._no_dashboard("it does not speak HTTP")
        said = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        return Problem("address", f"{self.address} does not answer: {said.lower()}", LOOK.format(address=self.address))


def token_of(reference: str | None) -> str | None:
    """The token behind the reference, or where Ray keeps its own; None where there is none. Raises: SpecError."""
    return secret(reference, "token") if reference else _own_token()[0]


def _own_token() -> tuple[str | None, str]:
    """As Ray finds it, and where: RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, ~/.ray/auth_token."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text().strip() or None, str(path)
    except OSError:
        return None, str(path)


def _job(row: dict[str, Any]) -> Job:
    return Job(
        id=row["submission_id"],
        status=row["status"],
        message=row.get("message") or "",
        exit_code=row.get("driver_exit_code"),
        metadata=row.get("metadata") or {},
        start=(row.get("start_time") or 0) / 1000,
    )
