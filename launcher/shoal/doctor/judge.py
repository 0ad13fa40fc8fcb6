"""What is wrong with a place, from what was measured of it. Pure: each check is a function from Place to findings."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from shoal.doctor.facts import Place
from shoal.doctor.words import (
    GIB,
    MIB,
    asked_words,
    cuda_words,
    differ,
    each_node,
    free_words,
    gib,
    gpu_words,
    grouped,
    link_words,
    many,
    off,
    store_words,
    workers_of,
)

SKEW_WARNING_S, SKEW_PROBLEM_S = 2.0, 10.0
"""A driver that is 20 s behind another's clock holds its lease for dead (lease.py): half of that is too much."""
STORE_SKEW_WARNING_S, STORE_SKEW_PROBLEM_S = 5.0, 300.0
"""A signed request that is 15 min old is refused; the store tells its clock to a second."""
DISK_PROBLEM = 2 * GIB
SHM_PROBLEM, SHM_WARNING = 128 * MIB, GIB
"""Pods get 64 MiB unless a memory volume is mounted: NCCL and Ray's object store both need more."""
MEMORY_PROBLEM, MEMORY_WARNING = GIB, 2 * GIB
"""Free, per worker: torch and its libraries alone take most of the first."""
FILES_PROBLEM, FILES_WARNING = 1024, 4096
STORE_SLOW_S, STORE_SLOW_MB_PER_S = 1.0, 10.0
LINK_SLOW_MB_PER_S = {"gloo": 80.0, "nccl": 1000.0}
"""Per node: gigabit Ethernet carries 117, and gradients want more."""
LINK_SLOW_S = 0.02
SAME = ("shoal", "torch", "ray")
"""Packages that must agree to the letter; of the others a difference is told."""
NEEDED = ("shoal", "torch", "ray", "transformers", "deepspeed", "peft")

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of an answer."""

    check: str
    state: State
    says: str
    do: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


Findings = Iterator[Finding]


def judge(place: Place) -> list[Finding]:
    """All findings, each check in its place; a check that found nothing wrong says what it saw."""
    found = [Finding("place", "problem", why, "mend that first: the rest cannot be looked at") for why in place.refused]
    found += [
        Finding("nodes", "problem", f"{node} could not be looked at: {why}", "see that node's Ray: `ray status`")
        for node, why in place.silent.items()
    ]
    if not place.nodes:
        fix = "start one (`ray start --address=HEAD:6379`), or let the autoscaler: `shoal run` waits wait_s for it"
        return found or [Finding("nodes", "problem", "no node is up that can hold a worker", fix)]
    for name, (check, ok) in CHECKS.items():
        own = [Finding(name, state, says, do) for state, says, do in check(place)]
        if own:
            found += own
        elif said := ok(place):
            found.append(Finding(name, "ok", said))
    return found


Judged = Iterator[tuple[State, str, str]]
"""(state, what was found, what to do)."""


def _room(place: Place) -> Judged:
    for what, each, have in (
        ("CPU", place.cpu, [node.slots.get("CPU", node.cpus) for node in place.nodes]),
        ("GPU", place.gpu, [node.slots.get("GPU", len(node.gpus)) for node in place.nodes]),
    ):
        room = sum(int(each_has / each) for each_has in have) if each else place.min_workers
        if room >= place.min_workers:
            continue
        says = f"there is room for {many(room, 'worker')} of {each:g} {what}, and {place.min_workers} are asked for"
        shared = place.kind != "ray" and what == "CPU"
        do = "lower workers or resources_per_worker" + ("; they will share the cores, and be slow" if shared else "")
        yield "warning" if shared else "problem", says, do
    for node in place.nodes:
        if node.slots.get("CPU", 0) > node.cpus:
            says = f"Ray gives out {node.slots['CPU']:g} CPUs on {node.name}, which has {node.cpus:g}"
            yield "warning", says, "start Ray there with --num-cpus as there are, or workers share cores"


def _python(place: Place) -> Judged:
    if len({node.python.rpartition(".")[0] for node in place.nodes}) > 1:
        yield (
            "problem",
            differ(place.nodes, lambda node: node.python),
            "use one Python everywhere: pickles depend on it",
        )
    elif len({node.python for node in place.nodes}) > 1:
        yield "warning", differ(place.nodes, lambda node: node.python), "use one Python everywhere"


def _versions(place: Place) -> Judged:
    for package in place.nodes[0].versions:
        seen = {node.versions.get(package) for node in place.nodes}
        if len(seen) > 1:
            state: State = "problem" if package in SAME else "warning"
            says = f"{package}: {differ(place.nodes, lambda node, name=package: node.versions.get(name) or 'none')}"
            yield state, says, "install the same everywhere"
        elif seen == {None} and package in NEEDED:
            yield "problem", f"{package} is not installed", "install shoal with what it depends on"


def _gpus(place: Place) -> Judged:
    if not place.gpu:
        return
    for node in place.nodes:
        if not node.gpus:
            yield "problem", f"{node.name} shows no GPU", "install its driver (`nvidia-smi` must list the GPUs)"
    having = [node for node in place.nodes if node.gpus]
    for what, of, do in (
        ("drivers", lambda node: node.gpus[0].driver, "install one driver version everywhere: NCCL is picky"),
        ("GPUs", lambda node: gpu_words(node), "the slowest sets the pace; accelerator_type picks one"),
    ):
        if len({of(node) for node in having}) > 1:
            yield "warning", f"{what} differ: {differ(having, of)}", do


def _cuda(place: Place) -> Judged:
    for node in place.nodes:
        if node.cuda is None or not node.gpus:
            continue
        cuda = node.cuda
        if cuda.built_for is None:
            fix = "install torch from an index with CUDA (make env without TORCH_ARGS)"
            yield "problem", f"{node.name}: torch {node.versions.get('torch')} is built without CUDA", fix
        elif cuda.devices == 0:
            newest = f"the driver supports CUDA {cuda.driver_supports}" if cuda.driver_supports else "no driver answers"
            says = f"{node.name}: torch is built for CUDA {cuda.built_for} and sees no GPU; {newest}"
            yield "problem", says, "install a newer driver, or a torch built for an older CUDA"
        elif cuda.error:
            yield (
                "problem",
                f"{node.name}: the first product on its GPU failed: {cuda.error}",
                "see `nvidia-smi`, `dmesg`",
            )
        elif cuda.bitsandbytes:
            yield "warning", f"{node.name}: no 4-bit layer: {cuda.bitsandbytes}", "needed for method: qlora alone"


def _clocks(place: Place) -> Judged:
    for node in place.nodes:
        if abs(node.skew_s) > SKEW_WARNING_S:
            state: State = "problem" if abs(node.skew_s) > SKEW_PROBLEM_S else "warning"
            yield state, f"{node.name} is {off(node.skew_s, 'this machine')}", "run an NTP client there (chrony)"
        against = node.store.clock_s
        if against is not None and abs(against) > STORE_SKEW_WARNING_S:
            state = "problem" if abs(against) > STORE_SKEW_PROBLEM_S else "warning"
            says = f"{node.name} is {off(against, 'the object store')}"
            yield state, says, "run an NTP client there; a store refuses requests that are 15 min off"


def _memory(place: Place) -> Judged:
    for node in place.nodes:
        workers = workers_of(place, node)
        if workers and node.memory_free < workers * MEMORY_WARNING:
            state: State = "problem" if node.memory_free < workers * MEMORY_PROBLEM else "warning"
            says = f"{node.name}: {gib(node.memory_free)} free for {workers} workers"
            yield state, says, "stop what else runs there, or lower workers; `shoal plan` says what the model takes"


def _shm(place: Place) -> Judged:
    for node in place.nodes:
        if node.shm < SHM_WARNING:
            state: State = "problem" if node.shm < SHM_PROBLEM and place.gpu else "warning"
            fix = "mount a larger one: `emptyDir: {medium: Memory}` in a pod, --shm-size for a container"
            yield state, f"{node.name}: /dev/shm has {node.shm / MIB:,.0f} MiB", fix


def _disks(place: Place) -> Judged:
    for node in place.nodes:
        cache, temporary = node.cache, node.temporary
        if cache.error:
            yield "problem", f"{node.name}: {cache.path}: {cache.error}", "set storage.cache to a folder of yours"
        elif cache.free < DISK_PROBLEM:
            yield "problem", f"{node.name}: {free_words(cache)}", "free space, or set storage.cache to a larger disk"
        elif cache.free < place.cache_bytes:
            says = f"{node.name}: {free_words(cache)}, and storage.cache_gib lets data take {gib(place.cache_bytes)}"
            yield "warning", says, "lower storage.cache_gib: what does not fit is read by ranges"
        if temporary.error or temporary.free < MIB * 512:
            says = f"{node.name}: {temporary.error or free_words(temporary)} ({temporary.path})"
            yield "problem", says, "free space: Ray writes its sessions and spills objects there"


def _files(place: Place) -> Judged:
    for node in place.nodes:
        if node.open_files < FILES_WARNING:
            state: State = "problem" if node.open_files < FILES_PROBLEM else "warning"
            yield state, f"{node.name}: at most {node.open_files} open files", "raise it (ulimit -n 65536)"


def _store(place: Place) -> Judged:
    for node in place.nodes:
        store = node.store
        if store.error and store.host and not store.address:
            fix = "check storage.s3.endpoint_url, and that node's resolver"
            yield "problem", f"{node.name}: the endpoint's name {store.host} does not resolve", fix
        elif store.error:
            yield (
                "problem",
                f"{node.name}: {store.error}",
                "`shoal store ls` tries again; storage.s3 says how it is reached",
            )
        elif max(store.put_s, store.get_s) > STORE_SLOW_S:
            says = f"{node.name}: a small object takes {max(store.put_s, store.get_s):.1f} s"
            yield "warning", says, "use a store nearby: each checkpoint takes several requests"
        elif min(store.write_mb_per_s, store.read_mb_per_s) < STORE_SLOW_MB_PER_S:
            rates = f"writes {store.write_mb_per_s:.1f} MB/s and reads {store.read_mb_per_s:.1f} MB/s"
            yield "warning", f"{node.name} {rates}", "checkpoints upload behind training, yet no faster than this"


def _names(place: Place) -> Judged:
    if len(place.nodes) == 1:
        return
    for node in place.nodes:
        if place.network_interface is None and (node.own_address.startswith("127.") or node.own_address == "::1"):
            says = f"{node.name} finds its own name at {node.own_address}: gloo would give that address to the others"
            yield "problem", says, "set network_interface in the profile, or mend /etc/hosts there"
    for link in place.links:
        if link.unresolved:
            says = f"{link.node} does not know {', '.join(link.unresolved)}"
            yield (
                "warning",
                says,
                "Ray and Shoal use addresses, other tools may not: add the names to DNS or /etc/hosts",
            )


def _links(place: Place) -> Judged:
    errors = grouped((link.error, link.node) for link in place.links if link.error)
    causes = {error: where for error, where in errors.items() if "timed out" not in error}
    for error, where in (causes or errors).items():  # whoever waits for a node that failed says no more than that
        fix = "open all ports between the nodes; network_interface picks the network that joins them"
        yield "problem", f"no all-reduce between the nodes: {error} ({', '.join(sorted(where))})", fix
    whole = [link for link in place.links if not link.error]
    if not whole:
        return
    slowest, backend = min(link.mb_per_s for link in whole), whole[0].backend
    if slowest < LINK_SLOW_MB_PER_S.get(backend, 0.0):
        says = f"all-reduce over {backend} moves {slowest:,.0f} MB/s per node"
        yield "warning", says, "pack the workers (placement: pack), or use a faster network: network_interface"
    elif max(link.latency_s for link in whole) > LINK_SLOW_S:
        says = f"the smallest all-reduce takes {max(link.latency_s for link in whole) * 1000:,.0f} ms"
        yield "warning", says, "put the nodes closer together"


CHECKS: dict[str, tuple[Callable[[Place], Judged], Callable[[Place], str]]] = {
    "room": (_room, lambda place: f"{many(len(place.nodes), 'node')} for {asked_words(place)}"),
    "python": (_python, lambda place: place.nodes[0].python),
    "versions": (_versions, lambda place: ", ".join(f"{name} {v}" for name, v in place.nodes[0].versions.items() if v)),
    "gpu": (_gpus, lambda place: "; ".join(f"{node.name}: {gpu_words(node)}" for node in place.nodes if node.gpus)),
    "cuda": (_cuda, lambda place: cuda_words(place.nodes)),
    "clock": (_clocks, lambda place: f"within {max(abs(node.skew_s) for node in place.nodes):.1f} s"),
    "memory": (
        _memory,
        lambda place: each_node(place, lambda node: f"{gib(node.memory_free)} of {gib(node.memory)} free"),
    ),
    "shm": (_shm, lambda place: each_node(place, lambda node: f"{gib(node.shm)} of shared memory")),
    "disk": (_disks, lambda place: each_node(place, lambda node: free_words(node.cache))),
    "open files": (_files, lambda place: each_node(place, lambda node: f"{node.open_files:,}")),
    "store": (_store, lambda place: each_node(place, store_words)),
    "names": (_names, lambda place: "each node knows the others" if len(place.nodes) > 1 else ""),
    "all-reduce": (_links, lambda place: link_words(place)),
}
