"""`shoal run --on` a profile of kind kuberay: the real command line and the real Kubernetes client, over HTTP to a small API
server that is as strict as the schemas, and plays the operator. No Kubernetes, no operator, no Ray.
"""

import os
import signal

import pytest
from kube_api import Cluster, Scene
from kube_scenes import (
    COMPLETE,
    FAILED,
    FIRST,
    GOOD,
    RUN,
    RUNNING,
    SPEAKS,
    SPOKEN,
    STARTING,
    Tell,
    event,
    line,
    pod,
    run,
    unschedulable,
)

from shoal.cli import following
from shoal.cli.leaving import Leaving
from shoal.kuberay import watch


def test_a_run_is_applied_followed_and_cleared_away(cluster: Cluster, tell: Tell) -> None:
    cluster.script = list(GOOD)
    status, out, err = run(tell)
    assert status == 0, out + err
    for said in (
        "pods: head pending, 0 of 1 workers run",
        "pods: head runs, 1 of 1 workers run",
        "the driver is up",
        "somebody's words",
        "a-run: finished at step 1",
    ):
        assert out.count(said) == 1, out
    assert "cli.py" not in out, "what Ray's own command says concerns nobody"
    made = [(method, kind) for method, kind, _ in cluster.asked if "PATCH" in method]
    kinds = [
        "serviceaccounts",
        "networkpolicies",
        "poddisruptionbudgets",
        "poddisruptionbudgets",
        "configmaps",
        "rayjobs",
    ]
    assert [kind for method, kind in made if method == "dry PATCH"] == kinds
    assert [kind for method, kind in made if method == "PATCH"][: len(kinds)] == kinds
    assert [method for method, _ in made][: len(kinds)] == ["dry PATCH"] * len(kinds), (
        "nothing is made before all may be"
    )
    (job,) = (one for (kind, _), one in cluster.objects.items() if kind == "rayjobs")
    assert job["spec"]["entrypoint"].endswith("--run-id a-run --events")
    assert not cluster.named("configmaps") and not cluster.named("poddisruptionbudgets")
    policy = cluster.objects["networkpolicies", RUN]
    assert policy["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"], (
        "it guards the pods, and goes with them"
    )


def test_keep_takes_nothing_away(cluster: Cluster, tell: Tell) -> None:
    cluster.script = list(GOOD)
    assert run(tell, "--keep")[0] == 0
    assert cluster.named("configmaps") == ["a-run-files"] and len(cluster.named("poddisruptionbudgets")) == 2
    cluster.delete("rayjobs", RUN)
    assert {kind for kind, _ in cluster.objects} == {"serviceaccounts"}, "the rest belongs to the RayJob"


def test_a_run_that_fails_keeps_everything_and_says_how_to_look(cluster: Cluster, tell: Tell) -> None:
    cluster.script = [*GOOD[:3], Scene(FAILED, pods=SPOKEN, log=[*FIRST, "error: loss: is not a number; look at it"])]
    status, _, err = run(tell)
    assert status == 8
    assert "error: loss: is not a number; look at it" in err
    assert (
        "kubectl -n shoal describe rayjob a-run" in err
        and "all of it goes with  kubectl -n shoal delete rayjob a-run" in err
    )
    assert cluster.named("configmaps") == ["a-run-files"]


@pytest.mark.parametrize(
    ("scene", "said"),
    [
        (
            Scene(STARTING, pods=[pod(RUN, "worker", "Pending", n, **unschedulable(
                "0/5 nodes are available: 3 Insufficient nvidia.com/gpu, 2 node(s) had untolerated taint {spot: true}. "
                "preemption: 0/5 nodes are available: 5 Preemption is not helpful for scheduling.")) for n in range(2)]),
            "2 pods (worker): no node for it, of 5: 3 Insufficient nvidia.com/gpu, 2 node(s) had untolerated taint {spot: true}",
        ),
        (
            Scene(STARTING, pods=[pod(RUN, "head", "Pending", waiting={
                "reason": "ImagePullBackOff", "message": 'Back-off pulling image "registry.example.com/shoal:1"'})]),
            "the head's pod: the image registry.example.com/shoal:1 cannot be pulled; look at kubernetes.image and image_pull",
        ),
        (
            Scene(STARTING, pods=[pod(RUN, "head", "Pending", waiting={
                "reason": "CreateContainerConfigError", "message": 'secret "shoal-s3" not found'})]),
            "the head's pod: the Secret shoal-s3 is missing in namespace shoal; kubernetes.secret_env names it",
        ),
        (
            Scene(STARTING, pods=[], events=[event(RUN, "FailedToCreateHeadPod", 'pods "a-run-x-head" is forbidden: exceeded '
                "quota: team, requested: limits.cpu=8, used: limits.cpu=12, limited: limits.cpu=16")]),
            "the quota team of shoal is used up: asked for limits.cpu=8, used limits.cpu=12, of limits.cpu=16",
        ),
        (
            Scene(STARTING, pods=[], events=[event(RUN, "FailedToCreateHeadPod",
                'pods "a-run-x-head" is forbidden: error looking up service account shoal/shoal: not found')]),
            'RayCluster a-run-x7k2p: FailedToCreateHeadPod: pods "a-run-x-head" is forbidden: error looking up service account',
        ),
        (
            Scene(STARTING, pods=[pod(RUN, "worker", "Pending", waiting={"reason": "CrashLoopBackOff", "message": "back-off"})]),
            "the worker's pod: ray ends again and again",
        ),
    ],
    ids=["unschedulable", "image", "secret", "quota", "account", "crash"],
)  # fmt: skip
def test_what_holds_pods_up_is_said_and_the_wait_ends(cluster: Cluster, tell: Tell, scene: Scene, said: str) -> None:
    cluster.script = [scene]
    status, out, err = run(tell, wait_s=0.1)
    assert status == 5
    assert out.count(said) == 1, out
    assert "error: wait_s: gave up after 0.1 s, waiting for this: " in err and said in err
    assert {kind for kind, _ in cluster.objects} == {"serviceaccounts"}, "nothing is left that could start later"
    assert "are taken away" in err


def test_what_is_given_up_on_stays_where_it_is_asked_for(cluster: Cluster, tell: Tell) -> None:
    cluster.script = [Scene(STARTING, pods=[])]
    status, _, err = run(tell, "--keep", wait_s=0)
    assert status == 5 and "kept, and it may yet start; take it away with  kubectl -n shoal delete rayjob a-run" in err
    assert cluster.named("rayjobs") == [RUN]


def test_time_in_kueues_queue_is_no_wait_and_its_reason_is_told(cluster: Cluster, tell: Tell) -> None:
    held = {"jobDeploymentStatus": "Suspended"}
    why = "couldn't assign flavors to pod set gpu: insufficient unused quota for nvidia.com/gpu in flavor h100, 2 more needed"
    condition = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": why}
    owner = [{"kind": "RayJob", "name": RUN}]
    workload = {"metadata": {"name": "w", "ownerReferences": owner}, "status": {"conditions": [condition]}}
    cluster.script = [Scene(held, workloads=[workload]), *[Scene(held)] * 3, *GOOD[2:]]
    status, out, err = run(tell, profile="kuberay-kueue", wait_s=0)
    assert status == 0, out + err
    assert f"Kueue has not admitted it (queue research): {why}" in out


def test_no_operator_is_told(cluster: Cluster, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "OPERATOR_S", 0.05)
    status, _, err = run(tell)
    assert status == 5
    assert "error: kubernetes: no operator has looked at RayJob a-run for 0 s; is KubeRay 1.6 or later up" in err
    assert cluster.named("rayjobs") == []


def test_what_the_operator_refuses_is_told(cluster: Cluster, tell: Tell) -> None:
    cluster.script = [
        Scene({"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": "too long"})
    ]
    status, _, err = run(tell)
    assert status == 1 and "ValidationFailed: too long" in err


def test_a_rayjob_that_somebody_deletes_is_told(cluster: Cluster, tell: Tell) -> None:
    cluster.script = [*GOOD[:3], Scene(then=lambda: cluster.delete("rayjobs", RUN))]
    status, _, err = run(tell)
    assert status == 1 and "RayJob a-run: was deleted while it ran" in err


def test_a_try_that_failed_is_told_and_the_next_one_followed(cluster: Cluster, tell: Tell) -> None:
    lost = {"jobDeploymentStatus": "Retrying", "failed": 1, "message": "the head's node was lost"}
    other = [pod(RUN, "head", "Running", 1), pod(RUN, "submitter", "Succeeded", 1)]
    again = {**RUNNING, "jobId": "a-run-2", "failed": 1}
    cluster.script = [
        *GOOD[:3], Scene(lost, pods=[]), Scene(again, pods=other, log=[*FIRST, line("note", message="goes on")]),
        Scene({**COMPLETE, "failed": 1}),
    ]  # fmt: skip
    status, out, _ = run(tell)
    assert status == 0
    assert "try 1 failed, the operator starts another cluster: the head's node was lost" in out
    assert out.count("the driver is up") == 2 and "goes on" in out, "another driver's words are new"


def test_a_submitter_that_is_made_again_says_nothing_twice(cluster: Cluster, tell: Tell) -> None:
    late = {**pod(RUN, "submitter", "Succeeded", 1)}
    cluster.script = [
        *GOOD[:4],
        Scene(pods=[*SPEAKS[:2], late], log=[*FIRST, "somebody's words", "more"]),
        Scene(COMPLETE),
    ]
    status, out, _ = run(tell)
    assert status == 0
    assert [out.count(said) for said in ("the driver is up", "somebody's words", "more")] == [1, 1, 1]


# Leaving, stopping, going on


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_before_it_is_applied_leaves_nothing(cluster: Cluster, tell: Tell) -> None:
    cluster.refuses = lambda method, kind, dry: interrupt() if dry and kind == "rayjobs" else None
    status, _, err = run(tell)
    assert status == 130 and "left before it was handed over: what was made for it is taken away" in err
    assert not cluster.objects


def test_ctrl_c_without_a_terminal_detaches_and_logs_reattaches(cluster: Cluster, tell: Tell) -> None:
    cluster.script = [*GOOD[:3], Scene(then=interrupt), *[Scene()] * 3]
    status, _, err = run(tell)
    assert status == 130 and "detached: a-run goes on; watch it with  shoal logs a-run --follow --on p.yaml" in err
    assert cluster.named("configmaps") == ["a-run-files"] and cluster.named("rayjobs") == [RUN]
    status, out, _ = tell("logs", RUN)
    assert status == 0 and "the driver is up" in out
    cluster.script = GOOD[3:]
    status, out, _ = tell("logs", "a-r", "--follow")
    assert status == 0 and "somebody's words" in out and "a-run: finished at step 1" in out


def test_ctrl_c_and_stop_asks_the_driver(cluster: Cluster, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leaving, "may_ask", property(lambda _: True))
    monkeypatch.setattr(following, "_answer", lambda: "s")
    cluster.script = [*GOOD[:3], Scene(then=interrupt), *[Scene()] * 5]
    status, out, err = run(tell)
    assert status == 143, out + err
    assert "its driver was sent SIGTERM" in out
    assert {kind for kind, _ in cluster.objects} == {"serviceaccounts"}


def test_detach_and_stop(cluster: Cluster, tell: Tell) -> None:
    cluster.script = [Scene(RUNNING)]
    status, out, _ = run(tell, "--detach")
    assert status == 0 and "shoal stop a-run --on p.yaml" in out
    status, _, err = run(tell)
    assert status == 5 and "error: a-run: runs already, as RayJob a-run; `shoal logs a-run --follow` shows it" in err
    status, out, _ = tell("stop", RUN)
    assert status == 0 and "it has left" in out and not cluster.named("rayjobs")


def test_the_same_command_once_more_replaces_a_try_that_ended(cluster: Cluster, tell: Tell) -> None:
    cluster.script = [*GOOD[:3], Scene(FAILED, pods=SPOKEN)]
    assert run(tell)[0] == 8
    before = cluster.objects["rayjobs", RUN]["metadata"]["uid"]
    cluster.script = [Scene(), Scene(), *GOOD]
    status, out, err = run(tell, kubernetes={"image": "registry.example.com/shoal:2"}, workers=1)
    assert status == 0, out + err
    assert "an earlier try of it has ended" in out
    assert cluster.objects["rayjobs", RUN]["metadata"]["uid"] != before
