"""Measures the node that it runs on. Takes a few seconds, leaves nothing behind, judges nothing."""

import contextlib
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import TypeVar
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener
from uuid import uuid4

from shoal import store as embedded
from shoal.doctor.facts import Cuda, Disk, Gpu, Node, Store
from shoal.errors import StorageError
from shoal.spec.cluster import ClusterProfile, S3Spec
from shoal.storage import Storage, absolute, join
from shoal.storage.client import LOOPBACK, endpoint_of

T = TypeVar("T")

PACKAGES = ("shoal", "torch", "ray", "transformers", "deepspeed", "peft", "numpy", "bitsandbytes")
SMALL, SMALLS = 1 << 10, 5
LARGE = 8 << 20
"""Bytes of the object that the store's rates are measured with."""
PATIENCE_S = 8.0
"""The store is tried again for so long."""
NO_HTTP_S = 5.0


def measure(profile: ClusterProfile) -> Node:
    """Everything about this node that a run on `profile` may stumble over. Raises nothing that a person can mend."""
    name = socket.gethostname()
    own = _resolve(name)
    memory, free = _memory()
    return Node(
        name=name,
        address=_address(own),
        own_address=own,
        python=python_version(),
        versions={package: _version(package) for package in PACKAGES},
        cpus=_cpus(),
        memory=memory,
        memory_free=free,
        shm=_size("/dev/shm"),  # noqa: S108  a mount point, not a file
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        cache=_disk(Path(profile.storage.cache).expanduser()),
        temporary=_disk(Path(tempfile.gettempdir())),
        store=measure_store(profile),
        gpus=_gpus(),
        cuda=_cuda() if profile.resources_per_worker.gpu else None,
        port=_free_port(),
        clock=time.time(),
    )


def measure_store(profile: ClusterProfile) -> Store:
    """A few small objects and a larger one are put, read in whole and by ranges, and removed again."""
    where = join(absolute(profile.storage.runs), ".doctor", uuid4().hex)
    url, host, address = profile.storage.runs, "", ""
    try:
        endpoint = _endpoint(profile.storage.s3) if where.startswith("s3://") else None
        if endpoint:
            host = urlsplit(endpoint).hostname or ""
            address = _resolve(host)
        storage = Storage(profile.storage.s3).patient(PATIENCE_S)
        try:
            return _exercise(storage, where, Store(url, host=host, address=address, clock_s=_store_clock(endpoint)))
        finally:
            with contextlib.suppress(StorageError):
                storage.delete(f"{where}/")
    except StorageError as error:
        said = "; ".join(map(str, error.problems))
        return Store(url, error=re.sub(rf"{re.escape(where)}/[\w-]+", url, said), host=host, address=address)


def _exercise(storage: Storage, where: str, known: Store) -> Store:
    puts, gets = [], []
    for number in range(SMALLS):
        small, body = join(where, f"small-{number}"), os.urandom(SMALL)
        puts.append(_timed(lambda small=small, body=body: storage.write(small, body))[0])
        took, read = _timed(lambda small=small: storage.read(small))
        gets.append(took)
        if read != body:
            return Store(
                known.url, error=f"{small}: was read otherwise than it was written; the store is not to be trusted"
            )
    large, body = join(where, "large"), os.urandom(LARGE)
    wrote, _ = _timed(lambda: storage.write(large, body))
    took, read = _timed(lambda: storage.read(large))
    ranges = [(start, start + (64 << 10)) for start in (0, LARGE // 2 + 1, LARGE - (64 << 10))]
    if read != body or storage.read_ranges(large, ranges) != [body[start:end] for start, end in ranges]:
        return Store(
            known.url, error=f"{large}: was read otherwise than it was written; the store is not to be trusted"
        )
    return Store(
        url=known.url,
        put_s=statistics.median(puts),
        get_s=statistics.median(gets),
        write_mb_per_s=LARGE / 1e6 / wrote,
        read_mb_per_s=LARGE / 1e6 / took,
        clock_s=known.clock_s,
        host=known.host,
        address=known.address,
    )


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    found = call()
    return time.perf_counter() - began, found


def _endpoint(s3: S3Spec) -> str | None:
    """Where s3:// is really asked; None where it is a plain folder. Raises StorageError."""
    if s3.server == "embedded":
        return embedded.connection(s3).endpoint if embedded.available() else None
    return endpoint_of(s3) or f"https://s3.{s3.region or 'us-east-1'}.amazonaws.com"


def _store_clock(endpoint: str | None) -> float | None:
    """This node's clock less the store's, from the Date of any answer: a refusal has one, too."""
    if endpoint is None:
        return None
    proxies = ProxyHandler({}) if urlsplit(endpoint).hostname in LOOPBACK else ProxyHandler()
    try:
        with build_opener(proxies).open(Request(endpoint, method="HEAD"), timeout=NO_HTTP_S) as answer:  # noqa: S310
            date = answer.headers.get("Date")
    except HTTPError as error:
        date = error.headers.get("Date")
    except OSError:
        return None
    # The header is cut to a whole second: half of one is the middle.
    return time.time() - parsedate_to_datetime(date).timestamp() - 0.5 if date else None


def _resolve(name: str) -> str:
    """The first address of a host name; empty when it has none."""
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return ""


def _address(own: str) -> str:
    """The address of the interface that leads out, as far as one can tell without sending anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return own


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpus() -> float:
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _read("/sys/fs/cgroup/cpu.max").split()
    return min(mine, int(limit[0]) / int(limit[1])) if len(limit) == 2 and limit[0].isdecimal() else mine


def _memory() -> tuple[int, int]:
    """(all, free) in bytes; what the page cache holds is free."""
    known = {line.split(":")[0]: int(line.split()[1]) << 10 for line in _read("/proc/meminfo").splitlines()}
    if not known:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return whole, whole
    whole, free = known["MemTotal"], known["MemAvailable"]
    limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    if limit.isdecimal() and used.isdecimal() and int(limit) < whole:
        reclaimable = sum(int(line.split()[1]) for line in _read("/sys/fs/cgroup/memory.stat").splitlines()
                          if line.startswith(("inactive_file ", "active_file ")))  # fmt: skip
        whole, free = int(limit), min(free, int(limit) - int(used) + reclaimable)
    return whole, free


def _size(mount: str) -> int:
    return shutil.disk_usage(mount).total if Path(mount).is_dir() else 0


def _disk(path: Path) -> Disk:
    """The disk that `path` lies on, or will; a small file is written there."""
    there = next(one for one in (path, *path.parents) if one.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"shoal")
        return Disk(str(path), shutil.disk_usage(there).free)
    except OSError as error:
        return Disk(str(path), 0, error.strerror or str(error))


def _gpus() -> tuple[Gpu, ...]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[part.strip() for part in line.split(",")] for line in said.splitlines()]
    return tuple(Gpu(row[0], int(row[1]) if row[1].isdecimal() else 0, row[2]) for row in rows if len(row) == 3)


def _cuda() -> Cuda:
    # Ray hides the GPUs from a task that takes none; this one only looks.
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        del os.environ["CUDA_VISIBLE_DEVICES"]
    import torch

    driver = getattr(torch._C, "_cuda_getDriverVersion", None)  # a build without CUDA has none
    newest = driver() if driver else 0
    supports = f"{newest // 1000}.{newest % 1000 // 10}" if newest else None
    devices, error = torch.cuda.device_count() if torch.version.cuda else 0, ""
    if devices:
        error = _first_line(lambda: float((torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")).sum()))
    return Cuda(torch.version.cuda, supports, devices, error, _first_line(_four_bits) if devices and not error else "")


def _four_bits() -> None:
    import torch
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(64, 64, compute_dtype=torch.float32).to("cuda")
    layer(torch.ones(1, 64, device="cuda"))


def _first_line(call: Callable[[], object]) -> str:
    """Empty when the call succeeds, else why it did not: drivers and libraries fail in ways that have no common root."""
    try:
        call()
    except Exception as error:  # noqa: BLE001
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
