"""The words in which a place is told of. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable

from shoal.doctor.facts import Disk, Node, Place

GIB = 1 << 30
MIB = 1 << 20


def differ(nodes: Iterable[Node], of: Callable[[Node], str]) -> str:
    """`2.13 on a, b; 2.12 on c`."""
    groups = grouped((of(node), node.name) for node in nodes)
    return "; ".join(f"{value} on {', '.join(names)}" for value, names in groups.items())


def grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, name in pairs:
        groups.setdefault(key, []).append(name)
    return groups


def workers_of(place: Place, node: Node) -> int:
    """How many workers that node may get, at most."""
    cpus = node.slots.get("CPU", node.cpus)
    room = int(len(node.gpus) // place.gpu) if place.gpu else max(1, int(cpus / place.cpu))
    return place.max_workers if len(place.nodes) == 1 else min(place.max_workers, room)


def each_node(place: Place, words: Callable[[Node], str]) -> str:
    """What one node has, or each of a few."""
    if len(place.nodes) == 1:
        return words(place.nodes[0])
    return "; ".join(f"{node.name}: {words(node)}" for node in place.nodes[:8]) + ("; ..." if place.nodes[8:] else "")


def asked_words(place: Place) -> str:
    fewest = "" if place.min_workers == place.max_workers else f"{place.min_workers} to "
    each = f"{place.cpu:g} CPU" + (f" and {place.gpu:g} GPU" if place.gpu else "")
    return f"{fewest}{many(place.max_workers, 'worker')} of {each}"


def many(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


def gpu_words(node: Node) -> str:
    return ", ".join(f"{many} x {name}" for name, many in Counter(gpu.name for gpu in node.gpus).items())


def cuda_words(nodes: tuple[Node, ...]) -> str:
    cuda = nodes[0].cuda
    return f"torch for CUDA {cuda.built_for}, driver up to {cuda.driver_supports}" if cuda else ""


def store_words(node: Node) -> str:
    store = node.store
    times = f"put {store.put_s * 1000:.0f} ms, get {store.get_s * 1000:.0f} ms"
    return f"{times}, writes {store.write_mb_per_s:.0f} MB/s, reads {store.read_mb_per_s:.0f} MB/s"


def link_words(place: Place) -> str:
    if not place.links:
        return ""
    slowest = min(place.links, key=lambda link: link.mb_per_s)
    return f"{slowest.mb_per_s:,.0f} MB/s per node over {slowest.backend}, smallest {slowest.latency_s * 1000:.1f} ms"


def free_words(disk: Disk) -> str:
    return f"{gib(disk.free)} free at {disk.path}"


def off(seconds: float, whom: str) -> str:
    return f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} {whom}"


def gib(count: float) -> str:
    return f"{count / GIB:,.1f} GiB"
