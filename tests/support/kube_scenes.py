"""Scenes of a run on Kubernetes, as the API server shows them: pods, events, a RayJob's states, a driver's words."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kube_api import MADE, Body, Scene

from shoal.record.ledger import PARTS

LATER = "2026-11-21T21:00:05Z"
Tell = Callable[..., tuple[int, str, str]]
"""A command line's words and changes of the profile -> (status, stdout, stderr)."""


def pod(run: str, component: str, phase: str, number: int = 0, waiting: Body | None = None, **status: Any) -> Body:
    """One of a run's pods; `waiting`: why its container does not start."""
    labels = {
        "app.kubernetes.io/instance": run, "app.kubernetes.io/part-of": "shoal", "app.kubernetes.io/component": component,
    }  # fmt: skip
    about = {
        "name": f"{run}-x-{component}-{number}",
        "uid": f"{component}-{number}",
        "labels": labels,
        "creationTimestamp": MADE,
    }
    container = {
        "name": "ray",
        "image": "registry.example.com/shoal:1",
        "state": {"waiting": waiting} if waiting else {},
    }
    return {"metadata": about, "status": {"phase": phase, "containerStatuses": [container], **status}}


def unschedulable(why: str) -> Body:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}
    return {"conditions": [condition]}


def event(run: str, reason: str, message: str, kind: str = "RayCluster", when: str = LATER) -> Body:
    about = {"kind": kind, "name": f"{run}-x7k2p", "namespace": "shoal"}
    return {
        "metadata": {"name": f"{reason}.{uuid.uuid4()}"}, "type": "Warning", "reason": reason, "message": message,
        "involvedObject": about, "lastTimestamp": when,
    }  # fmt: skip


JOB = Path(__file__).parents[2] / "jobs" / "sft-lora.yaml"
RUN = "a-run"
NEW: dict[str, Any] = {}
STARTING = {"jobDeploymentStatus": "Initializing", "jobId": "a-run-1"}
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "jobId": "a-run-1"}
COMPLETE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", "jobId": "a-run-1", "message": "Job finished"}
FAILED = {
    "jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "jobId": "a-run-1", "reason": "AppFailed",
    "message": "Job entrypoint command failed with exit code 8, last available logs:\nerror: loss: is not a number",
}  # fmt: skip
SPEAKS = [pod(RUN, "head", "Running"), pod(RUN, "worker", "Running"), pod(RUN, "submitter", "Running")]
SPOKEN = [*SPEAKS[:2], pod(RUN, "submitter", "Succeeded")]
SUBMITTED = "2026-11-21 21:00:00,000\tINFO cli.py:41 -- Job submission server address: http://a-run-x-head-svc:8265"


def line(kind: str, **fields: Any) -> str:
    return json.dumps({"kind": kind, **fields})


RESULT = dict.fromkeys(["step", "steps", "tokens", "seconds", "base_loss", "loss", "train_loss"], 1) | {
    "state": "finished", "answers": [], "export": None, "gate": None,
}  # fmt: skip
BOOK = {"parts": {part: {"seconds": 1.0} for part in PARTS}, "attempts": 1, "steps": 6, "repeated_steps": 0}
OUTCOME = line("outcome", run=RUN, folder="s3://shoal/runs/a-run", result=RESULT, ledger=BOOK)
FIRST = [SUBMITTED, line("note", message="the driver is up")]
GOOD = [
    Scene(NEW),
    Scene(STARTING, pods=[pod(RUN, "head", "Pending"), pod(RUN, "worker", "Pending")]),
    Scene(RUNNING, pods=SPEAKS, log=FIRST),
    Scene(log=[*FIRST, "somebody's words"]),
    Scene(COMPLETE, pods=SPOKEN, log=[*FIRST, "somebody's words", OUTCOME]),
]  # fmt: skip


def run(tell: Tell, *words: str, verb: str = "run", **changes: Any) -> tuple[int, str, str]:
    return tell(verb, str(JOB), "--run-id", RUN, *words, **changes)
