"""The real command line as a process of its own, its lines read as they come."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml
from hosts import Host

from shoal.spec.base import Frozen


class Command:
    """`shoal ARGUMENTS...`, running, its lines as a person sees them; with `--json`, stdout is kept apart.

    It runs here, or on one of the hosts of a test.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        host: Host | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.out = folder / "stdout.json"
        apart = "--json" in arguments
        command = [sys.executable, "-m", "shoal", *arguments]
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                host.command(*command) if host else command,
                stdout=out if apart else subprocess.PIPE,
                stderr=subprocess.PIPE if apart else subprocess.STDOUT,
                text=True,
                env={**(host.environment() if host else environment or os.environ), "COLUMNS": "400"},
                start_new_session=True,  # as a shell would: a Ctrl-C of whoever runs the tests is not this one's
            )
        self._pipe = self.process.stderr or self.process.stdout
        self.lines: list[str] = []
        self._ended = False
        self._queue: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._pipe
        for line in self._pipe:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def until(self, text: str, timeout_s: float = 120) -> str:
        """The next line that holds `text`. Fails with everything said so far when it does not come."""
        deadline = time.monotonic() + timeout_s
        while (line := self._next(deadline)) is not None:
            if text in line:
                return line
        raise AssertionError(f"{text!r} did not come:\n" + "\n".join(self.lines))

    def end(self, timeout_s: float = 120) -> int:
        """The exit status."""
        deadline = time.monotonic() + timeout_s
        while self._next(deadline) is not None:
            pass
        return self.process.wait(timeout=max(1.0, deadline - time.monotonic()))

    def family(self) -> list[psutil.Process]:
        """Every process below the command that runs now; it keeps its identity when its pid is used again."""
        return psutil.Process(self.process.pid).children(recursive=True)

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out.read_text())

    def _next(self, deadline: float) -> str | None:
        """None at the end of all lines."""
        if self._ended:
            return None
        try:
            line = self._queue.get(timeout=max(0.01, deadline - time.monotonic()))
        except queue.Empty:
            self.process.kill()
            raise AssertionError("the command went quiet for too long:\n" + self.said) from None
        if line is None:
            self._ended = True
        else:
            self.lines.append(line)
        return line


def left_running(processes: Sequence[psutil.Process], timeout_s: float = 30) -> list[psutil.Process]:
    """Those of `processes` that still run after at most `timeout_s`; zombies are gone."""
    deadline = time.monotonic() + timeout_s
    while left := [one for one in processes if _runs(one)]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.1)
    return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def write(path: Path, spec: Frozen) -> str:
    """A job or a profile as the file that a person would write."""
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True)))
    return str(path)
