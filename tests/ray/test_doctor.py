"""`shoal doctor --on` over a real Ray: every node is measured, and all of them together."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import Command
from ray.cluster_utils import Cluster

from shoal.spec.cluster import S3Spec
from shoal.storage import Storage
from shoal.store import connection

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two raylets of one CPU each on this machine."""
    up = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    up.add_node(num_cpus=1)
    up.wait_for_nodes()
    yield up
    up.shutdown()


def profile(folder: Path, s3: S3Spec, **changes: Any) -> str:
    """A profile file that reaches the embedded store as any other one."""
    server, key = connection(s3), folder / "key.json"
    key.write_text(json.dumps({"access_key": server.access_key, "secret_key": server.secret_key}))
    key.chmod(0o600)
    body = {
        "kind": "ray",
        "workers": 2,
        "network_interface": "lo",
        "storage": {
            "runs": f"s3://shoal/{folder.name}/runs",
            "prepared": "s3://shoal/prepared",
            "cache": str(folder / "cache"),
            "cache_gib": 1,
            "s3": {"endpoint_url": server.endpoint, "credentials": {"file": str(key)}},
        },
    }
    path = folder / "place.yaml"
    path.write_text(json.dumps(body | changes))  # JSON is YAML
    return str(path)


def findings(folder: Path, place: str) -> tuple[int, dict[str, tuple[str, str]]]:
    command = Command(["doctor", "--on", place, "--json"], folder)
    status = command.end()
    return status, {one["check"]: (one["state"], one["says"]) for one in json.loads(command.out.read_text())}


def test_all_nodes_of_a_cluster(cluster: Cluster, tmp_path: Path, s3: S3Spec) -> None:
    status, found = findings(tmp_path, profile(tmp_path, s3, address=cluster.address))
    assert not [says for state, says in found.values() if state == "problem"]
    assert status == 0
    assert found["room"] == ("ok", "2 nodes for 2 workers of 1 CPU")
    for check in ("python", "versions", "clock", "memory", "disk", "store", "all-reduce"):
        assert check in found
    assert "MB/s per node" in found["all-reduce"][1] or "moves" in found["all-reduce"][1]
    left = Storage(s3).list(f"s3://shoal/{tmp_path.name}/")
    assert left == [], "what was written to measure the store is gone"
