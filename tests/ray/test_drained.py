"""A node that its cluster takes away with notice: the group saves, leaves, and goes on where it is left in peace."""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from plans import small_plan
from ray import cloudpickle

from shoal.backends.ray_cluster import RayCluster
from shoal.plan.types import Plan
from shoal.spec.cluster import ClusterProfile
from shoal.train.world import Directive, Event, Preempted, Report, Result, World

pytestmark = pytest.mark.ray
cloudpickle.register_pickle_by_value(sys.modules[__name__])

GRACE_S = 120


@pytest.fixture
def address() -> Iterator[str]:
    """A head without room and three nodes for one worker each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(3):
        cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def steps_until_asked(plan: Plan, world: World, report: Report) -> Result:
    """The first group steps until it is asked to leave, the second a little."""
    import ray
    import torch
    import torch.distributed as dist

    node = ray.get_runtime_context().get_node_id()
    step = 0
    while step < 5 or not world.earlier:
        wish = torch.tensor([float(world.pulse.wish == Directive.YIELD)])
        dist.all_reduce(wish)
        step += 1
        world.pulse.mark("computing", step)
        time.sleep(0.1)
        report({"kind": "step", "step": step, "steps": 5, "loss": 1.0, "rank": world.rank, "node": node})
        if wish:
            raise Preempted("saved")
    return Result(
        state="finished", step=step, steps=5, tokens=0, seconds=0.0, base_loss=None, loss=None, train_loss=None,
        export=None, gate=None, answers=[],
    )  # fmt: skip


def drain(address: str, node: str) -> bool:
    """What an autoscaler does when it hears that a spot machine goes."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, _ = GcsClient(address=address).drain_node(node, reason, "spot", int((time.time() + GRACE_S) * 1000))
    return accepted


def test_a_drained_node_is_left_in_time_and_counts_as_preemption(address: str, tmp_path: Path) -> None:
    groups: list[dict[int, str]] = []
    failures: list[Event] = []

    def on_event(event: Event) -> None:
        if "pids" in event:
            groups.append({})
        if event["kind"] == "failure":
            failures.append(event)
        if event["kind"] == "step":
            groups[-1][event["rank"]] = event["node"]
            if event["step"] == 10 and event["rank"] == 1 and len(groups) == 1:
                assert drain(address, event["node"])

    backend = RayCluster(ClusterProfile(kind="ray", address=address, workers=2), steps_until_asked)
    backend.start()
    try:
        plan = small_plan(tmp_path, workers=2, max_failures=0, max_preemptions=1)
        assert backend.train(plan, on_event, threading.Event()).state == "finished"
    finally:
        backend.close()
    [left] = failures
    assert (left["cause"], left["rank"]) == ("preempted", 1)
    assert "worker 1 was asked to leave by its node, which is drained" in left["message"]
    assert "preemption 1 of 1" in left["message"]
    first, second = groups
    assert first[1] not in second.values() and first.keys() == second.keys() == {0, 1}
