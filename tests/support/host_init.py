"""Process 1 of a host: `python host_init.py NAME FOLDER`, in namespaces of its own. Makes the host's places, then reaps.

FOLDER/tmp becomes its disk under /tmp, FOLDER/hosts and FOLDER/resolv.conf its names; /dev/shm is a memory of its own.
The checkout and its environment stay where they are, below /tmp too.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SHARED_MEMORY = "size=2g"


def main(name: str, folder: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    socket.sethostname(name)
    mount("-t", "tmpfs", "-o", SHARED_MEMORY, "tmpfs", "/dev/shm")
    for source, place in (("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")):
        mount("--bind", str(folder / source), os.path.realpath(place))
    disk, shared = folder / "tmp", Path("/tmp").resolve()
    for place in {CHECKOUT, Path(sys.prefix).resolve()}:
        if place.is_relative_to(shared):
            again = disk / place.relative_to(shared)
            again.mkdir(parents=True, exist_ok=True)
            mount("--bind", str(place), str(again))
    mount("--rbind", str(disk), str(shared))
    print("up", flush=True)
    while True:
        signal.sigwait({signal.SIGCHLD})
        reap()


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def reap() -> None:
    """What has ended and belongs to nobody else."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
