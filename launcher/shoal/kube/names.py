"""Names and labels of everything that is rendered."""

import hashlib
from typing import Any

from shoal.spec.cluster import ClusterProfile
from shoal.spec.kubernetes import KubernetesSpec, WorkerGroupSpec

Manifest = dict[str, Any]
"""One Kubernetes object, or a part of one, as JSON has it."""

MOST_JOB_NAME = 47
"""Characters of a RayJob's name: the operator appends six for its cluster, whose services' names must fit in 63."""
PART_OF = {"app.kubernetes.io/part-of": "shoal"}
RUN_ID = "shoal/run-id"
"""Annotation with the whole id of the run, or of the sweep."""
SWEEP = "shoal/sweep"
"""Annotation of a sweep alone."""
FILES = "/etc/shoal"
"""Where the head's pod finds job and profile."""
CACHE = "/cache"
HOME = "/home/shoal"
"""Home folder of the image's user."""


def kubernetes(profile: ClusterProfile) -> KubernetesSpec:
    assert profile.kubernetes is not None, "checks come first"
    return profile.kubernetes


def resource_name(run_id: str) -> str:
    """A RayJob's name for a run: the id itself where it can be one, else as much of it as fits and a digest of the whole."""
    name = run_id if run_id[0].isalpha() else f"r-{run_id}"
    if name == run_id and len(name) <= MOST_JOB_NAME and not name.endswith("-"):
        return name
    digest = hashlib.sha256(run_id.encode()).hexdigest()[:8]
    return f"{name[: MOST_JOB_NAME - 9].rstrip('-')}-{digest}"


def instance(name: str, component: str = "") -> dict[str, str]:
    """What all pods of one run or pool have in common, and nobody else's.

    app.kubernetes.io/name is not among them: the operator's own head service selects pods by it.
    """
    labels = {"app.kubernetes.io/instance": name, **PART_OF}
    return labels | ({"app.kubernetes.io/component": component} if component else {})


def metadata(name: str, spec: KubernetesSpec, of: str, component: str = "") -> Manifest:
    """Of an object of the run or pool `of`."""
    return {"name": name, "namespace": spec.namespace, "labels": instance(of, component)}


def min_replicas(group: WorkerGroupSpec, spec: KubernetesSpec) -> int:
    """The fewest pods of a group."""
    if group.min_replicas is not None:
        return group.min_replicas
    return 0 if spec.autoscaling else group.max_replicas


def fits(group: WorkerGroupSpec, profile: ClusterProfile) -> int:
    """Workers that a pod of the group holds."""
    each = profile.resources_per_worker
    by_cpu = int(group.cpus // each.cpu)
    return min(by_cpu, int(group.gpus // each.gpu)) if each.gpu else by_cpu


def grace_seconds(spec: KubernetesSpec) -> int:
    """Seconds that a pod has to save and leave: a step and a save may be under way when the notice comes."""
    if spec.termination_grace_period_seconds != "auto":
        return spec.termination_grace_period_seconds
    return 180 if spec.save_seconds is None else round(2 * spec.save_seconds) + 60
