"""What stands around the pods: their account, job and profile as files, who may reach them, who may evict them."""

import yaml

from shoal.kube.names import CACHE, PART_OF, RUN_ID, Manifest, fits, instance, kubernetes, metadata, min_replicas
from shoal.spec.cluster import ClusterProfile
from shoal.spec.job import JobSpec
from shoal.spec.kubernetes import KubernetesSpec

DASHBOARD, METRICS = 8265, 8080


def service_account(spec: KubernetesSpec) -> Manifest:
    about: Manifest = {"name": spec.service_account.name, "namespace": spec.namespace, "labels": dict(PART_OF)}
    if spec.service_account.annotations:
        about["annotations"] = dict(spec.service_account.annotations)
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": about,
        "automountServiceAccountToken": False,
    }


def in_cluster(profile: ClusterProfile) -> ClusterProfile:
    """The profile as the driver in the head's pod has it: the Ray that it is part of, and the pods' own cache."""
    storage = profile.storage.model_copy(update={"cache": CACHE})
    return profile.model_copy(update={"kind": "ray", "address": "auto", "kubernetes": None, "storage": storage})


def files(job: JobSpec, profile: ClusterProfile, name: str, run_id: str) -> Manifest:
    """Job and profile as the driver reads them. Credentials are in them by name alone: specs hold no others."""
    spec = kubernetes(profile)
    written = in_cluster(profile).model_dump(mode="json", exclude_unset=True, exclude={"kubernetes"})
    about = metadata(f"{name}-files", spec, name)
    about["annotations"] = {RUN_ID: run_id}
    texts = {"job.yaml": job.model_dump(mode="json", exclude_unset=True), "cluster.yaml": written}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": about,
        "immutable": True,
        "data": {
            file: yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=120) for file, body in texts.items()
        },
    }


def network_policy(spec: KubernetesSpec, name: str) -> Manifest:
    """Everything in for each other, the dashboard for the operator, the metrics for whoever is named; no more.

    A client's port (10001) and the dashboard are open to no other pod, and to nothing outside the cluster.
    """
    asked = spec.network_policy
    ingress: list[Manifest] = [
        {"from": [{"podSelector": {"matchLabels": instance(name)}}]},
        {"from": [_namespace(asked.operator_namespace)], "ports": [_tcp(DASHBOARD)]},
    ]
    if asked.monitoring_namespace:
        ingress.append({"from": [_namespace(asked.monitoring_namespace)], "ports": [_tcp(METRICS)]})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(name, spec, name),
        "spec": {"podSelector": {"matchLabels": instance(name)}, "policyTypes": ["Ingress"], "ingress": ingress},
    }


def disruption_budgets(profile: ClusterProfile, name: str) -> list[Manifest]:
    """Drains of nodes take one worker's pod at a time of those that the run needs, and the head's only where it may go.

    minAvailable as a number: a RayCluster has no scale subresource, so Kubernetes takes nothing else for its pods.
    """
    spec = kubernetes(profile)
    largest = max(fits(group, profile) for group in spec.worker_groups)
    always = sum(min_replicas(group, spec) for group in spec.worker_groups)
    least = max(always, -(-profile.min_workers // largest))
    wanted = {"head": 0 if spec.head.evictable else 1, "worker": least - 1}
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(f"{name}-{component}", spec, name, component),
            "spec": {"minAvailable": count, "selector": {"matchLabels": instance(name, component)}},
        }
        for component, count in wanted.items()
        if count > 0
    ]


def _namespace(name: str) -> Manifest:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _tcp(port: int) -> Manifest:
    return {"protocol": "TCP", "port": port}
