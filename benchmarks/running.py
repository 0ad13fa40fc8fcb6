"""Running contenders one after another: a process tree watched for its memory, and the line that a benchmark ends with."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from materials import BENCH, ROOT

SAMPLE_S = 0.5


@dataclass(frozen=True)
class Ran:
    """One finished command: when it began (seconds since the epoch), and each of its processes' peak memory in bytes."""

    began: float
    peaks: list[int]
    """Largest first."""


def run(command: list[str], log: Path, env: dict[str, str]) -> Ran:
    """Runs `command` to its end with its output in `log`. Raises RuntimeError with the log's end when it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    peaks: dict[int, int] = {}
    with log.open("wb") as out:
        began = time.time()
        child = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=ROOT, start_new_session=True
        )
        try:
            while child.poll() is None:
                _sample(child.pid, peaks)
                time.sleep(SAMPLE_S)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGTERM)
                child.wait(60)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {child.returncode}; {log} ends with\n{_tail(log)}")
    return Ran(began, sorted(peaks.values(), reverse=True))


def _sample(pid: int, peaks: dict[int, int]) -> None:
    """The kernel keeps each process's own high-water mark, so that seldom looking loses nothing but the very end."""
    try:
        family = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for member, memory in memories(family):
        peaks[member] = memory["VmHWM"]


def memories(processes: Iterable[psutil.Process]) -> Iterator[tuple[int, dict[str, int]]]:
    """(pid, bytes by the kernel's name) of those that are still there."""
    for one in processes:
        try:
            lines = Path(f"/proc/{one.pid}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found = {
            name: int(rest.split()[0]) * 1024
            for name, _, rest in (line.partition(":") for line in lines)
            if rest.endswith(" kB")
        }
        if "VmHWM" in found:  # a process that is dying has no memory left
            yield one.pid, found


def shoal(job: dict, folder: Path, log: Path) -> tuple[Ran, Path]:
    """`shoal run` on two local workers with everything under `folder`; what ran, and its run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    profile = {
        "kind": "local",
        "workers": 2,
        "storage": {name: str(folder / name) for name in ("runs", "prepared", "cache")},
    }
    (folder / "profile.yaml").write_text(json.dumps(profile, indent=1))
    (folder / "job.yaml").write_text(json.dumps(job, indent=1))
    before = set((folder / "runs").glob("*"))
    command = [sys.executable, "-m", "shoal", "run", str(folder / "job.yaml"), "--on", str(folder / "profile.yaml")]
    # No OMP_NUM_THREADS and the like: a user sets none, so what Shoal makes of that is part of what is measured.
    ran = run(command, log, os.environ | {"HF_HUB_OFFLINE": "1"})
    (made,) = set((folder / "runs").glob("*")) - before
    return ran, made


def rows(path: Path, kind: str) -> list[dict]:
    """The rows of one kind in a run's metrics.jsonl or events.jsonl."""
    return [row for row in map(json.loads, path.read_text().splitlines()) if row["kind"] == kind]


def finish(result: dict, out: Path | None) -> None:
    """Prints the result as the last line, and keeps it where asked, else under .bench/results."""
    result |= {"machine": _machine(), "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": _commit()}
    path = out or BENCH / "results" / f"{result['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} x {model}"


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
