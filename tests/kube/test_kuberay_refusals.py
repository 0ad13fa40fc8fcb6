"""What a cluster refuses, in one line each with what to do: told before anything is made."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_api import KINDS, Cluster, Scene
from kube_scenes import COMPLETE, GOOD, RUN, RUNNING, SPEAKS, SPOKEN, STARTING, Tell, event, pod, run

from shoal.kuberay import watch

FORBIDDEN = 'rayjobs.ray.io "a-run" is forbidden: User "ann" cannot patch resource "rayjobs" in API group "ray.io" in the ' \
    'namespace "shoal"'  # fmt: skip
QUOTA = 'rayjobs.ray.io "a-run" is forbidden: exceeded quota: team, requested: count/rayjobs.ray.io=1, used: ' \
    "count/rayjobs.ray.io=4, limited: count/rayjobs.ray.io=4"  # fmt: skip
WEBHOOK = 'admission webhook "policy.example.com" denied the request: the label cost-center is missing'
LABELS = {"app.kubernetes.io/part-of": "shoal", "app.kubernetes.io/instance": RUN}


def refuse(kind: str, status: int, message: str) -> Any:
    return lambda method, of, dry: (status, message) if method == "PATCH" and of == kind else None


@dataclass
class Case:
    says: str
    cluster: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    held: tuple[str, dict[str, Any]] | None = None
    """What somebody else has made there."""
    status: int = 5


CASES = {
    "forbidden": Case(
        'kubernetes.namespace: shoal: User "ann" cannot patch resource "rayjobs" in API group "ray.io" in the namespace "shoal"; '
        "whoever runs the cluster binds you to a role such as that of k8s/base/submitters.yaml",
        {"refuses": refuse("rayjobs", 403, FORBIDDEN)},
    ),
    "namespace absent": Case(
        "kubernetes.namespace: research is not there on http://", changes={"kubernetes": {"namespace": "research"}}
    ),
    "CRDs absent": Case(
        "knows no RayJob (ray.io/v1): its KubeRay is absent, or older than 1.0; install the KubeRay operator, 1.6 or later",
        {"kinds": {group: kinds for group, kinds in KINDS.items() if "ray.io" not in group}},
    ),
    "operator too old": Case(
        "kubernetes: the cluster's KubeRay is too old: its RayJob has no spec.submitterConfig; install 1.6",
        {"unknown": {"submitterConfig"}},
    ),
    "quota": Case(
        "kubernetes.namespace: the quota team of shoal is used up: asked for count/rayjobs.ray.io=1, used "
        "count/rayjobs.ray.io=4, of count/rayjobs.ray.io=4; wait, or have the quota raised",
        {"refuses": refuse("rayjobs", 403, QUOTA)},
    ),
    "admission": Case(
        "RayJob a-run: the cluster's rules refuse it: admission webhook \"policy.example.com\" denied the request: the label",
        {"refuses": refuse("rayjobs", 403, WEBHOOK)},
    ),
    "server away": Case(
        "cannot answer just now (503): the server is unable", {"refuses": refuse("configmaps", 503, "the server is unable")}
    ),
    "somebody's config map": Case(
        "ConfigMap a-run-files: is there already, made by helm; give the run another id with --run-id",
        held=("configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a-run-files"}}),
    ),
    "somebody's account": Case(
        "ServiceAccount shoal: is there already, and is not Shoal's; set kubernetes.service_account.create: false to use it",
        held=("serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "shoal"}}),
    ),
    "another run's name": Case(
        "RayJob a-run: is of the run other; give the run another id with --run-id",
        held=(
            "rayjobs",
            {"kind": "RayJob", "metadata": {"name": RUN, "labels": LABELS, "annotations": {"shoal/run-id": "other"}}, "spec": {}},
        ),
    ),
    "a field that somebody else holds": Case(
        "NetworkPolicy a-run: helm has made it, and holds what would be changed: Apply failed with 1 conflict",
        held=(
            "networkpolicies",
            {"kind": "NetworkPolicy", "metadata": {"name": RUN, "labels": LABELS}, "spec": {"policyTypes": []}},
        ),
    ),
    "impossible replicas": Case(
        "workers: 9 are asked for, and the worker groups hold 2 at most; raise max_replicas, or lower workers",
        changes={"workers": 9}, status=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_is_refused_is_one_line_and_nothing_is_made(case: Case, cluster: Cluster, tell: Tell) -> None:
    for name, value in case.cluster.items():
        setattr(cluster, name, value)
    if case.held:
        cluster.put(*case.held, manager="helm")
    before = dict(cluster.objects)
    status, _, err = run(tell, **case.changes)
    assert status == case.status, err
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert case.says in line
    assert cluster.objects == before
    assert not [method for method, _, _ in cluster.asked if method in ("PATCH", "DELETE")]


def test_all_that_is_refused_is_told_at_once(cluster: Cluster, tell: Tell) -> None:
    cluster.refuses = lambda method, kind, dry: (403, FORBIDDEN.replace("rayjobs", kind)) if method == "PATCH" else None
    _, _, err = run(tell)
    assert [kind in err for kind in ("serviceaccounts", "configmaps", "rayjobs")] == [True] * 3


def test_what_a_dry_run_does_not_show_leaves_nothing_behind(cluster: Cluster, tell: Tell) -> None:
    cluster.refuses = lambda method, kind, dry: (
        (403, QUOTA) if method == "PATCH" and kind == "rayjobs" and not dry else None
    )
    status, _, err = run(tell)
    assert status == 5 and "the quota team of shoal is used up" in err
    assert not cluster.objects


# Getting there


def test_nobody_answers(cluster: Cluster, tell: Tell, tmp_path: Path) -> None:
    cluster.url = "http://127.0.0.1:9"
    cluster.kubeconfig(tmp_path / "config")
    status, _, err = run(tell)
    assert status == 5
    assert (
        "error: kubernetes: the API server http://127.0.0.1:9 does not answer: connection refused; is it the right"
        in err
    )


def test_credentials_that_are_not_accepted_and_never_shown(cluster: Cluster, tell: Tell, tmp_path: Path) -> None:
    cluster.kubeconfig(tmp_path / "config", token="a-secret-that-expired")
    status, out, err = run(tell)
    assert status == 5 and "does not accept your credentials (Unauthorized); log in again" in err
    assert "a-secret-that-expired" not in out + err


def test_a_context_that_is_not_there(tell: Tell) -> None:
    status, _, err = run(tell, kubernetes={"context": "prod"})
    assert status == 5 and "error: kubernetes.context: no cluster is known here: " in err and "prod" in err


def test_a_context_that_is(cluster: Cluster, tell: Tell) -> None:
    assert run(tell, "--detach", kubernetes={"context": "here"})[0] == 0
    assert cluster.named("rayjobs") == [RUN]


@pytest.mark.parametrize("text", ["{{{", "- a", "\0\1", "clusters: 5"])
def test_a_kubeconfig_that_is_none(tell: Tell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    (tmp_path / "broken").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "broken"))
    status, _, err = run(tell)
    assert status == 5 and err.startswith("error: kubernetes: ") and "/broken" in err and "KUBECONFIG" in err


def test_a_command_for_credentials_that_fails(cluster: Cluster, tell: Tell, tmp_path: Path) -> None:
    path = cluster.kubeconfig(tmp_path / "config")
    body = yaml.safe_load(path.read_text())
    command = {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "no-such-cloud", "args": []}
    body["users"][0]["user"] = {"exec": command}
    path.write_text(yaml.safe_dump(body))
    status, _, err = run(tell)
    assert status == 5 and "the kubeconfig's command for credentials failed: " in err and "'no-such-cloud'" in err
    assert not cluster.named("rayjobs")


def test_no_kubeconfig(tell: Tell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    status, _, err = run(tell)
    assert status == 5 and "no cluster is known here: no kubeconfig, and this is no pod; set KUBECONFIG" in err


def test_the_client_is_an_extra(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    status, _, err = run(tell)
    assert status == 5 and "kind: kuberay needs Kubernetes' client" in err and "pip install 'shoal[kubernetes]'" in err


def test_keep_is_for_kuberay(tell: Tell) -> None:
    status, _, err = tell("run", str(Path(__file__).parents[2] / "jobs" / "quickstart.yaml"), "--keep", plain=True)
    assert status == 2 and "--keep: nothing was applied that could be taken away; it is for kind: kuberay" in err


# While it is watched


def test_a_server_that_is_away_for_a_while_is_waited_for(cluster: Cluster, tell: Tell) -> None:
    left = [3]

    def away(method: str, kind: str, dry: bool) -> tuple[int, str] | None:
        left[0] -= kind == "pods"
        return (503, "the server is starting") if kind == "pods" and left[0] >= 0 else None

    cluster.script, cluster.refuses = [*GOOD[:3], *[Scene()] * 4, *GOOD[3:]], away
    status, out, err = run(tell)
    assert status == 0, out + err
    assert "the driver is up" in out


def test_a_server_that_stays_away_is_told(cluster: Cluster, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "AWAY_S", 0.1)
    cluster.script = [Scene(STARTING)]
    cluster.refuses = lambda method, kind, dry: (503, "the server is starting") if kind == "pods" else None
    status, _, err = run(tell)
    assert (
        status == 5
        and "cannot answer just now (503): the server is starting" in err
        and "it may well go on: `shoal logs a-run" in err
    )


def test_whoever_may_not_see_events_sees_the_rest(cluster: Cluster, tell: Tell) -> None:
    cluster.script = list(GOOD)
    cluster.refuses = lambda method, kind, dry: (
        (403, "events is forbidden: User cannot list") if kind == "events" else None
    )
    assert run(tell)[0] == 0


def test_what_happened_to_an_earlier_try_or_to_a_neighbour_is_not_told_of_this_one(
    cluster: Cluster, tell: Tell
) -> None:
    old = event(RUN, "FailedToCreateHeadPod", "old news", when="2026-11-21T20:00:00Z")
    neighbour = event(f"{RUN}-large", "FailedToCreateHeadPod", "next door")
    cluster.script = [
        Scene(STARTING, pods=[pod(RUN, "head", "Pending")], events=[old, neighbour]),
        Scene(RUNNING, pods=SPEAKS),
        Scene(COMPLETE, pods=SPOKEN),
    ]
    status, out, _ = run(tell)
    assert status == 0 and "old news" not in out and "next door" not in out
