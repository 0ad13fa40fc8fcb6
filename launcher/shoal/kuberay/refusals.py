"""What an API server answered, as one sentence with what to do. Pure."""

import json
import re
from dataclasses import dataclass
from typing import Any

from shoal.errors import Problem

QUOTA = re.compile(
    r"exceeded quota: (?P<name>[^,]+), requested: (?P<asked>.+?), used: (?P<used>.+?), limited: (?P<most>.+)"
)
UNKNOWN_FIELD = re.compile(r'unknown field "(?P<strict>[^"]+)"|(?P<typed>\.[\w.\[\]="]+): field not declared in schema')
CONFLICT = re.compile(r'conflicts? with "(?P<manager>[^"]+)"')
ROLE = "whoever runs the cluster binds you to a role such as that of k8s/base/submitters.yaml"
INSTALL = "install the KubeRay operator, 1.6 or later: k8s/README.md, once per cluster"
AWAY = (429, 502, 503, 504)
"""Statuses of a server that will answer later."""
MOST = 400
"""Characters of somebody else's message that are told."""


@dataclass(frozen=True)
class Answer:
    """Anything but yes."""

    status: int
    text: str
    server: str
    namespace: str
    what: str
    """Kind and name of what was asked for, such as `RayJob a-run`."""

    @property
    def said(self) -> dict[str, Any]:
        """The Status object, which the server itself answers with; empty when somebody else did."""
        try:
            found = json.loads(self.text)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def message(self) -> str:
        return " ".join(str(self.said.get("message") or self.text).split())[:MOST]

    @property
    def is_missing_object(self) -> bool:
        """Whether the server knows such things, and this one is not there."""
        return self.status == 404 and self.said.get("kind") == "Status" and not self.is_missing_namespace

    @property
    def is_missing_namespace(self) -> bool:
        return self.status == 404 and self.message.startswith("namespaces ")


def refusal(answer: Answer) -> Problem:
    message = answer.message
    if answer.status == 401:
        fix = "log in again, or name another context in kubernetes.context; `kubectl auth whoami` tells who you are"
        return Problem("kubernetes", f"{answer.server} does not accept your credentials (Unauthorized)", fix)
    if answer.status == 403:
        return _forbidden(answer)
    if answer.is_missing_namespace:
        fix = "make it (`kubectl apply -k k8s/base` makes shoal), or name another"
        return Problem("kubernetes.namespace", f"{answer.namespace} is not there on {answer.server}", fix)
    if answer.status == 404 and not answer.said:
        if answer.what.startswith("RayJob"):
            what = f"{answer.server} knows no RayJob (ray.io/v1): its KubeRay is absent, or older than 1.0"
            return Problem("kubernetes", what, INSTALL)
        return Problem(
            "kubernetes", f"{answer.server} knows nothing like {answer.what}", "use Kubernetes 1.30 or later"
        )
    if found := UNKNOWN_FIELD.search(message):
        field = (found["strict"] or found["typed"]).lstrip(".")
        what = f"the cluster's KubeRay is too old: its {answer.what.split()[0]} has no {field}"
        return Problem("kubernetes", what, "install 1.6 or later, its CRDs too: helm does not upgrade those by itself")
    if answer.status == 409 and (found := CONFLICT.search(message)):
        fix = "take it away (kubectl delete), or give the run another id with --run-id"
        return Problem(answer.what, f"{found['manager']} has made it, and holds what would be changed: {message}", fix)
    if answer.status in AWAY:
        return Problem(
            "kubernetes", f"{answer.server} cannot answer just now ({answer.status}): {message}", "try again"
        )
    return Problem(answer.what, f"{answer.server} refuses it ({answer.status}): {message}", "")


def _forbidden(answer: Answer) -> Problem:
    message = answer.message
    if found := QUOTA.search(message):
        return Problem("kubernetes.namespace", quota(answer.namespace, found), "wait, or have the quota raised")
    if " cannot " in message:
        who = message.partition("is forbidden: ")[2] or message
        return Problem("kubernetes.namespace", f"{answer.namespace}: {who}", ROLE)
    return Problem(answer.what, f"the cluster's rules refuse it: {message}", "ask whoever runs the cluster")


def quota(namespace: str, found: "re.Match[str]") -> str:
    said = f"asked for {found['asked']}, used {found['used']}, of {found['most']}"
    return f"the quota {found['name']} of {namespace} is used up: {said}"
