"""Pod templates: the head, the workers, and the pod that submits the job."""

from shoal.kube.names import CACHE, FILES, HOME, Manifest, grace_seconds, instance
from shoal.spec.kubernetes import CacheSpec, KubernetesSpec, TolerationSpec, WorkerGroupSpec

LEAVE_S = 10
"""What is left of the grace period when the preStop hook gives up waiting, for Ray to end in order."""
SCRATCH_GIB = 10
"""Ray's logs and spilled objects, compiled kernels, and the home folder."""
PORTS = {"gcs-server": 6379, "dashboard": 8265, "metrics": 8080}
"""Of the head, and so of its Service: Ray Client's (10001) is not among them."""
SUBMITTER = {
    "requests": {"cpu": "200m", "memory": "256Mi", "ephemeral-storage": "256Mi"},
    "limits": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"},
}
WAIT_FOR_HEAD = """\
until (echo > "/dev/tcp/$FQ_RAY_IP/6379") 2>/dev/null; do
  if [ "$SECONDS" -ge {seconds} ]; then
    echo "no Ray at $FQ_RAY_IP:6379 after {seconds} s: is the head's pod up?" >&2
    exit 1
  fi
  echo "waiting for Ray at $FQ_RAY_IP:6379: $SECONDS s"
  sleep 2
done
"""


def head(spec: KubernetesSpec, name: str, files: str | None) -> Manifest:
    """The head's pod; `files` names the ConfigMap with job and profile, None for a standing cluster."""
    asked = spec.head
    volumes, mounts = _volumes(asked.shm_gib, asked.cache)
    if files:
        volumes.append({"name": "files", "configMap": {"name": files, "defaultMode": 0o444}})
        mounts.append({"name": "files", "mountPath": FILES, "readOnly": True})
    # Ray's job server, when it is told to stop a job, would kill the driver after 3 s.
    patience = {"RAY_JOB_STOP_WAIT_TIME_S": str(grace_seconds(spec) - LEAVE_S)}
    container = {
        **_container(spec, "ray-head", mounts, patience),
        "ports": [{"name": port, "containerPort": number} for port, number in PORTS.items()],
        "resources": _resources(asked.cpus, asked.memory_gib, asked.cache, {}),
        "lifecycle": _leaving("driver", spec),
    }
    pod = {
        **_pod(spec, asked.node_selector, asked.tolerations),
        # Ray's autoscaler, in the same pod, asks the API server for pods; nobody else of ours talks to it.
        "automountServiceAccountToken": spec.autoscaling is not None,
        "terminationGracePeriodSeconds": grace_seconds(spec),
        "containers": [container],
        "volumes": volumes,
    }
    return _template(spec, name, "head", pod)


def worker(spec: KubernetesSpec, name: str, group: WorkerGroupSpec) -> Manifest:
    """A pod of a worker group."""
    volumes, mounts = _volumes(group.shm_gib, group.cache)
    gpus = {group.gpu_resource: str(group.gpus)} if group.gpus else {}
    container = {
        **_container(spec, "ray-worker", mounts, {}),
        "ports": [{"name": "metrics", "containerPort": PORTS["metrics"]}],
        "resources": _resources(group.cpus, group.memory_gib, group.cache, gpus),
        "lifecycle": _leaving("node", spec),
    }
    pod = {
        **_pod(spec, group.node_selector, group.tolerations),
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": grace_seconds(spec),
        "containers": [container],
        "volumes": volumes,
    }
    if group.runtime_class_name:
        pod["runtimeClassName"] = group.runtime_class_name
    if spec.init_wait_seconds:
        pod["initContainers"] = [_wait_for_head(spec, mounts)]
    return _template(spec, name, "worker", pod)


def submitter(spec: KubernetesSpec, name: str) -> Manifest:
    """The pod that hands the job to Ray and shows its log. It holds nothing: another takes its place at any time."""
    mounts = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "home", "mountPath": HOME}]  # noqa: S108  in a pod
    container = {**_plain(spec, "ray-job-submitter", mounts), "resources": SUBMITTER}
    pod = {
        **_pod(spec, spec.head.node_selector, spec.head.tolerations),
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [_scratch("tmp", 1), _scratch("home", 1)],
    }
    return _template(spec, name, "submitter", pod)


def container_security(spec: KubernetesSpec) -> Manifest:
    return {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": spec.pod_security.read_only_root_filesystem,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _template(spec: KubernetesSpec, name: str, component: str, pod: Manifest) -> Manifest:
    metadata: Manifest = {"labels": instance(name, component)}
    if spec.pod_annotations:
        metadata["annotations"] = dict(spec.pod_annotations)
    return {"metadata": metadata, "spec": pod}


def _pod(spec: KubernetesSpec, node_selector: dict[str, str], tolerations: list[TolerationSpec]) -> Manifest:
    security = spec.pod_security
    pod: Manifest = {
        "serviceAccountName": spec.service_account.name,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": security.run_as_user,
            "runAsGroup": security.run_as_group,
            "fsGroup": security.fs_group,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in spec.image_pull_secrets]
    if spec.priority_class_name:
        pod["priorityClassName"] = spec.priority_class_name
    if node_selector:
        pod["nodeSelector"] = dict(node_selector)
    if tolerations:
        pod["tolerations"] = [one.model_dump(exclude_none=True) for one in tolerations]
    return pod


def _plain(spec: KubernetesSpec, name: str, mounts: list[Manifest]) -> Manifest:
    return {
        "name": name,
        "image": spec.image,
        "imagePullPolicy": spec.image_pull_policy,
        "securityContext": container_security(spec),
        "volumeMounts": mounts,
    }


def _container(spec: KubernetesSpec, name: str, mounts: list[Manifest], ours: dict[str, str]) -> Manifest:
    """Ray's own container, which the operator wants first; it adds the command, probes and its own variables."""
    # The preStop hook has drained the node already; Ray would do so for another 30 s.
    named = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", **ours, **dict(sorted(spec.env.items()))}
    plain = [{"name": key, "value": value} for key, value in named.items()]
    secret = [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": where.name, "key": where.key}}}
        for key, where in sorted(spec.secret_env.items())
    ]
    return {**_plain(spec, name, mounts), "env": [*plain, *secret]}


def _wait_for_head(spec: KubernetesSpec, mounts: list[Manifest]) -> Manifest:
    """A wait that ends. Plain TCP: Ray's own health check needs a token that the operator gives to its own wait alone."""
    script = WAIT_FOR_HEAD.format(seconds=spec.init_wait_seconds)
    small = {"cpu": "100m", "memory": "64Mi"}
    return {
        **_plain(spec, "wait-for-head", [one for one in mounts if one["name"] == "tmp"]),
        "command": ["/bin/bash", "-c", script],
        "resources": {"requests": small, "limits": small},
    }


def _leaving(who: str, spec: KubernetesSpec) -> Manifest:
    """What Kubernetes runs before it stops the container, within the grace period; told in the pod's log."""
    seconds = grace_seconds(spec) - LEAVE_S
    command = f"python -m shoal.backends.leaving {who} {seconds} >/proc/1/fd/1 2>&1"
    return {"preStop": {"exec": {"command": ["/bin/bash", "-c", command]}}}


def _resources(cpus: int, memory_gib: int, cache: CacheSpec, more: dict[str, str]) -> Manifest:
    """Requests equal limits, so that a pod is never the first to be evicted."""
    disk = SCRATCH_GIB + 1 + (cache.size_gib if cache.medium == "disk" else 0)
    each = {"cpu": str(cpus), "memory": f"{memory_gib}Gi", "ephemeral-storage": f"{disk}Gi", **more}
    return {"requests": dict(each), "limits": dict(each)}


def _volumes(shm_gib: int, cache: CacheSpec) -> tuple[list[Manifest], list[Manifest]]:
    """All that a container may write to, and where."""
    # The operator makes a volume at /dev/shm too, as large as all of the pod's memory, unless one is there.
    memory = {"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_gib}Gi"}}
    volumes: list[Manifest] = [memory, _cache(cache), _scratch("tmp", SCRATCH_GIB), _scratch("home", 1)]
    paths = {"shared-mem": "/dev/shm", "cache": CACHE, "tmp": "/tmp", "home": HOME}  # noqa: S108  in a pod
    return volumes, [{"name": name, "mountPath": path} for name, path in paths.items()]


def _scratch(name: str, size_gib: int) -> Manifest:
    return {"name": name, "emptyDir": {"sizeLimit": f"{size_gib}Gi"}}


def _cache(cache: CacheSpec) -> Manifest:
    size = f"{cache.size_gib}Gi"
    if cache.medium != "ephemeral":
        medium = {"medium": "Memory"} if cache.medium == "memory" else {}
        return {"name": "cache", "emptyDir": {**medium, "sizeLimit": size}}
    claim: Manifest = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    if cache.storage_class_name:
        claim["storageClassName"] = cache.storage_class_name
    return {"name": "cache", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}
