"""Kubernetes' API server through its official client: the one module that imports it. Objects are as JSON has them."""

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from shoal.errors import ClusterError, Problem
from shoal.kube.names import Manifest
from shoal.kuberay.refusals import AWAY, Answer, refusal
from shoal.submit.dashboard import Unanswered

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

MANAGER = "shoal"
"""Who holds the fields of what is applied, in Kubernetes' own books."""
TIMEOUT_S = (10.0, 30.0)
"""To connect, and to answer."""
CORE = "/api/v1"
PLACES = {
    "ServiceAccount": (CORE, "serviceaccounts"),
    "ConfigMap": (CORE, "configmaps"),
    "Pod": (CORE, "pods"),
    "Event": (CORE, "events"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "RayJob": ("/apis/ray.io/v1", "rayjobs"),
    "Workload": ("/apis/kueue.x-k8s.io/v1beta2", "workloads"),
}
"""Kind -> its group and version, and its name in a path."""
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"


@dataclass
class Api:
    """One namespace of one cluster, as whoever asks is known there."""

    namespace: str
    context: str | None = None
    """Of the kubeconfig; None: the current one, and without a kubeconfig the pod's own account."""
    _client: "ApiClient | None" = field(default=None, repr=False)

    @property
    def server(self) -> str:
        return self.client.configuration.host

    @property
    def client(self) -> "ApiClient":
        if self._client is None:
            self._client = connect(self.context)
        return self._client

    def get(self, kind: str, name: str) -> Manifest | None:
        """None when it is not there. Raises: ClusterError."""
        answer = self._ask("GET", kind, name)
        if isinstance(answer, Answer):
            if answer.is_missing_object:
                return None
            raise _error(answer)
        return json.loads(answer)

    def list(self, kind: str, **query: str) -> "list[Manifest]":
        answer = self._ask("GET", kind, "", query)
        if isinstance(answer, Answer):
            raise _error(answer)
        return json.loads(answer)["items"]

    def apply(self, manifest: Manifest, dry_run: bool = False) -> Manifest:
        """Server-side apply that takes no field from anybody else, and no field that the server does not know."""
        query = {"fieldManager": MANAGER, "force": "false", "fieldValidation": "Strict"}
        query |= {"dryRun": "All"} if dry_run else {}
        return self._patch(manifest["kind"], manifest["metadata"]["name"], APPLY, query, manifest)

    def merge(self, kind: str, name: str, change: Manifest) -> Manifest:
        return self._patch(kind, name, MERGE, {"fieldManager": MANAGER}, change)

    def delete(self, kind: str, name: str) -> bool:
        """Whether it was there. What it owns goes after it."""
        answer = self._ask("DELETE", kind, name, {"propagationPolicy": "Background"})
        if isinstance(answer, Answer) and not answer.is_missing_object:
            raise _error(answer)
        return not isinstance(answer, Answer)

    def log(self, pod: str, container: str, since_s: int | None) -> str:
        """A container's words, each line with its time; empty while there are none, or none any more."""
        query = {"container": container, "timestamps": "true"} | ({"sinceSeconds": str(since_s)} if since_s else {})
        answer = self._ask("GET", "Pod", f"{pod}/log", query)
        if isinstance(answer, Answer):
            if answer.is_missing_object or answer.status == 400:  # not started yet
                return ""
            raise _error(answer)
        return answer

    def _patch(self, kind: str, name: str, form: str, query: dict[str, str], body: Manifest) -> Manifest:
        answer = self._ask("PATCH", kind, name, query, body, form)
        if isinstance(answer, Answer):
            raise _error(answer)
        return json.loads(answer)

    def _ask(
        self, method: str, kind: str, name: str, query: Mapping[str, str] | None = None,
        body: Manifest | None = None, form: str = "application/json",
    ) -> str | Answer:  # fmt: skip
        """The answer's text, or the refusal. Raises: Unanswered when nobody answers, at least just now."""
        import urllib3.exceptions
        from kubernetes.client.exceptions import ApiException

        group, plural = PLACES[kind]
        path = f"{group}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")
        headers = {"Accept": "*/*" if name.endswith("/log") else "application/json", "Content-Type": form}
        client = self.client
        request = client.param_serialize(
            method, path, query_params=list((query or {}).items()), header_params=headers, body=body,
            auth_settings=["BearerToken"],
        )  # fmt: skip
        try:
            response = client.call_api(*request, _request_timeout=TIMEOUT_S)
            text = (response.read() or b"").decode(errors="replace")
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            raise Unanswered(_away(self.server, error)) from error
        if 200 <= response.status < 300:
            return text
        return Answer(response.status, text, self.server, self.namespace, f"{kind} {name}".strip())


def connect(context: str | None) -> "ApiClient":
    """As kubectl finds its cluster: KUBECONFIG, ~/.kube/config, and in a pod the pod's own account. Raises: ClusterError."""
    try:
        import urllib3
        from kubernetes import client, config
    except ImportError as error:
        what = f"kuberay needs Kubernetes' client, and {error.name} is not installed"
        raise ClusterError(Problem("kind", what, "pip install 'shoal[kubernetes]'")) from None
    settings = client.Configuration()
    settings.retries = urllib3.Retry(0)  # who watches asks again; who applies is told
    where = os.environ.get("KUBECONFIG") or "~/.kube/config"  # read here: the client reads it once, when it is imported
    files = [one for one in where.split(os.pathsep) if Path(one).expanduser().exists()]
    logged = _Logged()
    logging.getLogger().addHandler(logged)
    try:
        if files or context:
            config.load_kube_config(where, context, settings, persist_config=False)
        else:
            config.load_incluster_config(client_configuration=settings)
    except (
        yaml.YAMLError,
        TypeError,
        AttributeError,
        KeyError,
        ValueError,
        OSError,
    ) as error:  # of a file that is none
        said = " ".join(str(error).split())[:200]
        fix = "mend it, or set KUBECONFIG to another; `kubectl config view` reads it as well"
        raise ClusterError(Problem("kubernetes", f"{where} is no kubeconfig that can be read: {said}", fix)) from None
    except config.ConfigException as error:
        field = "kubernetes.context" if context else "kubernetes"
        fix = "set KUBECONFIG, or name one of `kubectl config get-contexts` in kubernetes.context"
        said = " ".join(str(error).split())[:300] if files or context else "no kubeconfig, and this is no pod"
        raise ClusterError(Problem(field, f"no cluster is known here: {said}", fix)) from None
    finally:
        logging.getLogger().removeHandler(logged)
    if logged.said:
        what = f"the kubeconfig's command for credentials failed: {' '.join(logged.said[0].split())[:300]}"
        raise ClusterError(Problem("kubernetes", what, "install it or log in; `kubectl auth whoami` runs it too"))
    return client.ApiClient(settings)


class _Logged(logging.Handler):
    """What the client logs and goes on, where kubectl gives up: a command for credentials that failed."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def _error(answer: Answer) -> ClusterError:
    kind = Unanswered if answer.status in AWAY else ClusterError
    return kind(refusal(answer))


def _away(server: str, error: Exception) -> Problem:
    reason: Any = getattr(error, "reason", None) or error
    said = " ".join(str(getattr(reason, "strerror", None) or reason).split())
    said = re.sub(r".*Failed to establish a new connection: |\[Errno -?\d+\] |.*object at 0x\w+>: ", "", said)
    if "CERTIFICATE" in said.upper() or "SSLError" in said:
        fix = "the kubeconfig's certificate-authority must be that of this server"
        return Problem("kubernetes", f"{server} cannot be trusted: {said[:200]}", fix)
    fix = "is it the right context (kubernetes.context), and does a VPN or a tunnel lead there?"
    return Problem("kubernetes", f"the API server {server} does not answer: {said[:200].lower()}", fix)
