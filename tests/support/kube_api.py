"""A small Kubernetes API server over HTTP: strict about what it is given, and an operator that plays a script.

It keeps one namespace's objects in memory, checks each applied one as `kube_schemas` does, and knows server-side apply (with
its conflicts), merge patches, get, list by labels, delete with what is owned, and pods' logs. Each time that somebody asks for
the RayJob, the script goes one scene on.
"""

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from kube_schemas import faults

Body = dict[str, Any]
PATH = re.compile(
    r"(?P<group>/api/v1|/apis/[^/]+/[^/]+)/namespaces/(?P<ns>[^/]+)/(?P<kind>[^/]+)(/(?P<name>[^/]+))?(?P<log>/log)?"
)
KINDS = {
    "/api/v1": {"serviceaccounts", "configmaps", "pods", "events"},
    "/apis/networking.k8s.io/v1": {"networkpolicies"},
    "/apis/policy/v1": {"poddisruptionbudgets"},
    "/apis/ray.io/v1": {"rayjobs"},
    "/apis/kueue.x-k8s.io/v1beta2": {"workloads"},
}
TOKEN = "a-token-of-a-person"
MADE = "2026-11-21T21:00:00Z"
_checked: dict[str, list[str]] = {}


@dataclass
class Scene:
    """How the run stands from one look on; what is None stays as it was."""

    status: Body | None = None
    pods: list[Body] | None = None
    events: list[Body] | None = None
    workloads: list[Body] | None = None
    log: list[str] | None = None
    """All that the pod that submits has said by now."""
    then: Callable[[], object] = lambda: None


@dataclass
class Cluster:
    """What the server holds, refuses and saw."""

    namespaces: set[str] = field(default_factory=lambda: {"shoal"})
    kinds: dict[str, set[str]] = field(default_factory=lambda: dict(KINDS))
    unknown: set[str] = field(default_factory=set)
    """Fields of a RayJob's spec that this cluster's CRD does not have yet."""
    refuses: Callable[[str, str, bool], tuple[int, str] | None] = lambda method, kind, dry: None
    """(method, kind, whether it is a dry run) -> status and message of a refusal."""
    script: list[Scene] = field(default_factory=list)
    objects: dict[tuple[str, str], Body] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, kind, name), with `dry` before the method of a dry run."""
    log: list[str] = field(default_factory=list)
    url: str = ""
    lock: Any = field(default_factory=threading.RLock)

    def kubeconfig(self, path: Path, token: str = TOKEN, namespace: str = "default") -> Path:
        user, cluster = {"name": "me", "user": {"token": token}}, {"name": "c", "cluster": {"server": self.url}}
        contexts = [{"name": "here", "context": {"cluster": "c", "user": "me", "namespace": namespace}}]
        body = {"apiVersion": "v1", "kind": "Config", "current-context": "here"}
        path.write_text(yaml.safe_dump({**body, "users": [user], "clusters": [cluster], "contexts": contexts}))
        return path

    def named(self, kind: str) -> list[str]:
        return sorted(name for of, name in self.objects if of == kind)

    def put(self, kind: str, body: Body, manager: str = "somebody") -> Body:
        """As if somebody else had made it."""
        made = deepcopy(body)
        made["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": MADE}
        made["metadata"]["managedFields"] = [
            {"manager": manager, "operation": "Apply", "fields": sorted(_leaves(body))}
        ]
        self.objects[kind, made["metadata"]["name"]] = made
        return made

    def step(self) -> None:
        """One scene on."""
        if not self.script:
            return
        scene = self.script.pop(0)
        if scene.status is not None:
            for (kind, _), body in self.objects.items():
                if kind == "rayjobs":
                    body["status"] = scene.status
        for kind in ("pods", "events", "workloads"):
            held = getattr(scene, kind)
            if held is not None:
                for key in [key for key in self.objects if key[0] == kind]:
                    del self.objects[key]
                self.objects |= {(kind, one["metadata"]["name"]): one for one in held}
        if scene.log is not None:
            self.log = scene.log
        scene.then()

    def apply(self, kind: str, name: str, body: Body, query: Body) -> tuple[int, Body | str]:
        dry = query.get("dryRun") == "All"
        if (
            query.get("fieldManager") != "shoal"
            or query.get("force") != "false"
            or query.get("fieldValidation") != "Strict"
        ):
            return 400, f"not asked as it should be: {query}"
        if body["metadata"]["name"] != name:
            return 400, "the name in the object is not that of the path"
        for one in self.unknown & body.get("spec", {}).keys():
            return 400, f'failed to create typed patch object: strict decoding error: unknown field "spec.{one}"'
        if wrong := _faults(body):
            return 422, f"{body['kind']} {name!r} is invalid: {wrong[0]}"
        was = self.objects.get((kind, name))
        if was and was.get("immutable") and was.get("data") != body.get("data"):
            return 422, f'ConfigMap "{name}" is invalid: data: Forbidden: field is immutable when `immutable` is set'
        if was and (taken := _conflicts(was, body)):
            by = taken[0][0]
            return 409, f'Apply failed with {len(taken)} conflict: conflict with "{by}": {taken[0][1]}'
        if dry:
            return 200, body
        made = self.put(kind, body, "shoal") if was is None else _merged(was, body)
        self.objects[kind, name] = made
        return (201 if was is None else 200), made

    def delete(self, kind: str, name: str) -> None:
        gone = self.objects.pop((kind, name))
        uid = gone["metadata"].get("uid")
        for key, one in list(self.objects.items()):
            owners = one["metadata"].get("ownerReferences", [])
            if key in self.objects and any(owner.get("uid") == uid for owner in owners):
                self.delete(*key)
        if kind == "rayjobs":
            for key in [key for key in self.objects if key[0] in ("pods", "events", "workloads")]:
                del self.objects[key]


def _faults(body: Body) -> list[str]:
    bare = deepcopy(body)
    for owner in bare["metadata"].pop("ownerReferences", []):
        if owner.keys() != {"apiVersion", "kind", "name", "uid"}:
            return [f"metadata.ownerReferences: {sorted(owner)}"]
    key = json.dumps(bare, sort_keys=True)
    if key not in _checked:
        _checked[key] = faults(bare)
    return _checked[key]


def _leaves(value: Any, where: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from _leaves(inside, f"{where}.{key}")
    else:
        yield where


def _at(body: Body, where: str) -> Any:
    return dict(_pairs(body)).get(where)


def _pairs(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from _pairs(inside, f"{where}.{key}")
    else:
        yield where, value


def _conflicts(was: Body, body: Body) -> list[tuple[str, str]]:
    """(manager, field) of what somebody else holds, and this would change."""
    new = dict(_pairs(body))
    held = [(one["manager"], where) for one in was["metadata"]["managedFields"] for where in one["fields"]]
    return [(by, where) for by, where in held if by != "shoal" and where in new and _at(was, where) != new[where]]


def _merged(was: Body, body: Body) -> Body:
    about = {key: was["metadata"][key] for key in ("uid", "creationTimestamp", "managedFields")}
    made = {**{key: was[key] for key in ("status",) if key in was}, **deepcopy(body)}
    made["metadata"] |= about
    return made


def _merge_patch(body: Body, change: Body) -> None:
    for key, value in change.items():
        if isinstance(value, dict):
            _merge_patch(body.setdefault(key, {}), value)
        else:
            body[key] = value


def _selected(body: Body, selector: str) -> bool:
    labels = body["metadata"].get("labels", {})
    return all(labels.get(key) == value for key, _, value in (one.partition("=") for one in selector.split(",") if one))


class _Answers(BaseHTTPRequestHandler):
    cluster: Cluster
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: the second of two would wait 40 ms for an acknowledgement

    def do_GET(self) -> None:
        self._answer()

    def do_PATCH(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.cluster.lock:
            status, body = self._decide(sent)
        if isinstance(body, str) and status != 404 and status >= 400:
            body = _status(status, body)
        kind = "text/plain" if isinstance(body, str) else "application/json"
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _decide(self, sent: bytes) -> tuple[int, Body | str]:
        cluster, url = self.cluster, urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, "Unauthorized"
        match = PATH.fullmatch(url.path)
        if match is None or match["kind"] not in cluster.kinds.get(match["group"], ()):
            return 404, "404 page not found\n"
        kind, name = match["kind"], match["name"] or ""
        dry = query.get("dryRun") == "All"
        cluster.asked.append((f"{'dry ' if dry else ''}{self.command}", kind, name))
        if refused := cluster.refuses(self.command, kind, dry):
            return refused
        if self.command == "PATCH":
            return self._patch(match["ns"], kind, name, query, json.loads(sent))
        if not name:
            found = [one for (of, _), one in cluster.objects.items() if of == kind]
            return 200, {"items": [one for one in found if _selected(one, query.get("labelSelector", ""))]}
        if self.command == "GET" and kind == "rayjobs" and (kind, name) in cluster.objects:
            cluster.step()
        if match["ns"] not in cluster.namespaces or (kind, name) not in cluster.objects:
            return 404, _status(404, f'{kind} "{name}" not found')
        if match["log"]:
            return 200, "".join(
                f"2026-11-21T21:00:{n // 1000:02}.{n % 1000:03}000000Z {x}\n" for n, x in enumerate(cluster.log)
            )
        if self.command == "DELETE":
            cluster.delete(kind, name)
            return 200, _status(200, "gone")
        return 200, cluster.objects[kind, name]

    def _patch(self, namespace: str, kind: str, name: str, query: Body, body: Body) -> tuple[int, Body | str]:
        if namespace not in self.cluster.namespaces:
            return 404, _status(404, f'namespaces "{namespace}" not found')
        if self.headers["Content-Type"] == "application/apply-patch+yaml":
            return self.cluster.apply(kind, name, body, query)
        if self.headers["Content-Type"] == "application/merge-patch+json" and (kind, name) in self.cluster.objects:
            _merge_patch(self.cluster.objects[kind, name], body)
            return 200, self.cluster.objects[kind, name]
        return 415, "the body of the request was in an unknown format"


def _status(code: int, message: str) -> Body:
    return {"kind": "Status", "apiVersion": "v1", "code": code, "message": message}


@contextmanager
def serving(cluster: Cluster) -> Iterator[Cluster]:
    handler = type("Answers", (_Answers,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
