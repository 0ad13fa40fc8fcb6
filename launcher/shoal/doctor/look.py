"""Has every node of a place measured, and all of them together."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from shoal.doctor.facts import Link, Node, Place
from shoal.doctor.group import measure_link
from shoal.doctor.measure import measure
from shoal.spec.cluster import ClusterProfile

if TYPE_CHECKING:
    from shoal.backends import Answer, Backend


def look(profile: ClusterProfile, backend: "Backend", on_phase: Callable[[str], object]) -> Place:
    """What there is, node by node and then between them, on a backend that was started.

    Raises: ShoalError when the place cannot be entered.
    """
    on_phase("looking at each node")
    answers = backend.everywhere(partial(_measure, profile))
    nodes = tuple(_arrived(answer, answer.value, profile.kind) for answer in answers if answer.value is not None)
    place = replace(
        unseen(profile, ()),
        nodes=nodes,
        silent={answer.node: answer.error for answer in answers if answer.value is None},
    )
    if len(nodes) < 2 or place.silent:
        return place
    on_phase(f"an all-reduce of {len(nodes)} nodes")
    names = {node.name: node.address for node in nodes}
    device = "cuda" if profile.resources_per_worker.gpu else "cpu"
    master = (nodes[0].address, nodes[0].port)
    work = partial(_link, master, names, device, profile.network_interface)
    gpus = 1 if profile.resources_per_worker.gpu else 0
    return replace(place, links=tuple(_linked(answer) for answer in backend.everywhere(work, gpus)))


def unseen(profile: ClusterProfile, refused: tuple[str, ...]) -> Place:
    """A place that nothing was measured of."""
    resources = profile.resources_per_worker
    return Place(
        kind=profile.kind,
        min_workers=profile.min_workers,
        max_workers=profile.max_workers,
        cpu=resources.cpu,
        gpu=resources.gpu,
        cache_bytes=round(profile.storage.cache_gib * 2**30),
        network_interface=profile.network_interface,
        nodes=(),
        refused=refused,
    )


def _measure(profile: ClusterProfile, number: int, count: int) -> Node:
    return measure(profile)


def _link(
    master: tuple[str, int], names: dict[str, str], device: str, interface: str | None, number: int, count: int
) -> Link:
    return measure_link(number, count, master, names, device, interface)


def _arrived(answer: "Answer[Node]", node: Node, kind: str) -> Node:
    """With the clock compared: an answer travels for milliseconds. An embedded Ray gives out whatever the profile asks."""
    slots = answer.slots if kind == "ray" else {}
    return replace(node, address=answer.address or node.address, skew_s=node.clock - answer.at, slots=slots)


def _linked(answer: "Answer[Link]") -> Link:
    return answer.value or Link(answer.node, error=answer.error)
