"""What a profile, or a job on it, says that its pods could not keep: each is a problem with its way out."""

from collections.abc import Iterator
from pathlib import PurePosixPath

from shoal.errors import Problem
from shoal.kube.names import CACHE, fits, min_replicas
from shoal.plan import places
from shoal.spec.cluster import ClusterProfile
from shoal.spec.job import JobSpec, SourceSpec
from shoal.spec.kubernetes import CacheSpec, KubernetesSpec, TolerationSpec, WorkerGroupSpec

HEAD_GROUP = "headgroup"
"""The operator's own name of the head's group."""
SINCE = (2, 52, 0)
"""First Ray with token authentication."""
MOST_KUEUE_GROUPS = 6
"""A Kueue workload has at most 8 sets of pods: the head, the submitter, and these."""
KUEUE_NAMES = ("head", "submitter")
"""Kueue's own names of sets of pods."""
RESERVED = ("RAY_", "KUBERAY_", "FQ_RAY_IP", "REDIS_")
"""Beginnings of variables that Ray or the operator sets itself."""
ROOM_GIB = 1
"""Memory of a pod that volumes in memory must leave."""


def problems(profile: ClusterProfile) -> Iterator[Problem]:
    """The profile's own mistakes, whatever the job."""
    yield from places.problems(profile)
    if profile.kind != "kuberay":
        yield Problem(
            "kind", f"is {profile.kind}, and manifests are for kuberay", "name a profile such as cluster/kuberay.yaml"
        )
        return
    spec = profile.kubernetes
    if spec is None:
        return  # places has said so
    yield from _image(spec)
    if "cache" in profile.storage.model_fields_set:
        what = f"{profile.storage.cache}, and pods have theirs in the volume at {CACHE}"
        yield Problem("storage.cache", what, "leave it out; kubernetes.worker_groups[].cache says how large it is")
    for index, group in enumerate(spec.worker_groups):
        yield from _group(f"kubernetes.worker_groups[{index}]", group, spec, profile)
    yield from _groups(spec, profile)
    yield from _memory("kubernetes.head", spec.head.shm_gib, spec.head.cache, spec.head.memory_gib)
    yield from _cache("kubernetes.head.cache", spec.head.cache, None)
    yield from _tolerations("kubernetes.head", spec.head.tolerations)
    yield from _variables(spec)
    yield from _credentials(spec, profile)
    yield from _schedule(spec)
    account = spec.service_account
    if account.annotations and not account.create:
        what = "are given, but the account is not rendered"
        yield Problem(
            "kubernetes.service_account.annotations", what, "set create: true, or annotate the account yourself"
        )


def of_job(job: JobSpec, profile: ClusterProfile, here: frozenset[str]) -> Iterator[Problem]:
    """What the job names that no pod has: files of this machine, and variables that nobody sets."""
    places_named: list[tuple[str, str | None]] = [
        ("model.adapter", job.model.adapter),
        ("data.chat_template", job.data.chat_template),
    ]
    if _local(job.model.base) or job.model.base.endswith(".gguf") or job.model.base in here:
        places_named.append(("model.base", job.model.base))
    for name, held in (("data.train", job.data.train), ("data.validation", job.data.validation)):
        if isinstance(held, int | float):
            continue
        for one in held if isinstance(held, list) else [held]:
            places_named.append((name, one.path if isinstance(one, SourceSpec) else one))
    for where, place in places_named:
        if place is None or "://" in place or (where == "model.adapter" and not _local(place) and "/" not in place):
            continue
        yield Problem(where, f"{place} is on this machine, and pods do not see it", "copy it to s3://")
    yield from _token(job, profile)
    yield from places.shared_gpu(profile, (job.sweep and job.sweep.workers) or profile.max_workers)


def _local(place: str) -> bool:
    return place.startswith(("/", "./", "../", "~"))


def _token(job: JobSpec, profile: ClusterProfile) -> Iterator[Problem]:
    token, spec = job.model.token, profile.kubernetes
    if token is None or spec is None:
        return
    kind, _, name = token.partition(":")
    if kind == "file":
        fix = "put the token into a Secret, name it in kubernetes.secret_env, and set model.token: env:NAME"
        yield Problem("model.token", f"{token} is a file of this machine, and pods do not see it", fix)
    elif name not in spec.secret_env:
        fix = f"add kubernetes.secret_env: {{{name}: {{name: SECRET, key: KEY}}}} to the profile"
        yield Problem("model.token", f"{token}, but no pod has the variable {name}", fix)


def _image(spec: KubernetesSpec) -> Iterator[Problem]:
    name, _, digest = spec.image.partition("@")
    tag = PurePosixPath(name).name.partition(":")[2]
    if not digest and tag in ("", "latest"):
        what = (
            f"{spec.image} has {'no tag' if not tag else 'the tag latest'}: pods of one run could have different ones"
        )
        yield Problem("kubernetes.image", what, "name a tag that does not move, or a digest: REPOSITORY@sha256:...")


def _group(where: str, group: WorkerGroupSpec, spec: KubernetesSpec, profile: ClusterProfile) -> Iterator[Problem]:
    least = min_replicas(group, spec)
    if least > group.max_replicas:
        what = f"{least} is more than max_replicas, {group.max_replicas}"
        yield Problem(f"{where}.min_replicas", what, "turn them round")
    elif spec.autoscaling is None and least != group.max_replicas:
        what = f"{least}, but nothing adds pods up to max_replicas, {group.max_replicas}"
        yield Problem(f"{where}.min_replicas", what, "set kubernetes.autoscaling, or leave min_replicas out")
    each = profile.resources_per_worker
    if each.gpu and not group.gpus:
        yield Problem(
            f"{where}.gpus",
            "0, but each worker takes a GPU",
            "say how many GPUs a pod has, or set resources_per_worker.gpu: 0",
        )
    elif group.gpus and not each.gpu:
        yield Problem(
            f"{where}.gpus",
            f"{group.gpus}, but resources_per_worker.gpu is 0: they would be paid for and not used",
            "set resources_per_worker.gpu: 1, or gpus: 0",
        )
    elif fits(group, profile) == 0:
        yield Problem(
            f"{where}.cpus",
            f"{group.cpus} holds no worker of {each.cpu:g}",
            "raise cpus, or lower resources_per_worker.cpu",
        )
    elif each.gpu and fits(group, profile) < group.gpus:
        held = fits(group, profile)
        what = f"{group.cpus} holds {held} worker{'s' * (held > 1)} of {each.cpu:g}, and the pod has {group.gpus} GPUs"
        yield Problem(
            f"{where}.cpus",
            what,
            f"raise cpus to {-(-each.cpu * group.gpus // 1):.0f}, or lower resources_per_worker.cpu",
        )
    if group.spot and not (group.node_selector or group.tolerations):
        fix = "add the node_selector and tolerations of your spot nodes, such as karpenter.sh/capacity-type: spot"
        yield Problem(f"{where}.spot", "is set, but nothing brings the pods to spot nodes", fix)
    if group.name == HEAD_GROUP:
        yield Problem(
            f"{where}.name", f"{HEAD_GROUP} is the operator's name of the head's group", "call it something else"
        )
    yield from _memory(where, group.shm_gib, group.cache, group.memory_gib)
    yield from _cache(f"{where}.cache", group.cache, profile.storage.cache_gib)
    yield from _tolerations(where, group.tolerations)


def _groups(spec: KubernetesSpec, profile: ClusterProfile) -> Iterator[Problem]:
    """What the groups are together."""
    where = "kubernetes.worker_groups"
    names = [group.name for group in spec.worker_groups]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Problem(where, f"two groups are called {name}", "give each a name of its own")
    asked = profile.resources_per_worker.accelerator_type
    types = {group.accelerator_type for group in spec.worker_groups if group.gpus}
    if asked and asked not in types:
        named = sorted(one for one in types if one)
        said = ", ".join(named) or "none that is named"
        near = next((one for one in named if one.lower() == asked.lower()), None)
        fix = f"write {near}" if near else f"add accelerator_type: {asked} to the group that has it"
        yield Problem("resources_per_worker.accelerator_type", f"{asked}, but the groups' GPUs are {said}", fix)
        return
    if len(types) > 1 and not asked:
        said = ", ".join(sorted(str(one) for one in types))
        fix = "say which in resources_per_worker.accelerator_type, or keep one group: the slowest GPU sets the pace"
        yield Problem(where, f"workers could land on different GPUs: {said}", fix)
    usable = [group for group in spec.worker_groups if not asked or group.accelerator_type == asked]
    room = sum(group.max_replicas * fits(group, profile) for group in usable)
    if 0 < room < profile.max_workers:
        what = f"{profile.max_workers} are asked for, and the worker groups hold {room} at most"
        yield Problem("workers", what, "raise max_replicas, or lower workers")


def _memory(where: str, shm_gib: int, cache: CacheSpec, memory_gib: int) -> Iterator[Problem]:
    held = shm_gib + (cache.size_gib if cache.medium == "memory" else 0)
    if held + ROOM_GIB > memory_gib:
        what = f"{memory_gib}, of which volumes in memory may take {held}"
        yield Problem(
            f"{where}.memory_gib", what, f"raise it well above {held + ROOM_GIB}, or make shm_gib or the cache smaller"
        )


def _cache(where: str, cache: CacheSpec, shards_gib: float | None) -> Iterator[Problem]:
    if cache.storage_class_name and cache.medium != "ephemeral":
        yield Problem(
            f"{where}.storage_class_name",
            f"means something for medium: ephemeral, and it is {cache.medium}",
            "leave it out",
        )
    if shards_gib is not None and shards_gib >= cache.size_gib:
        what = f"{cache.size_gib}, and token shards may take {shards_gib:g} of it (storage.cache_gib): the model has no room"
        yield Problem(f"{where}.size_gib", what, "raise it, or lower storage.cache_gib")


def _tolerations(where: str, tolerations: list[TolerationSpec]) -> Iterator[Problem]:
    for index, one in enumerate(tolerations):
        here = f"{where}.tolerations[{index}]"
        if one.operator == "Exists" and one.value is not None:
            yield Problem(
                f"{here}.value", f"{one.value} is compared by operator: Equal alone", "set it, or leave value out"
            )
        if one.operator == "Equal" and one.key is None:
            yield Problem(f"{here}.key", "is missing, and Equal compares one taint", "name the taint")


def _variables(spec: KubernetesSpec) -> Iterator[Problem]:
    for name in sorted(spec.env.keys() & spec.secret_env.keys()):
        yield Problem(f"kubernetes.env.{name}", "is in secret_env too", "keep one of the two")
    for field in ("env", "secret_env"):
        for name in sorted(getattr(spec, field)):
            if name.startswith(RESERVED) and not name.startswith("RAY_TRAIN_"):
                yield Problem(
                    f"kubernetes.{field}.{name}", "is a variable that Ray and the operator set", "leave it out"
                )


def _credentials(spec: KubernetesSpec, profile: ClusterProfile) -> Iterator[Problem]:
    """Every variable that the storage's credentials name comes from a Secret; files and AWS profiles are no pod's."""
    named = profile.storage.s3.credentials
    where = "storage.s3.credentials"
    fix = "name variables in access_key_env and secret_key_env, and their Secret in kubernetes.secret_env"
    for field in ("profile", "file"):
        if getattr(named, field):
            yield Problem(
                f"{where}.{field}", f"{getattr(named, field)} is on this machine, and pods do not see it", fix
            )
    for field in ("access_key_env", "secret_key_env", "session_token_env"):
        name = getattr(named, field)
        if name and name not in spec.secret_env:
            fix = f"add kubernetes.secret_env: {{{name}: {{name: SECRET, key: KEY}}}}; or leave the credentials out, where "
            fix += "the service account has an identity"
            yield Problem(f"{where}.{field}", f"{name}, but no pod has that variable", fix)


def _schedule(spec: KubernetesSpec) -> Iterator[Problem]:
    if spec.auth == "token" and tuple(map(int, spec.ray_version.split("."))) < SINCE:
        what = f"token, but Ray {spec.ray_version} has no token authentication"
        yield Problem("kubernetes.auth", what, f"use Ray {'.'.join(map(str, SINCE))} or later, or set auth: disabled")
    queue = spec.queue
    if queue is None or queue.scheduler != "kueue":
        if queue is not None and queue.scheduler == "yunikorn" and queue.priority:
            fix = "leave it out; kubernetes.priority_class_name is what YuniKorn goes by"
            yield Problem("kubernetes.queue.priority", "is not YuniKorn's", fix)
        return
    if spec.autoscaling:
        fix = "leave kubernetes.autoscaling out: Kueue admits a run of a fixed size"
        yield Problem("kubernetes.autoscaling", "is set, and Kueue counts the pods before there are any", fix)
    if len(spec.worker_groups) > MOST_KUEUE_GROUPS:
        what = f"{len(spec.worker_groups)}, and a Kueue workload has room for {MOST_KUEUE_GROUPS} beside head and submitter"
        yield Problem("kubernetes.worker_groups", what, "put alike ones together")
    for index, group in enumerate(spec.worker_groups):
        if group.name in KUEUE_NAMES:
            where = f"kubernetes.worker_groups[{index}].name"
            yield Problem(where, f"{group.name} is a name of Kueue's own", "call it something else")
