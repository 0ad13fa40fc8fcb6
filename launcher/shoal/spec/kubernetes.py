"""What a profile says of Kubernetes: pods, worker groups, queues and who may reach them, under Kubernetes' own names."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from shoal.spec.base import Frozen

Label = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"),
    Field(
        json_schema_extra={"$comment": "up to 63 lower-case letters, digits and dashes, a letter first, no dash last"}
    ),
]
"""A DNS label that begins with a letter: what names of namespaces, accounts and groups are."""
Subdomain = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"),
    Field(
        json_schema_extra={"$comment": "lower-case letters, digits, dashes and dots, a letter or digit first and last"}
    ),
]
Image = Annotated[
    str,
    StringConstraints(
        pattern=r"^[a-z0-9][a-z0-9._:/-]*[a-z0-9](:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?$"
    ),
]
Key = Annotated[
    str,
    StringConstraints(
        pattern=r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
    ),
]
"""Key of a label, an annotation or a taint."""
Value = Annotated[
    str,
    StringConstraints(pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$"),
    Field(
        json_schema_extra={"$comment": "up to 63 letters, digits, dashes, dots and _, a letter or digit first and last"}
    ),
]
"""Value of a label."""
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
GpuResource = Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]+/([a-z0-9.-]*-)?gpu$")]
Seconds = Annotated[int, Field(ge=0, le=2**31 - 1)]


class TolerationSpec(Frozen):
    key: Key | None = None
    """Taint that is tolerated; default: every one."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """`Equal` compares the taint's value too."""
    value: Value | None = None
    """The taint's value, for Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect that is tolerated; default: every one."""


class CacheSpec(Frozen):
    """The volume for downloaded models and token shards; it lives as long as its pod."""

    medium: Literal["disk", "memory", "ephemeral"] = "disk"
    """`disk`: the node's own, an emptyDir. `memory`: a tmpfs, which counts as the pod's memory. `ephemeral`: a volume
    of a storage class. A hostPath is not offered: it outlives its pod, and strict namespaces refuse it."""
    size_gib: int = Field(default=50, ge=1)
    """Its size; a pod that fills more of an emptyDir is evicted."""
    storage_class_name: Subdomain | None = None
    """Storage class, for ephemeral; default: the cluster's own."""


class HeadSpec(Frozen):
    """The pod of the driver and of Ray's own services. It has no GPU and takes no worker."""

    cpus: int = Field(default=2, ge=1)
    """CPU cores."""
    memory_gib: int = Field(default=8, ge=2)
    """Memory."""
    shm_gib: int = Field(default=1, ge=1)
    """Size of /dev/shm, which counts as the pod's memory."""
    cache: CacheSpec = CacheSpec(size_gib=20)
    """For the model's tokenizer and the index of the data."""
    node_selector: dict[Key, Value] = {}
    """Labels of the nodes that it may lie on; a head on a spot node ends the run's cluster with it."""
    tolerations: list[TolerationSpec] = []
    """Taints that it tolerates."""
    evictable: bool = False
    """Whether a node's drain may evict it, which ends the run's cluster; false lets the drain wait for the run's end."""


class WorkerGroupSpec(Frozen):
    """Pods that are alike: one GPU type, one price, one kind of node."""

    name: Label
    """Name of the group: lower-case letters, digits and dashes."""
    max_replicas: int = Field(ge=1, le=4096)
    """The most pods there are of it; without autoscaling, as many as there are."""
    min_replicas: int | None = Field(default=None, ge=0, le=4096)
    """The fewest pods there are of it, with autoscaling; default: 0 then, and max_replicas without."""
    cpus: int = Field(ge=1)
    """CPU cores per pod."""
    memory_gib: int = Field(ge=1)
    """Memory per pod, /dev/shm and a cache in memory included."""
    gpus: int = Field(default=0, ge=0)
    """GPUs per pod; each worker drives one."""
    gpu_resource: GpuResource = "nvidia.com/gpu"
    """Resource that the GPUs are asked for by; it ends in gpu, which is how Ray knows them."""
    accelerator_type: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$")] | None = None
    """GPU type as Ray names it, such as H100; needed where several groups have different ones."""
    shm_gib: int = Field(default=2, ge=1)
    """Size of /dev/shm, for Ray's object store and NCCL; a pod without a volume has 64 MB."""
    cache: CacheSpec = CacheSpec()
    """Where models and token shards are kept on the node."""
    spot: bool = False
    """The nodes may be taken away at any time: pods say so to Ray, and the profile must say how such nodes are found."""
    node_selector: dict[Key, Value] = {}
    """Labels of the nodes that the pods may lie on."""
    tolerations: list[TolerationSpec] = []
    """Taints that the pods tolerate."""
    runtime_class_name: Label | None = None
    """Runtime class of the pods, such as nvidia, where the nodes need one."""


class AutoscalingSpec(Frozen):
    """Ray's own autoscaler, in a container beside the head's: pods come and go with what the run asks for."""

    idle_timeout_seconds: int = Field(default=120, ge=1)
    """Seconds without work after which a pod above min_replicas is given back."""
    upscaling_mode: Literal["Default", "Conservative"] = "Default"
    """`Conservative` never has more pods pending than there are in the cluster."""


class ServiceAccountSpec(Frozen):
    name: Label = "shoal"
    """Account that the pods run as."""
    create: bool = True
    """Render it too; false where the platform has made it."""
    annotations: dict[Key, str] = {}
    """What gives it a cloud identity, such as eks.amazonaws.com/role-arn: no key is needed then."""


class SecretKeyRef(Frozen):
    name: Subdomain
    """Name of the Secret, in the same namespace."""
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$")]
    """Key in it: letters, digits, dashes, dots and _."""


class QueueSpec(Frozen):
    """Who decides when the pods may start; all of them at once, or none."""

    scheduler: Literal["kueue", "volcano", "yunikorn"]
    """`kueue` admits the whole run by quota; `volcano` and `yunikorn` schedule the pods as a gang, where the operator was
    installed with them."""
    name: Annotated[Value, Field(min_length=1)]
    """The queue: a LocalQueue, a Volcano queue, or a YuniKorn queue such as root.research."""
    priority: Label | None = None
    """Kueue's WorkloadPriorityClass, or the PriorityClass of a Volcano gang."""


class PodSecuritySpec(Frozen):
    """Every container runs without root, without capabilities and under the runtime's own seccomp profile."""

    run_as_user: int = Field(default=1000, ge=1)
    """User id; the image's own."""
    run_as_group: int = Field(default=1000, ge=1)
    """Group id."""
    fs_group: int = Field(default=1000, ge=1)
    """Group that volumes of a storage class belong to."""
    read_only_root_filesystem: bool = True
    """Write to volumes alone: the cache, the home folder, /tmp and /dev/shm."""


class NetworkPolicySpec(Frozen):
    """Who may reach the pods: each other, the operator, and nobody else."""

    enabled: bool = True
    """Render a NetworkPolicy; false where the platform has one of its own."""
    operator_namespace: Label = "kuberay-system"
    """Namespace of the KubeRay operator, which asks the head's dashboard how the job is."""
    monitoring_namespace: Label | None = None
    """Namespace that may read the metrics on port 8080; default: none."""


class KubernetesSpec(Frozen):
    """Where and how the pods of a run are made by the KubeRay operator."""

    context: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Context of the kubeconfig that `shoal run`, `logs`, `stop` and `resume` use; default: the current one, and in a pod its
    own account."""
    namespace: Label = "shoal"
    """Namespace of everything that is rendered."""
    name: Label = "shoal"
    """Name of the standing cluster that `shoal render --pool` renders."""
    image: Image
    """Image with Shoal and Ray, with a tag that does not move or a digest: REPOSITORY:TAG or REPOSITORY@sha256:DIGEST, the
    repository in lower case."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When nodes ask the registry."""
    image_pull_secrets: list[Subdomain] = []
    """Names of Secrets to pull the image with."""
    ray_version: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")] = "2.60.0"
    """Ray in the image, as three numbers such as 2.60.0; the operator goes by it."""
    head: HeadSpec = HeadSpec()
    """The pod that the driver runs in."""
    worker_groups: list[WorkerGroupSpec] = Field(min_length=1)
    """The pods that the workers run in."""
    autoscaling: AutoscalingSpec | None = None
    """Let Ray add and remove pods between min_replicas and max_replicas; default: a fixed number."""
    service_account: ServiceAccountSpec = ServiceAccountSpec()
    """Who the pods are to the cloud and to Kubernetes."""
    env: dict[Variable, str] = {}
    """Environment variables of the pods, such as NCCL_DEBUG; never a credential."""
    secret_env: dict[Variable, SecretKeyRef] = {}
    """Environment variables whose values lie in a Secret: the variable's name -> its name and key."""
    auth: Literal["token", "disabled"] = "token"
    """Ray's own authentication: the operator makes a token for each cluster, and nobody without it gets in."""
    queue: QueueSpec | None = None
    """Kueue, Volcano or YuniKorn; default: pods start as the scheduler finds room for each."""
    priority_class_name: Subdomain | None = None
    """Priority class of the pods."""
    backoff_limit: int = Field(default=2, ge=0)
    """Times that a failed run is started again in a new cluster; each goes on from the newest checkpoint."""
    submitter_backoff_limit: int = Field(default=2, ge=0)
    """Times that the pod which submits the job, and shows its log, is made again; the run itself does not notice."""
    ttl_seconds_after_finished: Seconds = 600
    """Seconds that the pods of an ended run are kept, to look at them; its folder in the store stays in any case."""
    active_deadline_seconds: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """Seconds after which a run is ended, queueing included; default: never."""
    termination_grace_period_seconds: Annotated[int, Field(ge=30, le=86400)] | Literal["auto"] = "auto"
    """Seconds between the notice that a pod must go and its end; `auto`: twice save_seconds and a minute, else 180."""
    save_seconds: float | None = Field(default=None, gt=0)
    """How long a checkpoint took, upload included, in a run such as this: `shoal report RUN` says it."""
    init_wait_seconds: int | None = Field(default=None, ge=1)
    """Seconds that a worker's pod waits for the head before it fails; default: the operator's own wait, which does not end."""
    pod_disruption_budget: bool = True
    """Ask drains of nodes to take one worker's pod at a time, and the head's not at all."""
    pod_security: PodSecuritySpec = PodSecuritySpec()
    """What the containers may do on their nodes."""
    network_policy: NetworkPolicySpec = NetworkPolicySpec()
    """Who may reach the pods."""
    pod_annotations: dict[Key, str] = {}
    """Further annotations of the pods, such as those of a metrics scraper."""
