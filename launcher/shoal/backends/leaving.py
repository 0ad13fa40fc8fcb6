"""What a pod does before it ends: `python -m shoal.backends.leaving driver|node SECONDS`, run as its preStop hook.

On the head's pod the driver is asked to finish its step, save and leave; the same command goes on from there in another
cluster. On a worker's pod Ray hears that the node goes, so that the group saves and leaves it; an idle raylet then ends
by itself. Last, `ray start` is told to end: it is not the pod's first process, so Kubernetes' own signal misses it.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

PROC = Path("/proc")
POLL_S = 0.5
ASK_S = 10.0
"""How long Ray's control store has to answer."""
DRIVER, NODE = "driver", "node"


@dataclass(frozen=True)
class Process:
    pid: int
    arguments: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Each argument without the folder in front of it."""
        return tuple(PurePosixPath(one).name for one in self.arguments)

    def value(self, flag: str) -> str:
        """What `--flag=VALUE` says, written with dashes or underscores; empty without it."""
        said = (one.partition("=") for one in self.arguments)
        return next((value for name, _, value in said if name.replace("_", "-") == flag), "")


def processes(proc: Path = PROC) -> Iterator[Process]:
    """Every process of this pod that lives."""
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            arguments = (folder / "cmdline").read_text(errors="replace").rstrip("\0").split("\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue  # it has just ended
        if state != "Z" and arguments != [""]:
            yield Process(int(folder.name), tuple(arguments))


def is_driver(one: Process) -> bool:
    """`python shoal run ... --run-id ID`, but not the shell that started it."""
    return "shoal" in one.names and "run" in one.arguments and "--run-id" in one.arguments


def is_raylet(one: Process) -> bool:
    return one.names[0] == "raylet"


def is_ray_start(one: Process) -> bool:
    return "ray" in one.names[:2] and "start" in one.arguments and "--block" in one.arguments


def gone(pids: list[int], deadline: float, proc: Path = PROC) -> bool:
    """Wait for the end of all of them; whether it came in time."""
    while any(one.pid in pids for one in processes(proc)):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def stop_driver(seconds: float) -> None:
    """Ask the driver to save and leave, and wait for it."""
    pids = [one.pid for one in processes() if is_driver(one)]
    if not pids:
        return
    say(f"the pod must go: the driver has {seconds:.0f} s to save")
    _signal(
        pids, signal.SIGUSR1
    )  # Ray's job server may have sent SIGTERM already, and a second one would leave at once
    say(
        "the driver has left"
        if gone(pids, time.monotonic() + seconds)
        else f"the driver is still there after {seconds:.0f} s"
    )


def drain(seconds: float) -> None:
    """Tell Ray that this node goes, and wait until its workers have left it and it has ended."""
    raylets = [one for one in processes() if is_raylet(one)]
    if not raylets:
        return
    say(f"the pod must go: its workers have {seconds:.0f} s to save")
    deadline = time.monotonic() + seconds
    for one in raylets:
        if refused := _drain(one, seconds):
            say(f"Ray did not take it: {refused}")
            return
    in_time = gone([one.pid for one in raylets], deadline)
    say("no worker is left on this node" if in_time else f"workers are still there after {seconds:.0f} s")


def _drain(raylet: Process, seconds: float) -> str:
    """Ask Ray's control store; why it refused, empty when it did not."""
    import ray._raylet
    from ray.core.generated import autoscaler_pb2

    node, address = raylet.value("--node-id"), raylet.value("--gcs-address")
    library, messages = cast(Any, ray._raylet), cast(Any, autoscaler_pb2)
    reason = messages.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    until_ms = int((time.time() + seconds) * 1000)
    try:
        accepted, why = library.GcsClient(address=address).drain_node(
            node, reason, "its pod must go", until_ms, timeout=min(seconds, ASK_S)
        )
    except Exception as error:  # noqa: BLE001  the process's edge: the pod ends in any case
        return str(error) or type(error).__name__
    return "" if accepted else why or "no reason given"


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def say(text: str) -> None:
    print(f"shoal: {text}", flush=True)


def main(arguments: list[str]) -> None:
    who, seconds = arguments
    {DRIVER: stop_driver, NODE: drain}[who](float(seconds))
    _signal([one.pid for one in processes() if is_ray_start(one)], signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1:])
