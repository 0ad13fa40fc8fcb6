"""What was measured of a place to run. Frozen and picklable: nodes send it, judge.py reads it, tests invent it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_mib: int
    driver: str


@dataclass(frozen=True)
class Cuda:
    """What torch makes of a node's GPUs; measured where the profile asks for one."""

    built_for: str | None
    """CUDA version of torch's build; None for a build without."""
    driver_supports: str | None
    """The newest CUDA version of the driver."""
    devices: int
    error: str = ""
    """Why a small product on the first device failed."""
    bitsandbytes: str = ""
    """Why a 4-bit layer could not be made."""


@dataclass(frozen=True)
class Store:
    """The profile's storage as one node sees it. Times in seconds, rates in MB/s."""

    url: str
    """Where it was tried."""
    error: str = ""
    """The first thing that failed, with what to do."""
    put_s: float = 0.0
    """Median of a few small objects."""
    get_s: float = 0.0
    write_mb_per_s: float = 0.0
    read_mb_per_s: float = 0.0
    clock_s: float | None = None
    """This node's clock less the store's, to a second; None where the store shows no clock."""
    host: str = ""
    """The endpoint's; empty where there is no network between."""
    address: str = ""
    """What `host` resolves to; empty when it does not."""


@dataclass(frozen=True)
class Disk:
    path: str
    free: int
    """Bytes."""
    error: str = ""
    """Why nothing can be written there."""


@dataclass(frozen=True)
class Node:
    name: str
    address: str
    """By which other nodes reach it."""
    own_address: str
    """What its own name resolves to; empty when it does not."""
    python: str
    versions: dict[str, str | None]
    """Of the packages that must agree; None where one is missing."""
    cpus: float
    """That this process may use, a container's limit heeded."""
    memory: int
    """Bytes, a container's limit heeded."""
    memory_free: int
    shm: int
    """Bytes of /dev/shm."""
    open_files: int
    """The most that a process may have."""
    cache: Disk
    temporary: Disk
    store: Store
    gpus: tuple[Gpu, ...] = ()
    cuda: Cuda | None = None
    slots: dict[str, float] = field(default_factory=dict)
    """CPUs and GPUs that the cluster's Ray gives out there; empty where the place has no Ray of its own."""
    port: int = 0
    """A port that was free."""
    clock: float = 0.0
    """Its time when all was measured, in seconds since the epoch."""
    skew_s: float = 0.0
    """Its clock less the driver's; known when the answer has arrived."""


@dataclass(frozen=True)
class Link:
    """One node's part of the all-reduce of all nodes, and how it finds the others' names."""

    node: str
    unresolved: tuple[str, ...] = ()
    """Names of other nodes that mean nothing here."""
    backend: str = ""
    latency_s: float = 0.0
    """Of the smallest all-reduce."""
    mb_per_s: float = 0.0
    """Of a large one: bytes that each node sent, per second."""
    error: str = ""


@dataclass(frozen=True)
class Place:
    """All that is known of the place that a profile names."""

    kind: str
    min_workers: int
    max_workers: int
    cpu: float
    """Per worker."""
    gpu: float
    cache_bytes: int
    """Disk that prepared data may take on each node."""
    network_interface: str | None
    nodes: tuple[Node, ...]
    links: tuple[Link, ...] = ()
    """Empty where there is one node."""
    silent: dict[str, str] = field(default_factory=dict)
    """Nodes that could not be measured, and why."""
    refused: tuple[str, ...] = ()
    """Why the place could not be entered at all."""
