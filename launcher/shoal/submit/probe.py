"""What a cluster has, asked on its head: this file is sent there as it is, and needs nothing but Python itself.

Its argument is JSON: `requirements` (names of distributions), `variables`, `files`, `hosts` ([[host, port], ...]). The
answer is a line that begins with MARK: the interpreter of the cluster's Ray, its version, what is there and what is not.
"""

import hashlib
import importlib.util
import json
import os
import platform
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

MARK = "shoal-probe "
SOURCE = "SHOAL_PROBE"
"""The variable that this file comes in."""
CONNECT_S = 5.0


def files(folder: Path) -> list[tuple[Path, str]]:
    """(path, name below `folder`) of all that a package is made of, in the order of names."""
    found = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return sorted(((path, path.relative_to(folder).as_posix()) for path in found), key=lambda one: one[1])


def digest(folder: Path) -> str:
    """Of the package's own files: the same wherever the same Shoal is."""
    found = hashlib.sha256()
    for path, name in files(folder):
        found.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]


def main(asked: dict[str, Any]) -> dict[str, Any]:
    spec = importlib.util.find_spec("shoal")
    places = (spec.submodule_search_locations if spec else None) or []
    folder = next((Path(place) for place in places if (Path(place) / "__init__.py").exists()), None)
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "shoal": version("shoal") if folder else None,
        "digest": digest(folder) if folder else None,
        "distributions": {name: version(name) for name in asked["requirements"]},
        "unset": [name for name in asked["variables"] if not os.environ.get(name)],
        "missing": [name for name in asked["files"] if not Path(name).expanduser().exists()],
        "unreached": [host for host, port in asked["hosts"] if not reaches(host, port)],
    }


def version(name: str) -> "str | None":
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def reaches(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError:
        return False
    return True


def rays_python() -> "str | None":
    """The interpreter that Ray starts its workers with, as the raylet above this process says; None without one."""
    pid = os.getppid()
    try:
        while pid > 1:
            for word in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0"):
                if word.startswith("--python_worker_command="):
                    return word.partition("=")[2].split()[0]
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return None


if __name__ == "__main__":
    own = rays_python()
    if own and os.access(own, os.X_OK) and "SHOAL_PROBED" not in os.environ:
        os.environ["SHOAL_PROBED"] = "1"
        os.execv(own, [own, "-c", os.environ[SOURCE], *sys.argv[1:]])  # noqa: S606
    print(MARK + json.dumps(main(json.loads(sys.argv[1]))), flush=True)
