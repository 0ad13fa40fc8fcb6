"""How a RayJob and its pods stand, in sentences: what holds them up, and what to do about it. Pure.

Everything is read from status fields and events that Kubernetes, KubeRay and Kueue document; what is not known here is told
in the cluster's own words.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from shoal.kube.names import Manifest
from shoal.kuberay.refusals import MOST, QUOTA, quota

ENDED = ("Complete", "Failed", "ValidationFailed")
BEFORE = ("", "Initializing", "Waiting", "Suspended", "Suspending", "Retrying")
"""States of a RayJob whose driver is not there yet."""
COMPONENT = "app.kubernetes.io/component"
QUEUE = "kueue.x-k8s.io/queue-name"
PULL = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
NODES = re.compile(r"\d+/(?P<nodes>\d+) nodes are available: (?P<why>.+?)\.?( preemption: .*| No preemption.*)?$")
MISSING_SECRET = re.compile(r'secret "(?P<name>[^"]+)" not found|couldn\'t find key (?P<key>\S+) in Secret (?P<of>\S+)')
QUIET = ("Unhealthy", "BackOff", "Failed", "FailedScheduling", "Killing", "FailedPreStopHook", "NodeNotReady")
"""Reasons of events that the pods' own states tell better, or that come and go while a pod starts."""


@dataclass(frozen=True)
class View:
    """One look at everything that belongs to a run."""

    job: Manifest
    pods: list[Manifest] = field(default_factory=list)
    events: list[Manifest] = field(default_factory=list)
    workloads: list[Manifest] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.job["metadata"]["name"]

    @property
    def namespace(self) -> str:
        return self.job["metadata"]["namespace"]

    @property
    def status(self) -> Manifest:
        return self.job.get("status") or {}

    @property
    def state(self) -> str:
        return self.status.get("jobDeploymentStatus") or ""

    @property
    def queue(self) -> str | None:
        return self.job["metadata"].get("labels", {}).get(QUEUE)

    @property
    def is_held(self) -> bool:
        """Whether a queue has not let it start: no pod is asked for."""
        return self.state in ("Suspended", "Suspending") or (not self.state and self.job["spec"].get("suspend", False))


def sentences(view: View) -> list[str]:
    """What there is to say now, each once; empty when all is well."""
    if view.state in ENDED:
        return []
    return list(dict.fromkeys([*_queue(view), *_pods(view), *_events(view), *_retries(view)]))


def counts(view: View) -> str:
    """The pods in one line, such as `pods: head runs, 1 of 2 workers run`; empty without any."""
    said = []
    for component in ("head", "worker"):
        phases = [_phase(pod) for pod in view.pods if _component(pod) == component]
        if component == "head" and phases:
            said.append(f"head {'runs' if phases[0] == 'Running' else phases[0].lower()}")
        elif phases:
            said.append(f"{phases.count('Running')} of {len(phases)} workers run")
    return f"pods: {', '.join(said)}" if said else ""


def _queue(view: View) -> Iterator[str]:
    if not view.is_held:
        return
    if view.queue is None:
        yield "suspended, and no queue holds it: spec.suspend was set by hand"
        return
    why = next((said for one in view.workloads if (said := _not_admitted(one))), "")
    yield f"Kueue has not admitted it (queue {view.queue})" + (f": {why}" if why else "")


def _not_admitted(workload: Manifest) -> str:
    for condition in (workload.get("status") or {}).get("conditions", []):
        if condition["type"] in ("QuotaReserved", "Admitted") and condition["status"] == "False":
            return _short(condition.get("message", ""))
    return ""


def _pods(view: View) -> Iterator[str]:
    """Alike troubles of alike pods are told together."""
    found = Counter((_component(pod), said) for pod in view.pods for said in _trouble(pod, view.namespace))
    for (component, said), count in found.items():
        who = f"{count} pods ({component})" if count > 1 else f"the {component}'s pod"
        yield f"{who}: {said}"


def _trouble(pod: Manifest, namespace: str) -> Iterator[str]:
    status = pod.get("status") or {}
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield _unscheduled(condition)
    if status.get("reason") in ("Evicted", "Preempting", "NodeLost"):
        yield f"{status['reason'].lower()}: {_short(status.get('message', ''))}"
    for one in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        state: dict[str, Any] = one.get("state") or {}
        last: dict[str, Any] = (one.get("lastState") or {}).get("terminated") or state.get("terminated") or {}
        if waiting := state.get("waiting"):
            yield from _waiting(one, waiting, last, namespace)
        elif last.get("reason") == "OOMKilled":
            yield f"{one['name']} took more memory than its limit and was killed; raise memory_gib"


def _unscheduled(condition: Manifest) -> str:
    message = " ".join(condition.get("message", "").split())
    if condition.get("reason") == "SchedulingGated":
        return "waits for its queue (scheduling gated)"
    if found := NODES.search(message):
        return f"no node for it, of {found['nodes']}: {_short(found['why'])}"
    return f"no node for it: {_short(message)}"


def _waiting(one: Manifest, waiting: Manifest, last: Manifest, namespace: str) -> Iterator[str]:
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in PULL:
        fix = "look at kubernetes.image and image_pull_secrets"
        yield f"the image {one['image']} cannot be pulled; {fix} ({_short(message or reason)})"
    elif reason == "CreateContainerConfigError" and (found := MISSING_SECRET.search(message)):
        what = f"the Secret {found['name']} is missing" if found["name"] else f"a Secret has no key {found['key']}"
        yield f"{what} in namespace {namespace}; kubernetes.secret_env names it"
    elif reason == "CrashLoopBackOff":
        why = f"status {last.get('exitCode')}, {last.get('reason', 'Error')}" if last else _short(message)
        yield f"{one['name']} ends again and again ({why})"
    elif reason not in ("ContainerCreating", "PodInitializing", ""):
        yield f"{one['name']}: {reason}: {_short(message)}"


def _events(view: View) -> Iterator[str]:
    """Warnings about what belongs to the run: of the job, its clusters, its pods."""
    live = {pod["metadata"]["name"] for pod in view.pods}
    for event in sorted(view.events, key=_when):
        about = event.get("involvedObject") or {}
        if event.get("type") != "Warning" or not (about.get("name") in live or _is_ours(about, view.name)):
            continue
        if _when(event) < view.job["metadata"]["creationTimestamp"]:
            continue  # of an earlier try by the same name
        message = " ".join(event.get("message", "").split())
        if found := QUOTA.search(message):
            yield quota(view.namespace, found)
        elif event.get("reason") not in QUIET:
            yield f"{about.get('kind')} {about.get('name')}: {event.get('reason')}: {_short(message)}"


def _retries(view: View) -> Iterator[str]:
    failed = view.status.get("failed") or 0
    if failed:
        why = _last_line(view.status.get("message") or "")
        yield f"try {failed} failed, the operator starts another cluster" + (f": {why}" if why else "")


def _is_ours(about: Manifest, job: str) -> bool:
    """The RayJob, the Job that submits it, or a cluster of it: not those of a run whose name merely begins so."""
    name = about.get("name", "")
    return name == job or (about.get("kind") == "RayCluster" and bool(re.fullmatch(rf"{job}-[a-z0-9]{{5}}", name)))


def _when(event: Manifest) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def _component(pod: Manifest) -> str:
    return pod["metadata"].get("labels", {}).get(COMPONENT, "other")


def _phase(pod: Manifest) -> str:
    if pod["metadata"].get("deletionTimestamp"):
        return "leaves"
    return (pod.get("status") or {}).get("phase", "Pending")


def _last_line(text: str) -> str:
    return _short(next((line for line in reversed(text.splitlines()) if line.strip()), ""))


def _short(text: str) -> str:
    return " ".join(text.split())[:MOST].rstrip(".")


def of_one_run(workloads: Iterable[Manifest], job: str) -> list[Manifest]:
    """Kueue's workloads of that RayJob."""
    return [
        one
        for one in workloads
        if any(o["kind"] == "RayJob" and o["name"] == job for o in one["metadata"].get("ownerReferences", []))
    ]
