"""The verdict on a run, from rows as workers, Ray's controller and drivers write them."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
from plans import small_plan

from shoal import lease
from shoal.doctor.causes import BROAD, CAUSES, TOLD
from shoal.doctor.evidence import evidence
from shoal.doctor.verdict import Verdict, verdict
from shoal.record.rows import Row, line
from shoal.runs import RunFolder
from shoal.storage import Storage, join
from shoal.train.manifest import Manifest

RUN = "tiny-20260101-000000-abcd"


def row(second: float, kind: str, /, attempt: int = 1, **fields: Any) -> Row:
    time = datetime.fromtimestamp(1_800_000_000 + second, UTC).isoformat(timespec="milliseconds")
    return {"time": time, "attempt": attempt, "kind": kind} | fields


DRIVER = row(0, "driver", 0, host="laptop", pid=4711)
LOADING = row(5, "phase", phase="loading")
STEPS = [row(10 + number, "step", step=number, loss=3.0 - number / 10, seconds=1.0) for number in range(1, 8)]


def failure(second: float, cause: str, message: str, *, final: bool = True, **fields: Any) -> Row:
    told = {"rank": 1, "ranks": [1], "node": "host-b", "step": 7, "message": message, "final": final}
    return row(second, "failure", cause=cause, **(told | fields))


def ended(
    second: float, state: str = "failed", error: str = "TrainingError", message: str = "training: it died"
) -> Row:
    return row(second, "ended", state=state, error=error, message=message)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(Storage(), str(tmp_path / RUN))


def leave(folder: RunFolder, events: list[Row], steps: list[Row] = STEPS, checkpoint: int | None = 5) -> Verdict:
    """What is said of a run that left these behind."""
    storage = folder.storage
    plan = small_plan(Path(folder.url).parent, run_id=folder.id)
    storage.write(folder.plan, plan.model_dump_json().encode())
    storage.write(folder.events, "".join(map(line, events)).encode())
    storage.write(folder.metrics, "".join(map(line, steps)).encode())
    if checkpoint is not None:
        manifest = Manifest(
            step=checkpoint, epoch=0, batch=checkpoint, tokens=1, seconds=1.0, run_id=folder.id, trajectory_digest="t",
            trajectory={}, parts=(), created="", versions={},
        )  # fmt: skip
        storage.write(folder.manifest(checkpoint), manifest.model_dump_json().encode())
    return verdict(evidence(folder), " --on here.yaml")


def dead_holder(folder: RunFolder, **changes: Any) -> None:
    """The lease of a driver on this machine whose process is gone."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    body = {"host": "laptop", "machine": lease._machine(), "pid": gone.pid, "token": "t", "beat": time.time()} | changes
    folder.storage.write(join(folder.url, "lease", "000001.json"), json.dumps(body).encode())


FAILED = {
    "a worker killed too often": (
        [failure(20, "process died", "worker 1 died on host-b after step 7"), ended(21)],
        "worker-died",
        "failed: a worker's process died (rank 1, node host-b, after step 7)",
    ),
    "the kernel's killer": (
        [failure(20, "out of memory", "worker 1 died (98% of its memory was taken) on host-b after step 7"), ended(21)],
        "out-of-memory",
        "failed: memory did not suffice (rank 1, node host-b, after step 7)",
    ),
    "a node off": (
        [failure(20, "node gone", "worker 1 died with its node"), ended(21)],
        "node-gone",
        "a node went away",
    ),
    "a rank that hangs": (
        [failure(80, "hung", "worker 1 hangs on host-b after step 7 (training): no progress for 60 s"), ended(81)],
        "hung",
        "a worker stood still (rank 1, node host-b",
    ),
    "preempted too often": (
        [failure(20, "preempted", "worker 1 was asked to leave by its node, which is drained"), ended(21)],
        "preempted",
        "its machines were taken away too often",
    ),
    "the store away, as a worker says": (
        [
            row(20, "storage", url="s3://b/x", what="no connection", operation="put", attempt=3, wait_s=0.0),
            row(80, "error", message="s3://b/x: http://10.0.0.9 cannot be reached; check storage.s3.endpoint_url"),
            ended(81, error="StorageError", message="s3://b/x: http://10.0.0.9 cannot be reached"),
        ],
        "store-away",
        "the object store did not answer",
    ),
    "the store away, as Ray's controller says": (
        [failure(20, "storage", "worker 1 stopped: s3://b/x: http://10.0.0.9 cannot be reached"), ended(21)],
        "store-away",
        "the object store did not answer",
    ),
    "a disk full, as Ray's controller says": (
        [failure(20, "storage", "worker 1 stopped: /cache/x: the disk is full"), ended(21)],
        "disk-full",
        "a disk is full",
    ),
    "a loss that is no number": (
        [
            row(
                20, "error", message="step 8: the loss of the global batch is nan; the weights were not touched; lower"
            ),
            failure(20, "user error", "worker 0 stopped: step 8: the loss of the global batch is nan", rank=0),
            ended(21, message="step 8: the loss of the global batch is nan"),
        ],
        "not-a-number",
        "the loss or its gradient was no number",
    ),
    "CUDA out of memory": (
        [row(20, "error", message="memory: CUDA out of memory. Tried to allocate 2.00 GiB; lower"), ended(21)],
        "out-of-memory",
        "memory did not suffice",
    ),
    "rejected rows": (
        [ended(21, error="DataError", message="data.train: 5 of 65 rows are rejected")],
        "data-refused",
        "the data cannot be trained on",
    ),
    "a model that is not there": (
        [
            row(20, "error", message="model.base: ./x: no such folder"),
            ended(21, error="ModelError", message="model.base"),
        ],
        "user-error",
        "what the job or the profile asks cannot be had",
    ),
    "a bug": ([ended(21, error="KeyError", message="'loss'")], "bug", "Shoal itself failed"),
    "no room on the cluster": (
        [ended(21, error="ClusterError", message="workers: no room for 600 s for 2 workers of 1 CPU each")],
        "no-room",
        "the cluster had no room",
    ),
    "anything else": ([ended(21, error="TrainingError", message="training: odd")], "failed", "training failed"),
}


@pytest.mark.parametrize("name", FAILED)
def test_a_failed_run_is_told_by_its_class_of_cause(name: str, folder: RunFolder) -> None:
    events, kind, says = FAILED[name]
    found = leave(folder, [DRIVER, LOADING, *events])
    assert found.kind == kind
    assert says in found.says
    assert not found.is_well
    told = "\n".join(found.evidence)
    assert "step 7 of 10" in told and "7 (loss 2.3000)" in told
    assert "newest complete checkpoint: step 5" in told
    assert any(f"shoal resume {RUN} --on here.yaml" in line for line in found.do)
    assert len(found.evidence) == len(set(found.evidence))


def test_every_class_has_words_and_a_name_of_its_own() -> None:
    assert len({cause.name for cause in CAUSES}) == len(CAUSES)
    assert all(cause.says and cause.advice for cause in CAUSES)


def test_running(folder: RunFolder) -> None:
    with lease.held(folder, lambda: None):
        found = leave(folder, [DRIVER, LOADING, failure(8, "process died", "worker 1 died", final=False)])
    assert (found.kind, found.is_well) == ("running", True)
    assert found.says.startswith("is running, but has written nothing for") or found.says == "is running"
    assert f"process {os.getpid()}" in found.evidence[0]
    assert any("1 earlier failure: worker 1 died" in line for line in found.evidence)


def test_finished(folder: RunFolder) -> None:
    body = {"state": "finished", "step": 10, "steps": 10, "loss": 1.5, "export": "s3://b/export/adapter"}
    folder.storage.write(folder.result, json.dumps(body).encode())
    found = leave(folder, [DRIVER, LOADING, ended(30, "finished")])
    assert (found.kind, found.evidence[:2]) == ("finished", ("step 10 of 10", "held-out loss 1.5000"))


@pytest.mark.parametrize("state", ["stopped", "left"])
def test_stopped(folder: RunFolder, state: str) -> None:
    found = leave(folder, [DRIVER, LOADING, row(20, "ended", state=state)])
    assert (found.kind, found.is_well) == ("stopped", True)
    assert found.do == (f"go on with  shoal resume {RUN} --on here.yaml",)


def test_the_driver_is_gone(folder: RunFolder) -> None:
    dead_holder(folder)
    found = leave(folder, [DRIVER, LOADING])
    assert found.kind == "driver-gone"
    assert "its lease is stale: process" in found.evidence[0] and "on laptop" in found.evidence[0]


def test_the_driver_is_gone_elsewhere_and_its_heartbeat_tells_when(folder: RunFolder) -> None:
    dead_holder(folder, machine="another", beat=time.time() - 3600)
    assert leave(folder, [DRIVER, LOADING]).kind == "driver-gone"
    dead_holder(folder, machine="another", beat=time.time())
    assert leave(folder, [DRIVER, LOADING]).kind == "running"


def test_a_driver_that_vanished_with_its_lease(folder: RunFolder) -> None:
    found = leave(folder, [DRIVER, LOADING])
    assert found.kind == "driver-gone"
    assert "process 4711 on laptop took it" in found.evidence[0]


def test_workers_that_never_began(folder: RunFolder) -> None:
    found = leave(folder, [DRIVER], steps=[], checkpoint=None)
    assert found.kind == "never-started"
    assert "no complete checkpoint" in found.evidence


def test_what_a_run_went_on_from_is_no_verdict(folder: RunFolder) -> None:
    """A worker died and came back; hours later the driver was killed."""
    found = leave(folder, [DRIVER, LOADING, failure(9, "process died", "worker 1 died on host-b", final=False)])
    assert found.kind == "driver-gone"
    assert any("1 earlier failure: worker 1 died on host-b" in line for line in found.evidence)


def test_only_the_last_driver_counts(folder: RunFolder) -> None:
    first = [DRIVER, LOADING, row(8, "error", message="memory: CUDA out of memory"), ended(9)]
    again = [row(9.5, "driver", host="laptop", pid=4712), row(20, "ended", attempt=2, state="stopped")]
    assert leave(folder, [*first, *again]).kind == "stopped"


def test_a_checkpoint_that_does_not_count_is_named(folder: RunFolder) -> None:
    folder.storage.write(join(folder.checkpoint(7), "part-000.safetensors"), b"half")
    found = leave(folder, [DRIVER, LOADING, ended(20, "stopped")])
    assert "newest complete checkpoint: step 5" in found.evidence
    assert "the checkpoint of step 7 was left half-written and is skipped" in found.evidence


def test_it_is_json(folder: RunFolder) -> None:
    body = leave(folder, [DRIVER, LOADING, ended(20, "stopped")]).as_json()
    assert json.loads(json.dumps(body))["kind"] == "stopped"


def test_every_cause_that_a_failure_can_have_is_known() -> None:
    from shoal.backends.causes import Cause

    assert {*TOLD, *BROAD, "error"} == set(get_args(Cause))
