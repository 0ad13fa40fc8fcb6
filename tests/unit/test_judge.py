"""Judgement of places that were never measured: each mistake of a cluster has its line, and a sound one has none."""

from dataclasses import replace
from typing import Any

import pytest

from shoal.doctor.facts import Cuda, Disk, Gpu, Link, Node, Place, Store
from shoal.doctor.judge import CHECKS, Finding, judge

GIB = 1 << 30
STORE = Store("s3://shoal/runs", "", 0.004, 0.003, 180.0, 240.0, 0.2, "store.local", "10.0.0.9")
H100 = Gpu("NVIDIA H100 80GB HBM3", 81559, "570.124.06")


def node(name: str = "a", **changes: Any) -> Node:
    sound = Node(
        name=name,
        address="10.0.0.1",
        own_address="10.0.0.1",
        python="3.11.15",
        versions={"shoal": "0.1.0", "torch": "2.13.0", "ray": "2.60.0", "transformers": "5.23.0", "bitsandbytes": None},
        cpus=8,
        memory=64 * GIB,
        memory_free=60 * GIB,
        shm=32 * GIB,
        open_files=1 << 20,
        cache=Disk("/home/u/.shoal/cache", 200 * GIB),
        temporary=Disk("/tmp", 100 * GIB),
        store=STORE,
    )
    return replace(sound, **changes)


def place(*nodes: Node, **changes: Any) -> Place:
    links = tuple(Link(one.name, (), "gloo", 0.0004, 900.0) for one in nodes) if len(nodes) > 1 else ()
    sound = Place(
        kind="ray",
        min_workers=2,
        max_workers=2,
        cpu=1,
        gpu=0,
        cache_bytes=20 * GIB,
        network_interface=None,
        nodes=nodes or (node(),),
        links=links,
    )
    return replace(sound, **changes)


def wrong(found: Place) -> list[Finding]:
    return [one for one in judge(found) if one.state != "ok"]


def the_one(found: Place) -> tuple[str, str, str]:
    [one] = wrong(found)
    assert one.do, "a finding says what to do"
    return one.check, one.state, one.says


def gpu_place(*nodes: Node, **changes: Any) -> Place:
    return place(*nodes, **({"gpu": 1, "min_workers": 1, "max_workers": 1} | changes))


CUDA = Cuda("12.8", "12.8", 1)
GPU_NODE = node(gpus=(H100,), cuda=CUDA)


@pytest.mark.parametrize("found", [place(), place(node("a"), node("b")), gpu_place(GPU_NODE)])
def test_a_sound_place_has_a_line_for_each_check_and_nothing_to_do(found: Place) -> None:
    lines = judge(found)
    assert all(one.state == "ok" and one.says and not one.do for one in lines)
    assert {one.check for one in lines} <= set(CHECKS)
    assert len(lines) >= 9


ALONE = {
    "too few cores": (
        place(node(cpus=1)),
        ("room", "problem", "there is room for 1 worker of 1 CPU, and 2 are asked for"),
    ),
    "too few cores of one's own": (
        place(node(cpus=1), kind="local"),
        ("room", "warning", "there is room for 1 worker of 1 CPU, and 2 are asked for"),
    ),
    "few slots on many cores": (
        place(node(slots={"CPU": 1.0})),
        ("room", "problem", "there is room for 1 worker of 1 CPU, and 2 are asked for"),
    ),
    "more slots than cores": (
        place(node(cpus=2, slots={"CPU": 16.0})),
        ("room", "warning", "Ray gives out 16 CPUs on a, which has 2"),
    ),
    "too few GPUs": (
        gpu_place(GPU_NODE, min_workers=2, max_workers=2),
        ("room", "problem", "there is room for 1 worker of 1 GPU, and 2 are asked for"),
    ),
    "a missing package": (
        place(node(versions={"shoal": "0.1.0", "torch": None})),
        ("versions", "problem", "torch is not installed"),
    ),
    "a torch without CUDA": (
        gpu_place(replace(GPU_NODE, cuda=Cuda(None, None, 0))),
        ("cuda", "problem", "a: torch 2.13.0 is built without CUDA"),
    ),
    "a driver too old": (
        gpu_place(replace(GPU_NODE, cuda=Cuda("13.0", "12.4", 0))),
        ("cuda", "problem", "a: torch is built for CUDA 13.0 and sees no GPU; the driver supports CUDA 12.4"),
    ),
    "a GPU that fails": (
        gpu_place(replace(GPU_NODE, cuda=Cuda("12.8", "12.8", 1, "CUDA error: uncorrectable ECC error"))),
        ("cuda", "problem", "a: the first product on its GPU failed: CUDA error: uncorrectable ECC error"),
    ),
    "no 4 bits": (
        gpu_place(replace(GPU_NODE, cuda=Cuda("12.8", "12.8", 1, "", "No module named 'bitsandbytes'"))),
        ("cuda", "warning", "a: no 4-bit layer: No module named 'bitsandbytes'"),
    ),
    "a clock off": (place(node(skew_s=-3.2)), ("clock", "warning", "a is 3.2 s behind this machine")),
    "a clock far off": (place(node(skew_s=45.0)), ("clock", "problem", "a is 45.0 s ahead of this machine")),
    "a clock far from the store's": (
        place(node(store=replace(STORE, clock_s=-901.0))),
        ("clock", "problem", "a is 901.0 s behind the object store"),
    ),
    "little memory": (place(node(memory_free=3 * GIB)), ("memory", "warning", "a: 3.0 GiB free for 2 workers")),
    "no memory": (place(node(memory_free=GIB)), ("memory", "problem", "a: 1.0 GiB free for 2 workers")),
    "a pod's /dev/shm": (place(node(shm=64 << 20)), ("shm", "warning", "a: /dev/shm has 64 MiB")),
    "a pod's /dev/shm under NCCL": (
        gpu_place(replace(GPU_NODE, shm=64 << 20)),
        ("shm", "problem", "a: /dev/shm has 64 MiB"),
    ),
    "a small cache": (
        place(node(cache=Disk("/c", 9 * GIB))),
        ("disk", "warning", "a: 9.0 GiB free at /c, and storage.cache_gib lets data take 20.0 GiB"),
    ),
    "a full cache": (place(node(cache=Disk("/c", GIB))), ("disk", "problem", "a: 1.0 GiB free at /c")),
    "somebody else's cache": (
        place(node(cache=Disk("/c", 0, "Permission denied"))),
        ("disk", "problem", "a: /c: Permission denied"),
    ),
    "a full /tmp": (
        place(node(temporary=Disk("/tmp", 1 << 20))),
        ("disk", "problem", "a: 0.0 GiB free at /tmp (/tmp)"),
    ),
    "few files": (place(node(open_files=1024)), ("open files", "warning", "a: at most 1024 open files")),
    "a wrong key": (
        place(node(store=Store("s3://b/r", "s3://b/r: the store does not accept the key; it comes from $KEY"))),
        ("store", "problem", "a: s3://b/r: the store does not accept the key; it comes from $KEY"),
    ),
    "an endpoint without an address": (
        place(node(store=Store("s3://b/r", "unreachable", host="minio.nowhere"))),
        ("store", "problem", "a: the endpoint's name minio.nowhere does not resolve"),
    ),
    "a store far away": (
        place(node(store=replace(STORE, put_s=2.5))),
        ("store", "warning", "a: a small object takes 2.5 s"),
    ),
    "a slow store": (
        place(node(store=replace(STORE, read_mb_per_s=3.0))),
        ("store", "warning", "a writes 180.0 MB/s and reads 3.0 MB/s"),
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_one_mistake_of_one_node_is_one_finding(name: str) -> None:
    found, expected = ALONE[name]
    assert the_one(found) == expected


def versions(**changes: str) -> dict[str, str | None]:
    return {**node().versions, **changes}


TOGETHER = {
    "shoals differ": (
        place(node("a"), node("b", versions=versions(shoal="0.2.0"))),
        ("versions", "problem", "shoal: 0.1.0 on a; 0.2.0 on b"),
    ),
    "other libraries differ": (
        place(node("a"), node("b"), node("c", versions=versions(transformers="5.0.0"))),
        ("versions", "warning", "transformers: 5.23.0 on a, b; 5.0.0 on c"),
    ),
    "pythons differ": (
        place(node("a"), node("b", python="3.12.1")),
        ("python", "problem", "3.11.15 on a; 3.12.1 on b"),
    ),
    "pythons differ a little": (
        place(node("a"), node("b", python="3.11.2")),
        ("python", "warning", "3.11.15 on a; 3.11.2 on b"),
    ),
    "drivers differ": (
        gpu_place(GPU_NODE, replace(GPU_NODE, name="b", gpus=(replace(H100, driver="550.54.15"),))),
        ("gpu", "warning", "drivers differ: 570.124.06 on a; 550.54.15 on b"),
    ),
    "GPUs differ": (
        gpu_place(GPU_NODE, replace(GPU_NODE, name="b", gpus=(replace(H100, name="NVIDIA A100"),) * 2)),
        ("gpu", "warning", "GPUs differ: 1 x NVIDIA H100 80GB HBM3 on a; 2 x NVIDIA A100 on b"),
    ),
    "a node without its GPU": (
        gpu_place(GPU_NODE, node("b")),
        ("gpu", "problem", "b shows no GPU"),
    ),
    "a name on loopback": (
        place(node("a"), node("b", own_address="127.0.1.1")),
        ("names", "problem", "b finds its own name at 127.0.1.1: gloo would give that address to the others"),
    ),
    "an unknown name": (
        place(
            node("a"), node("b"), links=(Link("a", ("b",), "gloo", 0.001, 500.0), Link("b", (), "gloo", 0.001, 500.0))
        ),
        ("names", "warning", "a does not know b"),
    ),
    "a firewall": (
        place(
            node("a"),
            node("b"),
            links=(Link("a", (), "gloo", error="timed out"), Link("b", (), "gloo", error="timed out")),
        ),
        ("all-reduce", "problem", "no all-reduce between the nodes: timed out (a, b)"),
    ),
    "an interface that one node lacks": (
        place(
            node("a"),
            node("b"),
            links=(Link("a", (), "gloo", error="no interface eth1"), Link("b", (), "gloo", error="timed out")),
        ),
        ("all-reduce", "problem", "no all-reduce between the nodes: no interface eth1 (a)"),
    ),
    "a slow network": (
        place(node("a"), node("b"), links=(Link("a", (), "gloo", 0.001, 11.2), Link("b", (), "gloo", 0.001, 11.4))),
        ("all-reduce", "warning", "all-reduce over gloo moves 11 MB/s per node"),
    ),
    "NCCL over a slow network": (
        place(node("a"), node("b"), links=(Link("a", (), "nccl", 0.001, 120.0), Link("b", (), "nccl", 0.001, 120.0))),
        ("all-reduce", "warning", "all-reduce over nccl moves 120 MB/s per node"),
    ),
    "a long way": (
        place(node("a"), node("b"), links=(Link("a", (), "gloo", 0.08, 400.0), Link("b", (), "gloo", 0.08, 400.0))),
        ("all-reduce", "warning", "the smallest all-reduce takes 80 ms"),
    ),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_what_nodes_are_only_together(name: str) -> None:
    found, expected = TOGETHER[name]
    assert the_one(found) == expected


def test_a_named_interface_settles_what_names_resolve_to() -> None:
    found = place(node("a"), node("b", own_address="127.0.1.1"), network_interface="eth0")
    assert wrong(found) == []


def test_elastic_workers_need_room_for_the_fewest() -> None:
    assert wrong(place(node(cpus=2), min_workers=2, max_workers=8)) == []


def test_a_node_that_does_not_answer_and_a_place_that_cannot_be_entered() -> None:
    [silent] = wrong(place(silent={"c": "no answer within 90 s"}))
    assert (silent.check, silent.state) == ("nodes", "problem")
    [refused] = judge(replace(place(), nodes=(), refused=("address: auto, but no Ray runs on this machine",)))
    assert (refused.check, refused.state) == ("place", "problem")
    assert "no Ray runs" in refused.says


def test_a_name_that_only_a_proxy_knows_is_no_mistake() -> None:
    assert wrong(place(node(store=replace(STORE, address="")))) == []


def test_a_cluster_without_a_node() -> None:
    [none] = judge(replace(place(), nodes=()))
    assert (none.check, none.state) == ("nodes", "problem")


def test_several_mistakes_are_all_told() -> None:
    found = place(node("a", cpus=0.5, shm=0, open_files=512), node("b", python="3.9.1", memory_free=0))
    assert [one.check for one in wrong(found)] == ["python", "memory", "shm", "open files"]
