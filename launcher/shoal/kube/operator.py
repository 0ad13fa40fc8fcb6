"""Rules of the KubeRay operator (1.7) that its CRDs do not hold: what it would accept, and then report as invalid.

Of `ValidateRayJobSpec`, `ValidateRayClusterSpec` and their metadata's rules in ray-operator/controllers/ray/utils, for what
Shoal can render or a person can patch into it, and of what the operator and Kubernetes do with pods afterwards.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from shoal.errors import Problem
from shoal.kube.names import MOST_JOB_NAME, Manifest

MOST_CLUSTER_NAME = 53
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
OWN_LABELS = (
    "app.kubernetes.io/name",
    "app.kubernetes.io/created-by",
    "ray.io/cluster",
    "ray.io/node-type",
    "ray.io/group",
)
"""Labels of pods that the operator sets, and its services select by."""
OWN_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
OWN_VARIABLES = (
    "RAY_CLUSTER_NAME",
    "RAY_REDIS_ADDRESS",
    "REDIS_PASSWORD",
    "REDIS_USERNAME",
    "RAY_enable_autoscaler_v2",
)


def problems(manifests: Iterable[Manifest]) -> Iterator[Problem]:
    """Everything in RayJobs and RayClusters that the operator would refuse, or that would not work with it."""
    for one in manifests:
        match one["kind"]:
            case "RayJob":
                yield from _job(one)
            case "RayCluster":
                yield from _name(one, MOST_CLUSTER_NAME)
                yield from _cluster("spec", _part(one, "spec"))
            case "PodDisruptionBudget":
                yield from _budget(_part(one, "spec"))


def _job(job: Manifest) -> Iterator[Problem]:
    spec = _part(job, "spec")
    yield from _name(job, MOST_JOB_NAME)
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in MODES:
        yield Problem("spec.submissionMode", f"is {mode}", f"use one of {', '.join(MODES)}")
    yield from _numbers(spec)
    ends = spec.get("shutdownAfterJobFinishes", False)
    if spec.get("suspend") and not ends:
        yield Problem("spec.suspend", "needs shutdownAfterJobFinishes", "set it to true")
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not ends:
        yield Problem("spec.ttlSecondsAfterFinished", "needs shutdownAfterJobFinishes", "set it to true")
    selected, cluster = spec.get("clusterSelector"), spec.get("rayClusterSpec")
    if not selected and cluster is None:
        yield Problem("spec", "has neither rayClusterSpec nor clusterSelector", "give one of them")
    if selected and spec.get("suspend"):
        yield Problem("spec.suspend", "cannot be with a clusterSelector", "take one of them out")
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield Problem("spec.backoffLimit", "cannot be with InteractiveMode", "set it to 0")
    if mode == "SidecarMode":
        for field in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if spec.get(field):
                yield Problem(f"spec.{field}", "cannot be with SidecarMode", "use K8sJobMode")
    if mode == "K8sJobMode" and spec.get("submitterPodTemplate"):
        pod = _part(_part(spec, "submitterPodTemplate"), "spec")
        if pod.get("restartPolicy") not in ("Never", "OnFailure"):
            yield Problem(
                "spec.submitterPodTemplate.spec.restartPolicy", "must be Never or OnFailure in a Job", "set Never"
            )
    try:
        yaml.safe_load(spec.get("runtimeEnvYAML") or "")
    except yaml.YAMLError:
        yield Problem("spec.runtimeEnvYAML", "is not YAML", "mend it")
    if cluster is not None:
        yield from _cluster("spec.rayClusterSpec", cluster)


def _numbers(spec: Manifest) -> Iterator[Problem]:
    for field, least in (("ttlSecondsAfterFinished", 0), ("backoffLimit", 0), ("activeDeadlineSeconds", 1)):
        value = spec.get(field)
        if isinstance(value, int) and value < least:
            yield Problem(f"spec.{field}", f"is {value}", f"give at least {least}")


def _name(one: Manifest, most: int) -> Iterator[Problem]:
    name = str(_part(one, "metadata").get("name", ""))
    if len(name) > most:
        yield Problem("metadata.name", f"{name} has {len(name)} characters", f"use at most {most}")
    if not DNS_1035.fullmatch(name):
        what = f"{name} is not made of lower-case letters, digits and dashes with a letter first"
        yield Problem("metadata.name", what, "choose another")


def _cluster(where: str, spec: Manifest) -> Iterator[Problem]:
    head = _part(spec, "headGroupSpec")
    groups: list[Manifest] = spec.get("workerGroupSpecs") or []
    scales = bool(spec.get("enableInTreeAutoscaling"))
    second = scales and _part(spec, "autoscalerOptions").get("version") == "v2"
    if _part(spec, "authOptions").get("mode") == "token":
        version = str(spec.get("rayVersion", ""))
        if not re.fullmatch(r"\d+\.\d+\.\d+.*", version):
            yield Problem(
                f"{where}.rayVersion", f"is {version or 'missing'}, and token authentication needs it", "say it"
            )
        elif tuple(map(int, version.split(".")[:2])) < (2, 52):
            yield Problem(f"{where}.rayVersion", f"{version} has no token authentication", "use 2.52.0 or later")
    yield from _pods(f"{where}.headGroupSpec", head, second)
    if scales and _part(_part(head, "template"), "spec").get("automountServiceAccountToken") is False:
        what = "is false, and the autoscaler asks the API server"
        yield Problem(f"{where}.headGroupSpec.template.spec.automountServiceAccountToken", what, "set it to true")
    names = [str(group.get("groupName")) for group in groups]
    for index, group in enumerate(groups):
        here = f"{where}.workerGroupSpecs[{index}]"
        yield from _pods(here, group, second)
        if names.count(names[index]) > 1:
            yield Problem(f"{here}.groupName", f"{names[index]} is there twice", "give each group a name of its own")
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 0)
        count = group.get("replicas", least)
        if not 0 <= least <= count <= most:
            what = f"{least} <= {count} <= {most} is not so"
            yield Problem(here, f"minReplicas <= replicas <= maxReplicas: {what}", "put them in order")
        if scales and group.get("suspend"):
            yield Problem(f"{here}.suspend", "cannot be with autoscaling", "take it out")


def _pods(where: str, group: Manifest, second: bool) -> Iterator[Problem]:
    """One group: its parameters against its resources, and the container that must be Ray's."""
    params = _part(group, "rayStartParams")
    if group.get("resources") and any(params.get(name) for name in OWN_RESOURCES):
        yield Problem(f"{where}.resources", "and rayStartParams both say what Ray has", "use one of them")
    if "labels" in params:
        yield Problem(f"{where}.rayStartParams.labels", "is not taken", "use the group's own labels")
    template = _part(group, "template")
    for label in OWN_LABELS:
        if label in _part(_part(template, "metadata"), "labels"):
            yield Problem(f"{where}.template.metadata.labels", f"{label} is the operator's own", "take it out")
    pod = _part(template, "spec")
    if second and pod.get("restartPolicy", "Never") != "Never":
        yield Problem(f"{where}.template.spec.restartPolicy", "must be Never with autoscaler v2", "take it out")
    containers: list[Manifest] = pod.get("containers") or []
    if not containers:
        yield Problem(f"{where}.template.spec.containers", "has no container", "the first one is Ray's")
        return
    for variable in containers[0].get("env") or []:
        if variable["name"] in OWN_VARIABLES:
            yield Problem(
                f"{where}.template.spec.containers[0].env", f"{variable['name']} is the operator's own", "take it out"
            )
    if not any(mount["mountPath"] == "/dev/shm" for mount in containers[0].get("volumeMounts") or []):  # noqa: S108
        what = "has no volume at /dev/shm: the operator would make one as large as all of the pod's memory"
        yield Problem(f"{where}.template.spec.containers[0].volumeMounts", what, "add a memory volume of its own size")


def _budget(spec: Manifest) -> Iterator[Problem]:
    """For pods of a controller without a scale subresource, such as a RayCluster's, Kubernetes takes one form alone."""
    if "maxUnavailable" in spec or not isinstance(spec.get("minAvailable"), int):
        what = "must have minAvailable as a number: a RayCluster has no scale subresource"
        yield Problem("spec", what, "give a number of pods")


def _part(one: Manifest, name: str) -> dict[str, Any]:
    part = one.get(name)
    return part if isinstance(part, dict) else {}
