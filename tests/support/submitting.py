"""A Ray cluster as somebody else runs it: one head with its dashboard, reached over HTTP alone, and a store that both see."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from command import Command
from hosts import spawn, stop
from jobs import job, write_rows

from shoal.spec.cluster import S3Spec
from shoal.storage import Storage
from shoal.store import connection

DASHBOARD = Path(sys.prefix) / "dashboard"
"""What Ray's dashboard needs, which `make env` keeps apart (tests/support/dashboard.txt)."""
MAPPED = "[::ffff:127.0.0.1]"
"""Loopback under a name that is nobody's: a profile for a cluster may not say 127.0.0.1."""
UP_S = 120.0
KEY, SECRET = "SHOAL_TEST_KEY", "SHOAL_TEST_SECRET"
"""Variables that the head and this machine have; their values are never sent."""


def free_ports(count: int) -> list[int]:
    taken = [socket.socket() for _ in range(count)]
    for one in taken:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


@dataclass
class Head:
    """A running cluster of one node."""

    address: str
    folder: Path
    s3: S3Spec
    endpoint: str
    environment: dict[str, str]
    """Of whoever submits."""
    storage: Storage = field(init=False)

    def __post_init__(self) -> None:
        self.storage = Storage(self.s3)

    def profile(self, path: Path, **changes: Any) -> str:
        """A profile that submits here, as a file."""
        body = {
            "kind": "ray",
            "address": self.address,
            "workers": 1,
            "wait_s": 60,
            "storage": {
                "runs": "s3://shoal/runs",
                "prepared": "s3://shoal/prepared",
                "cache": str(self.folder / "cache"),
                "s3": {
                    "endpoint_url": self.endpoint,
                    "region": "us-east-1",
                    "credentials": {"access_key_env": KEY, "secret_key_env": SECRET},
                },
            },
        }
        path.write_text(yaml.safe_dump({**body, **changes}))
        return str(path)

    def job(self, path: Path, **sections: Any) -> str:
        """The tiny job on what lies in the store."""
        made = job("s3://shoal/tiny", "s3://shoal/rows.jsonl", **sections)
        path.write_text(yaml.safe_dump(made.model_dump(mode="json", exclude_unset=True)))
        return str(path)

    def shoal(self, folder: Path, *arguments: str) -> Command:
        """`shoal ARGUMENTS...` on a machine that is none of the cluster's."""
        folder.mkdir(parents=True, exist_ok=True)
        return Command(arguments, folder, environment=self.environment)

    def ask(self, path: str) -> Any:
        """What the dashboard says to a GET."""
        token = self.environment.get("RAY_AUTH_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with urllib.request.urlopen(urllib.request.Request(self.address + path, headers=headers), timeout=20) as answer:
            return json.loads(answer.read())


@contextmanager
def head(
    s3: S3Spec, folder: Path, model: Path, cpus: int = 2, path: Path = DASHBOARD, **environment: str
) -> Iterator[Head]:
    """A cluster that is up, its store filled with the tiny model and rows; everything gone afterwards.

    `path`: where its Python looks first of all.
    """
    assert (DASHBOARD / "aiohttp_cors").is_dir(), f"{DASHBOARD} is missing: `make env` makes it"
    kept = connection(s3)
    keys = {KEY: kept.access_key, SECRET: kept.secret_key}
    ports = free_ports(5)
    short = tempfile.mkdtemp(prefix="shoal-ray-", dir="/tmp")  # a socket's path has room for 107 bytes
    own = {**_bare(), **keys, "RAY_AUTH_MODE": "disabled", **environment}
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"]
    names = (
        "port",
        "dashboard-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "ray-client-server-port",
    )
    command += [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    command += ["--dashboard-host=127.0.0.1", f"--num-cpus={cpus}", "--object-store-memory=100000000"]
    command += [f"--temp-dir={short}", "--min-worker-port=0", "--max-worker-port=0"]
    there = {
        **own,
        "PYTHONPATH": os.pathsep.join({str(path): None, str(DASHBOARD): None}),
        "HOME": str(_home(folder / "head")),
    }
    process = spawn(command, folder / "head.log", there)
    address = f"http://127.0.0.1:{ports[1]}"
    try:
        here = {**own, "HOME": str(_home(folder / "here"))}
        made = Head(address, folder, s3, kept.endpoint.replace("127.0.0.1", MAPPED), here)
        _await(made, process, folder / "head.log")
        made.storage.upload(model, "s3://shoal/tiny/")
        made.storage.upload(write_rows(folder / "rows.jsonl"), "s3://shoal/rows.jsonl")
        yield made
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for one in family:  # Ray would take half a minute to say goodbye
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        stop(process, signal.SIGKILL)
        shutil.rmtree(short, ignore_errors=True)


def _bare() -> dict[str, str]:
    """Nothing of Ray's that whoever runs the tests has set."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**mine, "RAY_worker_niceness": "0", "COLUMNS": "400", "HF_HUB_OFFLINE": "1"}


def _home(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _await(made: Head, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + UP_S
    while True:
        try:
            if made.ask("/api/v0/nodes?detail=1")["data"]["result"]["total"]:
                return
        except (OSError, KeyError):
            pass
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
        time.sleep(0.3)


def secret_values(environment: Mapping[str, str]) -> list[str]:
    """What must be found nowhere."""
    return [environment[name] for name in (KEY, SECRET, "RAY_AUTH_TOKEN") if name in environment]


def new_token() -> str:
    return secrets.token_hex(24)
