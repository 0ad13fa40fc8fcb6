"""The cluster profile: **where** a job runs and where its files lie. Secrets are named, never written."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from shoal.spec.base import Frozen
from shoal.spec.kubernetes import KubernetesSpec

Location = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
SecretRef = Annotated[str, StringConstraints(pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+)$")]


class CredentialRef(Frozen):
    """Where an S3 key is found, by reference; with nothing set, the usual AWS chain is asked."""

    access_key_env: str | None = None
    """Environment variable that holds the access key id."""
    secret_key_env: str | None = None
    """Environment variable that holds the secret access key."""
    session_token_env: str | None = None
    """Environment variable that holds the session token of a temporary key."""
    profile: str | None = None
    """Profile of the AWS configuration files."""
    file: str | None = None
    """JSON file (mode 0600) with `access_key` and `secret_key`."""
    anonymous: bool = False
    """Read public buckets without a key."""


class S3Spec(Frozen):
    """How s3:// locations are reached."""

    server: Literal["external", "embedded"] = "external"
    """`embedded` starts Shoal's own S3 server on loopback when a command needs it."""
    folder: str = "~/.shoal/store"
    """The embedded server's data."""
    endpoint_url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]+\S*$")] | None = None
    """Endpoint of an S3-compatible store, such as https://s3.example.com:9000; default: AWS."""
    region: str | None = None
    """Region of the store."""
    credentials: CredentialRef = CredentialRef()
    """Where the key is found."""


class StorageSpec(Frozen):
    runs: Location = "s3://shoal/runs"
    """Folder that run folders are made in."""
    prepared: Location = "s3://shoal/prepared"
    """Folder of prepared token shards, shared by all runs."""
    cache: str = "~/.shoal/cache"
    """Folder on each node for downloaded models and token shards."""
    cache_gib: float = Field(default=20, ge=0)
    """Disk that token shards may take in the cache; data above it are read by ranges alone."""
    s3: S3Spec = S3Spec()
    """How s3:// locations are reached."""


class ResourcesSpec(Frozen):
    cpu: float = Field(default=1, gt=0)
    """CPU cores per worker."""
    gpu: Literal[0, 1] | Annotated[float, Field(gt=0, lt=1)] = 0
    """GPUs per worker: one, none, or a share of one, such as 0.5, for sweeps whose trials have one worker each."""
    accelerator_type: str | None = None
    """GPU type as Ray names it, such as H100."""


class WorkersSpec(Frozen):
    """An elastic number of workers; the losses do not depend on it."""

    min: int = Field(ge=1, le=4096)
    """The fewest that training goes on with."""
    max: int = Field(ge=1, le=4096)
    """As many as there is room for, up to this."""
    check_every_s: float = Field(default=60, gt=0)
    """How often a group that could be larger looks for room."""


class ClusterProfile(Frozen):
    kind: Literal["inline", "local", "ray", "kuberay"]
    """`inline`: this process, no Ray. `local`: an embedded Ray on this machine. `ray`: a running Ray cluster. `kuberay`: a
    Ray cluster that the KubeRay operator makes for the run."""
    address: Annotated[str, StringConstraints(pattern=r"^(auto|https?://[^\s/]+/?|[^\s/]+:\d+)$")] = "auto"
    """kind: ray. On a machine of the cluster: `auto` finds its Ray, HOST:PORT names the head. From anywhere else:
    http(s)://HEAD:8265, the dashboard, through whose job API the run is submitted."""
    token: SecretRef | None = None
    """kind: ray from outside: where the token of a cluster with token authentication is found, `env:NAME` or `file:PATH`;
    default: where Ray looks (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token)."""
    workers: Annotated[int, Field(ge=1, le=4096)] | WorkersSpec = 1
    """Training workers: a number, or `{min, max}` on a cluster whose nodes come and go."""
    placement: Literal["pack", "spread", "strict-pack", "strict-spread"] = "pack"
    """How workers lie on nodes, as Ray names it: on few or on many; strict: on one alone, or on one each."""
    network_interface: str | None = None
    """Interface that workers talk over, such as eth0; default: gloo and NCCL choose."""
    wait_s: float = Field(default=600, ge=0)
    """How long to wait for the workers' room on a cluster before giving up."""
    resources_per_worker: ResourcesSpec = ResourcesSpec()
    """What each worker takes."""
    max_failures: int = Field(default=3, ge=0)
    """Times the worker group is started again after a failure that is not the user's."""
    max_preemptions: int = Field(default=100, ge=0)
    """Times it is started again because a worker was asked to leave, or its node was drained."""
    hang_timeout_s: float = Field(default=600, gt=0)
    """Seconds without progress after which a worker is killed and its group started again; loading and export have more."""
    price_per_worker_hour: float | None = Field(default=None, gt=0)
    """What an hour of one worker costs, in any currency: plans and sweeps then say what they cost."""
    storage: StorageSpec = StorageSpec()
    """Where files lie."""
    kubernetes: KubernetesSpec | None = None
    """kind: kuberay: the pods that a run is made of."""

    @property
    def submits(self) -> bool:
        """Whether runs are handed to the cluster from outside, rather than driven by this process."""
        return self.kind == "ray" and "://" in self.address

    @property
    def max_workers(self) -> int:
        """The workers that a run is planned for."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @property
    def min_workers(self) -> int:
        """The workers that a run needs."""
        return self.workers if isinstance(self.workers, int) else self.workers.min
