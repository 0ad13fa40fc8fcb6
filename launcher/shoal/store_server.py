"""The embedded S3 server's supervisor: a process of its own, `python -I store_server.py WEED FOLDER BUCKET`.

Uses the standard library alone and gets no environment, so that it starts at once and knows no key but its own.
FOLDER/lease    those who use the server hold a shared lock; when there is none, the server stops
FOLDER/server   locked while the server runs (the server inherits the lock: two never share the data)
FOLDER/ready    locked by the supervisor while the server answers
FOLDER/server.json, identities.json   endpoint, ports and generated keys, readable by the owner alone
"""

import ctypes
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

SERVICES = ("s3", "master", "volume", "filer", "admin")
READY_TIMEOUT_S = 40
VOLUMES_MARGIN_S = 20
"""A volume that does not come up this long before the deadline is left out: the others are served."""
STOP_TIMEOUT_S = 20
LINGER_S = 3
"""Stays this long without a lease: the next command of a script often follows within a second or two."""
POLL_S = 0.2
RESTARTS = 3
PR_SET_PDEATHSIG = 1


class NotReady(Exception):
    """The server did not come up."""


def main() -> int:
    weed, folder, bucket = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    os.umask(0o077)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    held = (folder / "server").open("a")
    try:
        _wait_for(held)
        return _supervise(weed, folder, bucket, held)
    except (NotReady, OSError) as error:
        print(error, flush=True)
        return 1


def _leave(*_: object) -> None:
    raise SystemExit(0)


def _wait_for(held: Any) -> None:
    """Takes the folder; an orphaned server of a killed supervisor is ending by itself."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise NotReady("another server still holds this folder") from None
            time.sleep(POLL_S)
        else:
            return


def _supervise(weed: str, folder: Path, bucket: str, held: Any) -> int:
    """Runs the server until nobody holds a lease; starts it again, at the same place, when it dies."""
    settings, server = _settings(folder), None
    ready, lease = (folder / "ready").open("a"), (folder / "lease").open("a")
    try:
        server, settings = _begin(weed, folder, bucket, held, settings)
        _write(folder / "server.json", settings)
        fcntl.flock(ready, fcntl.LOCK_EX)
        idle_since, restarts = None, 0
        while True:
            time.sleep(POLL_S)
            if server.poll() is not None:
                if restarts == RESTARTS:
                    raise NotReady(f"the server ended {restarts + 1} times")
                restarts += 1
                print(f"the server ended with status {server.returncode}; starting it again", flush=True)
                server = _run(weed, folder, bucket, held, settings["ports"])
                _await_ready(server, settings["ports"], folder, bucket)
            if _has_leases(lease, folder):
                idle_since = None
                continue
            idle_since = idle_since or time.monotonic()
            if time.monotonic() - idle_since >= LINGER_S and _take(lease):
                return 0
    finally:
        # The lease lock, once taken, is kept until the server is gone: who comes now waits for a fresh one.
        fcntl.flock(ready, fcntl.LOCK_UN)
        (folder / "server.json").unlink(missing_ok=True)
        if server is not None:
            _stop(server)


def _has_leases(lease: Any, folder: Path) -> bool:
    """Tries the lock for an instant. A folder that was deleted, or made anew, has no leases of ours."""
    try:
        if (folder / "lease").stat().st_ino != os.fstat(lease.fileno()).st_ino:
            return False
    except FileNotFoundError:
        return False
    if not _take(lease):
        return True
    fcntl.flock(lease, fcntl.LOCK_UN)
    return False


def _take(lease: Any) -> bool:
    try:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _settings(folder: Path) -> dict[str, Any]:
    """What the folder's last server used, so that its endpoint and keys stay; fresh ones the first time."""
    try:
        return json.loads((folder / "settings.json").read_text())
    except (OSError, ValueError):
        return {"access_key": secrets.token_hex(10), "secret_key": secrets.token_hex(20), "ports": _free_ports()}


def _begin(weed: str, folder: Path, bucket: str, held: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Starts the server; other ports are tried when somebody else has taken one."""
    for _ in range(3):
        if not all(_is_free(port) for port in settings["ports"].values()):
            settings = settings | {"ports": _free_ports()}
        settings["endpoint"] = f"http://127.0.0.1:{settings['ports']['s3']}"
        identity = {"accessKey": settings["access_key"], "secretKey": settings["secret_key"]}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = {"identities": [{"name": "shoal", "credentials": [identity], "actions": actions}]}
        _write(folder / "identities.json", identities)
        _write(folder / "settings.json", settings)
        server = _run(weed, folder, bucket, held, settings["ports"])
        try:
            _await_ready(server, settings["ports"], folder, bucket)
            return server, settings
        except NotReady as error:
            print(error, flush=True)
            _stop(server)
    raise NotReady("the server did not start on three choices of ports")


def _run(weed: str, folder: Path, bucket: str, held: Any, ports: dict[str, int]) -> subprocess.Popen[bytes]:
    for name in ("data", "logs"):
        (folder / name).mkdir(exist_ok=True)
    command = [
        weed,
        "-logdir=logs",
        "mini",
        "-dir=data",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
    ]
    command += [f"-{name}.port{kind}={ports[name + kind]}" for name in SERVICES for kind in ("", ".grpc")]
    command += ["-s3.config=identities.json", f"-bucket={bucket}", "-volume.max=1000"]
    command += ["-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    with (folder / "logs" / "server.log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            # Its home is the folder: the user's own SeaweedFS settings are none of ours.
            env={**os.environ, "GOMEMLIMIT": "300MiB", "HOME": str(folder)},
            pass_fds=[held.fileno()],
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    """Asks the kernel to end the server when its supervisor is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _await_ready(server: subprocess.Popen[bytes], ports: dict[str, int], folder: Path, bucket: str) -> None:
    """Returns when the S3 door answers, the bucket is there (asked at the filer, which needs no signature) and the master
    has heard of the volumes: until then reads of what is kept fail. A volume that is damaged is waited for in vain.
    """
    wanted = [f"http://127.0.0.1:{ports['s3']}/healthz", f"http://127.0.0.1:{ports['filer']}/buckets/{bucket}/"]
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not all(_get(url) is not None for url in wanted):
        _pause(server, deadline)
    while not _kept(folder) <= _volumes(ports["master"]):
        _pause(server, deadline)
        if time.monotonic() > deadline - VOLUMES_MARGIN_S:
            print("not every volume came up; see the server's log", flush=True)
            return


def _pause(server: subprocess.Popen[bytes], deadline: float) -> None:
    if server.poll() is not None:
        raise NotReady(f"the server ended with status {server.returncode} before it answered")
    if time.monotonic() > deadline:
        raise NotReady(f"the server did not answer within {READY_TIMEOUT_S} s")
    time.sleep(0.05)


def _kept(folder: Path) -> set[int]:
    """The volumes on the disk: "COLLECTION_ID.dat", or "ID.dat" outside a collection."""
    ids = {path.stem.rpartition("_")[2] for path in (folder / "data").glob("*.dat")}
    return {int(one) for one in ids if one.isdigit()}


def _volumes(master: int) -> set[int]:
    """The volumes that can be read, as the master knows them by data center, rack and node."""
    volumes = json.loads(_get(f"http://127.0.0.1:{master}/vol/status") or "{}").get("Volumes") or {}
    racks = [rack for center in (volumes.get("DataCenters") or {}).values() for rack in center.values()]
    return {volume["Id"] for rack in racks for node in rack.values() for volume in node or []}


def _get(url: str) -> bytes | None:
    """The body, or None where nothing answers well."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as reply:
            return reply.read()
    except (urllib.error.URLError, OSError):
        return None


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.terminate()
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _free_ports() -> dict[str, int]:
    """Ports that are free now, below the range the kernel hands out: kept between runs, they should stay free."""
    names = [name + kind for name in SERVICES for kind in ("", ".grpc")]
    ports: set[int] = set()
    while len(ports) < len(names):
        port = 10_000 + secrets.randbelow(20_000)
        if _is_free(port):
            ports.add(port)
    return dict(zip(names, sorted(ports), strict=True))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _write(path: Path, body: dict[str, Any]) -> None:
    """Whole at once; the umask lets nobody else read it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(body))
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
