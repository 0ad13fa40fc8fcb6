"""Who of a group stands still, told from each rank's heartbeat, and the end of a process that hangs. Knows no Ray."""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shoal.train.world import LONG_PHASES

PATIENCE = 6
"""How many times hang_timeout_s a long phase may last without a mark."""
SILENT_S = 2.5
"""Seconds without a heartbeat after which a process is dead, cut off, or stands as a whole."""
STACK_S = 1.0
"""How long a process has to write its stack down before it is killed."""
STACK_BYTES = 16_000
GONE = "gone"
"""The state of a process that is not there any more."""
STATES = {
    "T": "stopped by a signal",
    "t": "held by a debugger",
    "D": "waiting for a disk or a driver",
    "Z": "dead already",
}
"""Process states of /proc that say something of the cause."""


@dataclass(frozen=True)
class Beat:
    """What one rank says of itself about once a second."""

    rank: int
    node: str
    """The host's name."""
    pid: int
    phase: str
    step: int
    """The last step whose update is done."""
    marks: int
    waiting: bool
    still_s: float
    """Seconds since its last mark when it said so."""
    memory: float
    """Share of its node's, or its container's, memory in use."""
    asked_by: str
    """Who asked this rank to leave; empty when nobody did."""
    attempt: int | None


@dataclass(frozen=True)
class Hang:
    """The verdict on one rank, and what its process was found to be like."""

    beat: Beat
    step: int
    """The last one that any rank is known to have done: they work in lockstep, and a heartbeat is up to a second old."""
    still_s: float
    silent: bool
    """Not even its heartbeat came: the whole process stands."""
    others: int
    """Ranks that wait for it."""
    state: str = ""
    stack: str = ""

    @property
    def message(self) -> str:
        beat = self.beat
        doing = "its whole process stands" if self.silent else beat.phase
        state = f", {self.state}" if self.state else ""
        wait = f" while {self.others} wait{'' if self.others > 1 else 's'} for it" if self.others else ""
        return (
            f"worker {beat.rank} hangs on {beat.node} after step {self.step} ({doing}{state}): "
            f"no progress for {self.still_s:.0f} s{wait}"
        )


def hangs(beats: Mapping[int, Beat], silent_s: Mapping[int, float], timeout_s: float) -> list[Hang]:
    """The ranks that a group waits for in vain; none while it moves. `silent_s`: seconds since each rank's last beat.

    A rank without a heartbeat is one. Otherwise all ranks stand still, since they work in lockstep: those that are in a
    collective wait, and of the others the ones with the fewest marks are behind.
    """
    allowed = {rank: timeout_s * (PATIENCE if beat.phase in LONG_PHASES else 1) for rank, beat in beats.items()}
    still = {rank: beat.still_s + silent_s[rank] for rank, beat in beats.items()}
    guilty = [rank for rank in beats if silent_s[rank] > allowed[rank]]
    if not guilty:
        if any(still[rank] <= allowed[rank] for rank in beats):
            return []
        outside = [rank for rank, beat in beats.items() if not beat.waiting] or list(beats)
        fewest = min((beats[rank].marks for rank in outside), default=0)
        guilty = [rank for rank in outside if beats[rank].marks == fewest]
    step = max((beat.step for beat in beats.values()), default=0)
    others = len(beats) - len(guilty)
    return [Hang(beats[rank], step, still[rank], silent_s[rank] > SILENT_S, others) for rank in sorted(guilty)]


def end(pid: int) -> tuple[str, str]:
    """Kills a process on this machine, after it wrote its stack to its stderr where it still can: (its state, the stack).

    The worker has SIGUSR2 write the stack of all its threads, from C, whatever holds the interpreter.
    """
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        said = Path(f"/proc/{pid}/fd/2").resolve()
        before = said.stat().st_size
        if state in "RSD":
            os.kill(pid, signal.SIGUSR2)
            time.sleep(STACK_S)
        with said.open(errors="replace") as file:
            file.seek(before)
            stack = file.read(STACK_BYTES)
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return GONE, ""
    return STATES.get(state, ""), stack


def memory_in_use() -> float:
    """Share of this node's memory that is taken, or of this container's where it has a limit of its own."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
        share = 1 - free / total
    except (OSError, KeyError, ValueError):
        return 0.0
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        return max(share, used / int(limit)) if limit.isdecimal() else share
    except (OSError, ValueError):
        return share
