"""Everything that is rendered is what the API server and the operator take: no unknown field, no value out of range."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_schemas import faults

from shoal.errors import SpecError
from shoal.kube import operator, render
from shoal.spec.cluster import ClusterProfile
from shoal.spec.load import load_job, load_profile
from shoal.spec.schema import MODELS

ROOT = Path(__file__).parents[2]
PROFILES = sorted((ROOT / "cluster").glob("kuberay*.yaml"))
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
BASE = sorted((ROOT / "k8s" / "base").glob("[!k]*.yaml"))
QUEUES = [
    {"scheduler": "kueue", "name": "research", "priority": "batch"},
    {"scheduler": "volcano", "name": "research", "priority": "high"},
    {"scheduler": "yunikorn", "name": "root.research"},
]


def rendered(profile: Path, changes: dict[str, Any] | None = None) -> list[render.Manifest]:
    body = yaml.safe_load(profile.read_text())
    body["kubernetes"] |= changes or {}
    made = MODELS["cluster"].model_validate(body, strict=True)
    assert isinstance(made, ClusterProfile)
    return render.run(load_job(ROOT / "jobs" / "sft-lora.yaml"), made, "a-run")


def one(kind: str, profile: str = "kuberay", changes: dict[str, Any] | None = None) -> render.Manifest:
    return next(made for made in rendered(ROOT / "cluster" / f"{profile}.yaml", changes) if made["kind"] == kind)


def test_there_are_profiles_and_jobs() -> None:
    assert {file.stem for file in PROFILES} == {"kuberay", "kuberay-h100", "kuberay-spot", "kuberay-kueue"}
    assert len(JOBS) >= 5 and len(BASE) == 3


@pytest.mark.parametrize("job", JOBS, ids=lambda file: file.stem)
@pytest.mark.parametrize("profile", PROFILES, ids=lambda file: file.stem)
def test_every_profile_with_every_job_fits_the_schemas(profile: Path, job: Path) -> None:
    made = render.run(load_job(job), load_profile(profile), f"{job.stem}-20261121-101500-ab12")
    assert [one["kind"] for one in made][-2:] == ["ConfigMap", "RayJob"]
    assert {one["kind"]: faults(one) for one in made} == {one["kind"]: [] for one in made}


@pytest.mark.parametrize("profile", PROFILES, ids=lambda file: file.stem)
def test_every_pool_fits_the_schemas(profile: Path) -> None:
    made = render.pool(load_profile(profile))
    assert made[-1]["kind"] == "RayCluster"
    assert [fault for one in made for fault in faults(one)] == []


@pytest.mark.parametrize("queue", QUEUES, ids=lambda queue: queue["scheduler"])
def test_every_scheduler_fits_the_schemas(queue: dict[str, str]) -> None:
    assert faults(one("RayJob", changes={"queue": queue})) == []


def test_every_setting_of_the_pods_fits_the_schemas() -> None:
    changes = {
        "image_pull_secrets": ["registry"],
        "priority_class_name": "training",
        "init_wait_seconds": 60,
        "active_deadline_seconds": 3600,
        "pod_annotations": {"prometheus.io/scrape": "true"},
        "pod_security": {"read_only_root_filesystem": False},
        "auth": "disabled",
        "network_policy": {"monitoring_namespace": "monitoring"},
    }
    for made in rendered(ROOT / "cluster" / "kuberay.yaml", changes):
        assert faults(made) == []


@pytest.mark.parametrize("file", BASE, ids=lambda file: file.stem)
def test_the_base_fits_the_schemas(file: Path) -> None:
    for made in yaml.safe_load_all(file.read_text()):
        assert faults(made) == []


# The check itself: mistakes that must not pass


def spoilt(manifest: render.Manifest, path: str, value: Any) -> render.Manifest:
    body = deepcopy(manifest)
    *above, last = path.split(".")
    at: Any = body
    for part in above:
        at = at[int(part)] if isinstance(at, list) else at[part]
    at[last] = value
    return body


CLUSTER = "spec.rayClusterSpec"
HEAD = f"{CLUSTER}.headGroupSpec.template.spec"
WORKER = f"{CLUSTER}.workerGroupSpecs.0"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.entryPoint", "a"),
        ("spec.backoffLimit", "2"),
        ("spec.ttlSecondsAfterFinished", 2**40),
        (f"{CLUSTER}.headGroupSpec.templates", {}),
        (f"{CLUSTER}.headGroupSpec.rayStartParams", {"num-cpus": 0}),
        (f"{CLUSTER}.authOptions", {"mode": "password"}),
        (f"{CLUSTER}.upgradeStrategy", {"type": "Rolling"}),
        (f"{WORKER}.maxReplica", 2),
        (f"{WORKER}.minReplicas", None),
        (f"{HEAD}.containers.0.imagePullpolicy", "Always"),
        (f"{HEAD}.containers.0.resources", {"limit": {}}),
        (f"{HEAD}.containers.0.env", [{"name": "A", "value": 1}]),
        (f"{HEAD}.containers.0.env", [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]),
        (f"{HEAD}.containers.0.volumeMounts", [{"name": "nothing", "mountPath": "/dev/shm"}]),
        (f"{HEAD}.containers.0.securityContext", {}),
        (f"{HEAD}.volumes", [{"name": "host", "hostPath": {"path": "/"}}]),
        (f"{HEAD}.hostNetwork", True),
        ("metadata.name", "A_Run"),
        ("metadata.labels", {"shoal/what": "not a value!"}),
        ("spec.managedBy", "ray.io/kuberay-operator"),
    ],
)
def test_a_planted_fault_is_found(path: str, value: Any) -> None:
    assert faults(spoilt(one("RayJob"), path, value))


def test_faults_in_core_objects_are_found() -> None:
    assert faults(spoilt(one("NetworkPolicy"), "spec.ingres", []))
    assert faults(spoilt(one("PodDisruptionBudget"), "spec.minAvailable", [1]))
    assert faults(spoilt(one("ConfigMap"), "data", {"job.yaml": 1}))
    assert faults(spoilt(one("ServiceAccount"), "automountServiceAccountToken", "no"))


# What the operator refuses although its CRDs do not


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("metadata.name", "a" * 48, "at most 47"),
        ("metadata.name", "4-runs", "a letter first"),
        ("spec.submissionMode", "Sidecar", "K8sJobMode"),
        ("spec.submissionMode", "SidecarMode", "submitterPodTemplate"),
        ("spec.submissionMode", "InteractiveMode", "cannot be with InteractiveMode"),
        ("spec.ttlSecondsAfterFinished", -1, "at least 0"),
        ("spec.backoffLimit", -1, "at least 0"),
        ("spec.activeDeadlineSeconds", 0, "at least 1"),
        ("spec.shutdownAfterJobFinishes", False, "needs shutdownAfterJobFinishes"),
        ("spec.runtimeEnvYAML", "a: [", "is not YAML"),
        ("spec.submitterPodTemplate.spec.restartPolicy", "Always", "Never or OnFailure"),
        ("spec.rayClusterSpec", None, "neither rayClusterSpec nor clusterSelector"),
        (f"{CLUSTER}.rayVersion", "", "token authentication needs it"),
        (f"{CLUSTER}.rayVersion", "2.51.1", "use 2.52.0 or later"),
        (f"{CLUSTER}.headGroupSpec.resources", {"CPU": "1"}, "both say what Ray has"),
        (f"{CLUSTER}.headGroupSpec.rayStartParams", {"labels": "a=b"}, "labels"),
        (f"{CLUSTER}.headGroupSpec.template.metadata.labels", {"app.kubernetes.io/name": "x"}, "operator's own"),
        (f"{HEAD}.containers", [], "has no container"),
        (f"{HEAD}.containers.0.env", [{"name": "RAY_REDIS_ADDRESS", "value": "a"}], "operator's own"),
        (f"{HEAD}.containers.0.volumeMounts", [], "/dev/shm"),
        (f"{WORKER}.maxReplicas", 0, "minReplicas <= replicas <= maxReplicas"),
    ],
)
def test_the_operators_own_rules_are_kept(path: str, value: Any, words: str) -> None:
    found = [str(problem) for problem in operator.problems([spoilt(one("RayJob"), path, value)])]
    assert any(words in line for line in found), found


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (f"{HEAD}.restartPolicy", "Always", "Never with autoscaler v2"),
        (f"{HEAD}.automountServiceAccountToken", False, "asks the API server"),
        (f"{WORKER}.suspend", True, "cannot be with autoscaling"),
    ],
)
def test_the_operators_rules_of_autoscaling_are_kept(path: str, value: Any, words: str) -> None:
    found = [str(problem) for problem in operator.problems([spoilt(one("RayJob", "kuberay-h100"), path, value)])]
    assert any(words in line for line in found), found


def test_a_budget_of_pods_without_a_scale_is_a_number() -> None:
    budget = spoilt(one("PodDisruptionBudget"), "spec", {"maxUnavailable": 1, "selector": {}})
    assert "minAvailable" in str(next(operator.problems([budget])))


def test_a_pool_has_a_name_that_the_operator_takes() -> None:
    body = yaml.safe_load((ROOT / "cluster" / "kuberay.yaml").read_text())
    body["kubernetes"]["name"] = "a" * 54
    made = MODELS["cluster"].model_validate(body, strict=True)
    assert isinstance(made, ClusterProfile)
    with pytest.raises(SpecError, match="at most 53"):
        render.pool(made)
