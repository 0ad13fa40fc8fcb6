"""RayJobs of one namespace as a follower, `shoal logs` and `shoal stop` know jobs: those of a Ray dashboard (submit/).

A run's log, as `tail` gives it, is what its driver says and, as notes between, how the cluster's objects stand. Everything is
asked for again and again rather than watched: nothing is lost where a connection is cut, and one look is four requests.
"""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from shoal.errors import ClusterError, Problem, SpecError
from shoal.kube import names
from shoal.kube.names import PART_OF, Manifest
from shoal.kuberay import words
from shoal.kuberay.api import Api
from shoal.kuberay.apply import GONE_S, INSTANCE, clear
from shoal.kuberay.log import Transcript
from shoal.spec.cluster import ClusterProfile
from shoal.submit.dashboard import Job, Unanswered
from shoal.submit.submission import RUN, SWEEP

POLL_S = 2.0
OPERATOR_S = 60.0
"""A RayJob that no operator has looked at for so long is looked at by none."""
AWAY_S = 120.0
"""How long an API server may be out of sight."""
DRAIN_S = 10.0
"""How long the pod that submits may go on talking when the RayJob has ended."""
MARGIN_S = 10
"""Seconds of the log that are read twice, and told once."""
SUBMITTER = "ray-job-submitter"
EXIT = re.compile(r"exit code (-?\d+)")
GAVE_UP = 5
"""Exit status of a run that did not get its pods: that of ClusterError."""


@dataclass
class RayJobs:
    api: Api
    wait_s: float
    """How long a run's pods may take, not counting its time in a queue."""
    ends: dict[str, Job] = field(default_factory=dict)
    """RayJobs that ended otherwise than by their own status: deleted, or given up on."""
    lost: list[str] = field(default_factory=list)
    """Those that were given up on before a driver was there."""
    _scripts: dict[str, Transcript] = field(default_factory=dict)
    _read_at: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, profile: ClusterProfile) -> "RayJobs":
        spec = profile.kubernetes
        if spec is None:
            raise SpecError(
                Problem(
                    "kubernetes", "is missing, and kind: kuberay is made of it", "copy it from cluster/kuberay.yaml"
                )
            )
        return cls(Api(spec.namespace, spec.context), profile.wait_s)

    @property
    def address(self) -> str:
        return f"namespace {self.api.namespace} of {self.api.server}"

    def jobs(self) -> list[Job]:
        """All runs that have a RayJob, oldest first."""
        found = self.api.list("RayJob", labelSelector=",".join(f"{key}={value}" for key, value in PART_OF.items()))
        return sorted(map(job_of, found), key=lambda one: one.start)

    def job(self, id: str) -> Job | None:
        if id in self.ends:
            return self.ends[id]
        found = self.api.get("RayJob", id)
        return None if found is None else job_of(found)

    def stop(self, id: str) -> None:
        """Delete it: its pods' hooks ask the driver to save, for as long as their grace period is. Waits for them, a while."""
        if found := self.job(id):
            self.ends[id] = _ended(found, "STOPPED", 143, "")
        clear(self.api, id)
        deadline = time.monotonic() + GONE_S
        while self._maybe("Pod", labelSelector=f"{INSTANCE}={id}") and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def hold(self, id: str) -> None:
        """Whoever leaves now shall not be started again in another cluster."""
        self.api.merge("RayJob", id, {"spec": {"backoffLimit": 0}})

    def log(self, id: str) -> str:
        """What the driver has said so far; empty when its pods are gone."""
        pod = _speaker(self.api.list("Pod", labelSelector=f"{INSTANCE}={id}"))
        if pod is None:
            return ""
        return "".join(f"{line}\n" for line in Transcript().take(self.api.log(_name(pod), SUBMITTER, None)))

    def tail(self, id: str) -> Iterator[str]:
        """Lines of the log as they come, until the run has ended. Raises: ClusterError."""
        told: set[str] = set()
        began = pending = answered = time.monotonic()
        while True:
            try:
                view = self._look(id)
            except Unanswered as error:
                if time.monotonic() - answered > AWAY_S:
                    raise ClusterError(*error.problems) from error  # it has been waited for already
                time.sleep(POLL_S)
                continue
            answered = now = time.monotonic()
            if view is None:
                yield from self._tell_deleted(id)
                return
            said = words.sentences(view)
            for sentence in [*said, *filter(None, [words.counts(view)])]:
                if sentence not in told:
                    told.add(sentence)
                    yield _event("note", sentence)
            yield from self._driver(view)
            if view.state in words.ENDED:
                yield from self._last_words(view)
                return
            if view.is_held or view.state not in words.BEFORE:
                pending = now
            if not view.state and not view.is_held and now - began > OPERATOR_S:
                yield self._give_up(view, _no_operator(view, now - began))
                return
            if now - pending > self.wait_s:
                yield self._give_up(view, _no_pods(view, said, self.wait_s))
                return
            time.sleep(POLL_S)

    def _look(self, id: str) -> words.View | None:
        job = self.api.get("RayJob", id)
        if job is None:
            return None
        view = words.View(job, self._maybe("Pod", labelSelector=f"{INSTANCE}={id}"))
        if view.state not in words.BEFORE:
            return view
        held = words.of_one_run(self._maybe("Workload"), id) if view.queue and view.is_held else []
        return words.View(job, view.pods, self._maybe("Event"), held)

    def _maybe(self, kind: str, **query: str) -> list[Manifest]:
        """What only explains: nothing where it may not be seen, or is not known."""
        try:
            return self.api.list(kind, **query)
        except Unanswered:
            raise
        except ClusterError:
            return []

    def _driver(self, view: words.View) -> Iterator[str]:
        """What the driver has said since the last look."""
        pod = _speaker(view.pods)
        if pod is None:
            return
        script = self._scripts.setdefault(f"{view.name} {view.status.get('jobId', '')}", Transcript())
        script.begin(pod["metadata"]["uid"])
        at = self._read_at.get(script.pod)
        now = time.monotonic()
        since = None if at is None else int(now - at) + MARGIN_S
        for line in script.take(self.api.log(_name(pod), SUBMITTER, since)):
            yield f"{line}\n"
        self._read_at[script.pod] = now

    def _last_words(self, view: words.View) -> Iterator[str]:
        """The operator may know of the end before the pod has shown all of it."""
        deadline = time.monotonic() + DRAIN_S
        while (pod := _speaker(view.pods)) and pod["status"].get("phase") == "Running" and time.monotonic() < deadline:
            time.sleep(POLL_S)
            again = self._look(view.name)
            if again is None:
                return
            view = again
            yield from self._driver(view)

    def _tell_deleted(self, id: str) -> Iterator[str]:
        if id not in self.ends:
            self.ends[id] = Job(id, "FAILED", "", 1, {}, 0.0)
            yield _event("error", f"error: RayJob {id}: was deleted while it ran; a driver that was there has saved")

    def _give_up(self, view: words.View, problem: Problem) -> str:
        self.lost.append(view.name)
        self.ends[view.name] = _ended(job_of(view.job), "FAILED", GAVE_UP, "")
        return _event("error", f"error: {problem}")


def job_of(body: Manifest) -> Job:
    """A RayJob in the words of Ray's own jobs."""
    about, status = body["metadata"], body.get("status") or {}
    state, ran, message = (status.get(name) or "" for name in ("jobDeploymentStatus", "jobStatus", "message"))
    if state not in words.ENDED:
        said = "RUNNING" if state == "Running" else "PENDING"
    else:
        said = "SUCCEEDED" if state == "Complete" and ran in ("SUCCEEDED", "") else "FAILED"
        said = "STOPPED" if ran == "STOPPED" else said
    code = EXIT.search(message)
    if reason := status.get("reason"):
        message = f"{reason}: {message}"
    made = datetime.fromisoformat(about["creationTimestamp"]).timestamp()
    notes = about.get("annotations", {})
    said_of = {theirs: notes[ours] for theirs, ours in ((RUN, names.RUN_ID), (SWEEP, names.SWEEP)) if ours in notes}
    return Job(
        id=about["name"],
        status=said,
        message=message,
        exit_code=int(code[1]) if code and said == "FAILED" else 0 if said == "SUCCEEDED" else None,
        metadata=said_of,
        start=made,
    )


def _ended(job: Job, status: str, code: int, message: str) -> Job:
    return Job(job.id, status, message, code, job.metadata, job.start)


def _no_operator(view: words.View, seconds: float) -> Problem:
    what = f"no operator has looked at RayJob {view.name} for {seconds:.0f} s"
    fix = f"is KubeRay 1.6 or later up (kubectl -n kuberay-system get pods), and does it watch namespace {view.namespace}?"
    return Problem("kubernetes", what, fix)


def _no_pods(view: words.View, said: list[str], wait_s: float) -> Problem:
    waited = "; ".join(said) or words.counts(view) or f"RayJob {view.name} is {view.state or 'new'}"
    return Problem("wait_s", f"gave up after {wait_s:g} s, waiting for this: {waited}", "raise wait_s to wait longer")


def _speaker(pods: list[Manifest]) -> Manifest | None:
    """The newest pod that submits and has said something, perhaps."""
    ours = [
        pod
        for pod in pods
        if pod["metadata"].get("labels", {}).get(words.COMPONENT) == "submitter"
        and (pod.get("status") or {}).get("phase") in ("Running", "Succeeded", "Failed")
    ]
    return max(ours, key=lambda pod: pod["metadata"]["creationTimestamp"], default=None)


def _name(pod: Manifest) -> str:
    return pod["metadata"]["name"]


def _event(kind: str, message: str) -> str:
    event: dict[str, Any] = {"kind": kind, "message": message}
    return json.dumps(event) + "\n"
