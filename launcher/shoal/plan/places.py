"""What a profile says that its kind of place cannot keep: each is a problem with its way out."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from shoal.errors import Problem
from shoal.facts.types import Facts
from shoal.spec.cluster import ClusterProfile, WorkersSpec

CLUSTERS = ("ray", "kuberay")
"""Kinds whose workers are on machines that share nothing but the store."""
ONLY_RAY = ("address", "token", "placement", "network_interface", "wait_s")
LOOPBACK = ("localhost", "::1")


def problems(profile: ClusterProfile) -> Iterator[Problem]:
    """The profile's own mistakes, whatever the job."""
    if isinstance(profile.workers, WorkersSpec) and profile.workers.min > profile.workers.max:
        yield Problem("workers", f"min {profile.workers.min} is more than max {profile.workers.max}", "turn them round")
    if profile.kind == "kuberay":
        if profile.kubernetes is None:
            yield Problem(
                "kubernetes", "is missing, and kind: kuberay is made of it", "copy it from cluster/kuberay.yaml"
            )
        if "address" in profile.model_fields_set:
            yield Problem("address", "is of a cluster that runs already, and kuberay makes one", "leave it out")
    elif profile.kubernetes is not None:
        yield Problem("kubernetes", f"is for kind: kuberay alone, and kind is {profile.kind}", "leave it out")
    if profile.kind in CLUSTERS:
        if profile.token is not None and not profile.submits:
            what = f"is for an address of the form http://HEAD:8265, and address is {profile.address}"
            yield Problem("token", what, "leave it out: on its own machines Ray finds its token by itself")
        yield from _shared(profile)
        return
    if profile.kind == "inline" and profile.max_workers > 1:
        yield Problem("workers", f"{profile.max_workers}, but inline is this process alone", "set 1, or kind: local")
    elif isinstance(profile.workers, WorkersSpec):
        yield Problem("workers", "one machine does not grow: {min, max} is for kind: ray", "give one number")
    for field in ONLY_RAY:
        if field in profile.model_fields_set:
            yield Problem(field, f"means something for kind: ray alone, and kind is {profile.kind}", "leave it out")


def shared_gpu(profile: ClusterProfile, workers: int) -> Iterator[Problem]:
    """A share of a GPU for each of several `workers` of one group."""
    share = profile.resources_per_worker.gpu
    if 0 < share < 1 and workers > 1:
        what = f"{share:g} of a GPU for each of {workers} workers: NCCL takes no two of a group on one GPU"
        fix = "set gpu: 1, or workers: 1; trials of one worker (sweep.workers: 1) may share a GPU"
        yield Problem("resources_per_worker.gpu", what, fix)


def unreachable(profile: ClusterProfile, facts: Facts) -> Iterator[Problem]:
    """What the job names that only this machine can read, although nodes of a cluster must."""
    if profile.kind not in CLUSTERS:
        return
    why = "is on this machine, and the cluster's other nodes do not see it"
    if facts.model.kind == "folder":
        yield Problem("model.base", f"{facts.model.base} {why}", "copy it to s3://, or name a hub model")
    if facts.adapter and "://" not in facts.adapter.location:
        yield Problem("model.adapter", f"{facts.adapter.location} {why}", "copy it to s3://")
    for name, sources in (("train", facts.data.train), ("validation", facts.data.validation)):
        for source in sources:
            if "://" not in source.path:
                yield Problem(f"data.{name}", f"{source.path} {why}", "copy it to s3://")


def _shared(profile: ClusterProfile) -> Iterator[Problem]:
    """A cluster's storage is one that every node reaches."""
    storage = profile.storage
    if storage.s3.server == "embedded":
        what = "embedded listens on this machine alone, and every node of the cluster reads and writes there"
        fix = "set server: external, with the endpoint_url of a store that all nodes reach"
        yield Problem("storage.s3.server", what, fix)
    host = urlsplit(storage.s3.endpoint_url or "").hostname or ""
    if host in LOOPBACK or host.startswith("127."):
        what = f"{storage.s3.endpoint_url} is another machine on every node"
        yield Problem("storage.s3.endpoint_url", what, "name the store as all nodes see it")
    for name in ("runs", "prepared"):
        location = getattr(storage, name)
        if not location.startswith("s3://"):
            what = f"{location} is a folder of each node, not one that all share"
            yield Problem(f"storage.{name}", what, "use an s3:// location")
