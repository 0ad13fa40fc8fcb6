"""A cluster that cannot be joined is answered before Ray tries for minutes; what Ray says becomes one line."""

import socket

import pytest

from shoal.backends.ray_cluster import RayCluster, _refused, _require_listener
from shoal.errors import ClusterError
from shoal.spec.cluster import ClusterProfile


def test_an_address_where_nobody_listens_is_answered_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # taken, and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ClusterError, match=rf"address: {address} does not answer: .*; name the head as HOST:6379"):
            _require_listener(address)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("Version mismatch: The cluster\n has Ray 2.59"),
            "Version mismatch: The cluster has Ray 2.59; inst",
        ),
        (
            ConnectionError("Could not find any running Ray instance."),
            "auto, but no Ray runs on this machine; `ray start",
        ),
        (
            RuntimeError("This node has an IP\naddress"),
            "the cluster at auto could not be joined: This node has an IP add",
        ),
    ],
)
def test_what_ray_says_becomes_one_line(error: Exception, said: str) -> None:
    told = str(_refused("auto", error))
    assert told.startswith(f"address: {said}") and "\n" not in told


def test_a_run_without_workers_is_given_up_only_after_the_stated_time(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = RayCluster(ClusterProfile(kind="ray", workers=2, wait_s=30))
    monkeypatch.setattr("shoal.backends.ray_cluster._free", lambda: ["one: 1 of 2 CPU"])
    backend.require_room(80)
    with pytest.raises(
        ClusterError, match=r"no room for 91 s for 2 workers of 1 CPU each \(pack\): free are one: 1 of 2"
    ):
        backend.require_room(91)
