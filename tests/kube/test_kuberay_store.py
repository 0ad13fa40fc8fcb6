"""Runs on Kubernetes whose store is in sight from here: resumed from their folder, and stopped by a mark beside their lease."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kube_api import Cluster, Scene
from kube_scenes import COMPLETE, FIRST, GOOD, JOB, RUN, RUNNING, SPEAKS, SPOKEN, Tell, run
from plans import small_plan
from stores import FolderStore

from shoal import lease
from shoal.cli import following, outside
from shoal.runs import RunFolder
from shoal.spec.load import load_job
from shoal.storage import Storage
from shoal.tune.folder import SweepFolder, SweepPlan
from shoal.tune.space import apply

SWEEP = {"space": {"lora.r": [8, 16]}, "search": "grid"}
LEFT = {
    "jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "jobId": "a-run-1", "reason": "AppFailed",
    "message": "Job entrypoint command failed with exit code 130, last available logs:\n",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """The run's, in a store that the command line sees too; nothing is in it yet."""
    store = FolderStore(tmp_path / "store")

    @contextmanager
    def opened(_: object) -> Iterator[Storage]:
        yield store

    for module in (outside, following):
        monkeypatch.setattr(module, "storage_of", opened)
    monkeypatch.setattr("shoal.launch.plan_job", lambda *_: None)  # no model lies here that it could look at
    return RunFolder(store, f"s3://shoal/runs/{RUN}")


def test_a_run_says_in_its_folder_who_drives_it(cluster: Cluster, tell: Tell, folder: RunFolder) -> None:
    assert run(tell, "--detach")[0] == 0
    assert b'"id": "a-run"' in folder.storage.read(folder.submission)


def test_resume_applies_the_job_of_the_runs_folder_again(
    cluster: Cluster, tell: Tell, folder: RunFolder, tmp_path: Path
) -> None:
    cluster.script = [*GOOD[:3], Scene(LEFT, pods=SPOKEN)]
    status, _, err = run(tell)
    assert status == 130 and "kubectl" not in err, "whoever asked it to leave needs no advice"
    status, _, err = tell("resume", "a-r")
    assert status == 2 and "never began to train" in err
    folder.storage.write(folder.plan, small_plan(tmp_path).model_dump_json().encode())
    folder.storage.write(folder.job, JOB.read_bytes())
    before = cluster.objects["rayjobs", RUN]
    cluster.script = [Scene(), Scene(), *GOOD]
    status, out, err = tell("resume", "a-r")
    assert status == 0, out + err
    after = cluster.objects["rayjobs", RUN]
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert after["spec"]["entrypoint"] == before["spec"]["entrypoint"], "the very same command goes on with the run"


def test_a_sweep_goes_on_with_the_job_of_its_folder(
    cluster: Cluster, tell: Tell, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.tune.forecast.forecast", lambda *_: None)
    cluster.script = [*GOOD[:3], Scene(LEFT, pods=SPOKEN)]
    assert run(tell, "--set", f"sweep={json.dumps(SWEEP)}", verb="sweep")[0] == 130
    status, _, err = tell("sweep", "resume", "a-r")
    assert status == 2 and "never began to train" in err
    job = load_job(JOB, [f"sweep={json.dumps(SWEEP)}"])
    assert job.sweep
    plan = SweepPlan(version=1, shoal="1", sweep_id=RUN, made="", spec=job.sweep, job=apply(job, {}))
    SweepFolder(folder.storage, folder.url).write_plan(plan)
    before = cluster.objects["rayjobs", RUN]
    cluster.script = [Scene(), Scene(), *GOOD[:4], Scene(COMPLETE, pods=SPOKEN)]
    status, out, err = tell("sweep", "resume", "a-r")
    assert status == 0, out + err
    after = cluster.objects["rayjobs", RUN]
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert after["spec"]["entrypoint"] == before["spec"]["entrypoint"]


def test_stop_lets_the_driver_take_its_time_and_no_other_take_its_place(
    cluster: Cluster, tell: Tell, folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)
    cluster.script = [Scene(RUNNING, pods=SPEAKS, log=FIRST)]
    assert run(tell, "--detach")[0] == 0
    folder.storage.write(folder.plan, small_plan(tmp_path).model_dump_json().encode())
    asked, held = threading.Event(), threading.Event()
    limits: list[int] = []

    def drive() -> None:
        """What the driver in the head's pod does, and what the operator makes of it."""
        with lease.held(folder, lambda: None, on_asked=lambda by: asked.set()):
            held.set()
            asked.wait(20)
            with cluster.lock:
                limits.append(cluster.objects["rayjobs", RUN]["spec"]["backoffLimit"])
                cluster.script = [Scene(LEFT, pods=SPOKEN)]

    driver = threading.Thread(target=drive)
    driver.start()
    assert held.wait(20)
    status, out, err = tell("stop", RUN)
    driver.join()
    assert status == 0, out + err
    assert "it was asked to finish its step, save and leave" in out and "it has left" in out
    assert limits == [0], "a driver that leaves is not started again"
    assert cluster.named("rayjobs") == [RUN]
