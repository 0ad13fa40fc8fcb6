"""RayJob and RayCluster: what the operator makes pods from."""

import json
import shlex

from shoal.kube import pods
from shoal.kube.names import FILES, HOME, RUN_ID, SWEEP, Manifest, metadata, min_replicas
from shoal.spec.job import JobSpec
from shoal.spec.kubernetes import KubernetesSpec, QueueSpec, WorkerGroupSpec

API = "ray.io/v1"
HALF = 2**30 // 2
"""Bytes: the object store takes half of each GiB of /dev/shm; NCCL and gloo have the other half."""


def entrypoint(job: JobSpec, run_id: str) -> str:
    """The command that goes on where the last try of it ended, as often as it is submitted."""
    verb = ["run"] if job.sweep is None else ["sweep", "run"]
    return shlex.join(["shoal", *verb, f"{FILES}/job.yaml", "--on", f"{FILES}/cluster.yaml", "--run-id", run_id])


def ray_job(spec: KubernetesSpec, job: JobSpec, name: str, run_id: str, files: str) -> Manifest:
    """One run, or one sweep."""
    about = metadata(name, spec, name)
    about["labels"] |= queue_labels(spec.queue, name)
    about["annotations"] = {RUN_ID: run_id} | ({} if job.sweep is None else {SWEEP: "true"})
    body: Manifest = {
        "submissionMode": "K8sJobMode",
        "entrypoint": entrypoint(job, run_id),
        # Each try is a new cluster: also the loss of the head ends in a finished run.
        "backoffLimit": spec.backoff_limit,
        # The pod that submits is made again and finds the job by its id; it does not start it twice.
        "submitterConfig": {"backoffLimit": spec.submitter_backoff_limit},
        "submitterPodTemplate": pods.submitter(spec, name),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": spec.ttl_seconds_after_finished,
        "rayClusterSpec": cluster_spec(spec, name, files),
    }
    if spec.active_deadline_seconds:
        body["activeDeadlineSeconds"] = spec.active_deadline_seconds
    return {"apiVersion": API, "kind": "RayJob", "metadata": about, "spec": body}


def ray_cluster(spec: KubernetesSpec, name: str) -> Manifest:
    """A standing cluster, for many runs."""
    about = metadata(name, spec, name)
    about["labels"] |= queue_labels(spec.queue, name)
    return {"apiVersion": API, "kind": "RayCluster", "metadata": about, "spec": cluster_spec(spec, name, None)}


def cluster_spec(spec: KubernetesSpec, name: str, files: str | None) -> Manifest:
    body: Manifest = {
        "rayVersion": spec.ray_version,
        "authOptions": {"mode": spec.auth},
        "enableInTreeAutoscaling": spec.autoscaling is not None,
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "enableIngress": False,
            "rayStartParams": {
                "num-cpus": "0",  # no worker and no task lands beside the driver
                "num-gpus": "0",
                "object-store-memory": str(spec.head.shm_gib * HALF),
            },
            "template": pods.head(spec, name, files),
        },
        "workerGroupSpecs": [_group(spec, name, group) for group in spec.worker_groups],
    }
    if spec.autoscaling:
        body["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": spec.autoscaling.idle_timeout_seconds,
            "upscalingMode": spec.autoscaling.upscaling_mode,
            "imagePullPolicy": spec.image_pull_policy,
            "securityContext": pods.container_security(spec),
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "home", "mountPath": HOME}],  # noqa: S108
            "resources": {side: {"cpu": "500m", "memory": "1Gi"} for side in ("requests", "limits")},
        }
    return body


def _group(spec: KubernetesSpec, name: str, group: WorkerGroupSpec) -> Manifest:
    least = min_replicas(group, spec)
    params = {"object-store-memory": str(group.shm_gib * HALF)}
    if spec.autoscaling and group.accelerator_type:
        # Ray finds a GPU's type on a node that is there; the autoscaler must know it of one that is not.
        params["resources"] = (
            f"'{json.dumps({f'accelerator_type:{group.accelerator_type}': 1}, separators=(',', ':'))}'"
        )
    body: Manifest = {
        "groupName": group.name,
        "replicas": least if spec.autoscaling else group.max_replicas,
        "minReplicas": least,
        "maxReplicas": group.max_replicas,
        "rayStartParams": params,
        "template": pods.worker(spec, name, group),
    }
    if group.spot:
        body["labels"] = {"ray.io/market-type": "spot"}
    return body


def queue_labels(queue: QueueSpec | None, name: str) -> dict[str, str]:
    """Labels by which a scheduler knows its own; the operator copies a RayJob's to its cluster."""
    if queue is None:
        return {}
    keys = {
        "kueue": ("kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"),
        "volcano": ("volcano.sh/queue-name", "ray.io/priority-class-name"),
        "yunikorn": ("yunikorn.apache.org/queue", ""),
    }
    where, priority = keys[queue.scheduler]
    labels = {where: queue.name}
    if queue.priority and priority:
        labels[priority] = queue.priority
    if queue.scheduler == "yunikorn":
        labels |= {"yunikorn.apache.org/app-id": name, "ray.io/gang-scheduling-enabled": "true"}
    return labels
