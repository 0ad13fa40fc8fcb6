"""The preStop hook of a worker's pod, on the raylet of a real node: Ray hears of it, and the node ends when it is empty."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from shoal.backends import leaving
from shoal.backends.leaving import Process, is_raylet, processes

pytestmark = pytest.mark.ray


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cluster of a head and one node; the hook sees the node's raylet alone, as in its pod. Gives the node's id."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    added: Any = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)

    def here(proc: Any = leaving.PROC) -> Iterator[Process]:
        return (one for one in processes(proc) if is_raylet(one) and one.value("--node-id") == added.node_id)

    monkeypatch.setattr(leaving, "processes", here)
    yield added.node_id
    ray.shutdown()
    cluster.shutdown()


def draining() -> set[str]:
    from ray._private.state import state

    return set(state.get_draining_nodes())


def test_an_empty_node_ends_by_itself(node: str, capsys: pytest.CaptureFixture[str]) -> None:
    leaving.main(["node", "60"])
    said = capsys.readouterr().out
    assert "its workers have 60 s to save" in said and "no worker is left on this node" in said


def test_a_node_with_a_worker_is_drained_and_waited_for(node: str, capsys: pytest.CaptureFixture[str]) -> None:
    import ray

    @ray.remote(num_cpus=1)
    class Worker:
        def ready(self) -> bool:
            return True

    worker: Any = Worker.remote()
    assert ray.get(worker.ready.remote())
    hook = threading.Thread(target=leaving.main, args=(["node", "60"],))
    hook.start()
    for _ in range(100):
        if node in draining():
            break
        hook.join(0.2)
    assert node in draining() and hook.is_alive()
    ray.kill(worker)  # it has saved, and leaves
    hook.join(60)
    assert not hook.is_alive() and "no worker is left on this node" in capsys.readouterr().out


def test_a_control_store_that_is_gone_holds_no_pod_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raylet = Process(0, ("/ray/raylet", f"--node_id={'ab' * 28}", "--gcs-address=127.0.0.1:9"))
    monkeypatch.setattr(leaving, "processes", lambda proc=None: iter([raylet]))
    leaving.main(["node", "5"])
    assert "Ray did not take it" in capsys.readouterr().out
