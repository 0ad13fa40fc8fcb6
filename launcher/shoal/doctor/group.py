"""The nodes together: how each finds the others' names, and an all-reduce over all. Runs on every node at once."""

import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from shoal.doctor.facts import Link

TIMEOUT_S = 45
LARGE = 16 << 20
"""Bytes of the all-reduce that the rate is measured with."""
LARGES, SMALLS = 5, 30


def measure_link(
    rank: int, size: int, master: tuple[str, int], names: Mapping[str, str], device: str, interface: str | None
) -> Link:
    """This node's part. `master`: address and free port of rank 0's node. `names`: each node's name and address."""
    me = socket.gethostname()
    unresolved = tuple(name for name in names if name != me and not _resolves(name))
    backend = "nccl" if device == "cuda" else "gloo"
    if interface:
        there = [name for _, name in socket.if_nameindex()]
        if interface not in there:
            return Link(me, unresolved, backend, error=f"no interface {interface}, there are {', '.join(there)}")
        os.environ |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    try:
        latency, rate = _all_reduce(rank, size, master, backend, device)
    except Exception as error:  # noqa: BLE001  the libraries' errors have no common root, and each is an answer here
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Link(me, unresolved, backend, error=line[:200])
    return Link(me, unresolved, backend, latency, rate)


def _all_reduce(rank: int, size: int, master: tuple[str, int], backend: str, device: str) -> tuple[float, float]:
    """(seconds of a small one, MB/s that each node sends in a large one)."""
    import torch
    import torch.distributed as dist

    patience = timedelta(seconds=TIMEOUT_S)
    store = dist.TCPStore(master[0], master[1], size, is_master=rank == 0, timeout=patience, wait_for_workers=False)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    try:
        small, large = torch.zeros(1, device=device), torch.zeros(LARGE // 4, device=device)
        small_s, large_s = _each(dist, small, SMALLS), _each(dist, large, LARGES)
        dist.barrier()
    finally:
        dist.destroy_process_group()
    # A ring sends 2 (n - 1) / n of the bytes from every node.
    return small_s, 2 * (size - 1) / size * LARGE / 1e6 / large_s


def _each(dist: Any, tensor: Any, count: int) -> float:
    """Seconds of one all-reduce, after one that warms up."""
    dist.all_reduce(tensor)
    float(tensor[0])  # on a GPU: wait until it is done
    began = time.perf_counter()
    for _ in range(count):
        dist.all_reduce(tensor)
    float(tensor[0])
    return (time.perf_counter() - began) / count


def _resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False
