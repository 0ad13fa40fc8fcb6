"""A driver's log as it comes, turned back into the events that its own display would have had.

The driver writes one JSON line per event (`--events`); anything else in its log is somebody's words, kept as they are.
"""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from shoal.errors import ClusterError, Problem
from shoal.submit.dashboard import Job, Unanswered
from shoal.submit.jobs import Jobs
from shoal.train.world import Event

AGAIN_S = 1.0
AWAY_S = 120.0
"""How long a dashboard may be out of sight: a head that starts again, a laptop that slept."""
RAYS_OWN = ("Running entrypoint for job ", "-- Runtime env is setting up.")
"""Parts of lines that Ray writes into a driver's log."""


def event_of(line: str) -> Event | None:
    """What a line of a driver's log says; None for what concerns nobody."""
    if line.startswith('{"'):
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            found = None
        if isinstance(found, dict) and "kind" in found:
            return found
    if not line.strip() or any(part in line for part in RAYS_OWN):
        return None
    return {"kind": "error" if line.startswith("error: ") else "log", "message": line.rstrip()}


@dataclass
class Lines:
    """Whole lines of pieces of text, each once, however often the text is read again from its beginning."""

    seen: int = 0
    """Characters taken so far."""
    rest: str = ""
    _skip: int = 0

    def again(self) -> None:
        """The text comes from its beginning now."""
        self._skip = self.seen

    def take(self, text: str) -> Iterator[str]:
        new = text[self._skip :]
        self._skip = max(0, self._skip - len(text))
        self.seen += len(new)
        *whole, self.rest = (self.rest + new).split("\n")
        yield from whole


@dataclass
class Follower:
    """One submission, watched by a thread until it has ended, or until nobody wants to know any more."""

    dashboard: Jobs
    id: str
    waiting: "queue.Queue[Event | None]" = field(default_factory=queue.Queue)
    error: ClusterError | None = None
    """Why it was lost sight of."""

    def start(self) -> None:
        threading.Thread(target=self._watch, name="follow", daemon=True).start()

    def next(self, timeout_s: float) -> Event | None:
        """The next event. Raises: queue.Empty when none comes in time; None at the end."""
        return self.waiting.get(timeout=timeout_s)

    def _watch(self) -> None:
        lines, away_since = Lines(), None
        while True:
            seen = lines.seen
            try:
                lines.again()
                for text in self.dashboard.tail(self.id):
                    for line in lines.take(text):
                        self._hand_on(line)
                job = self.dashboard.job(self.id)
                if job is None or job.ended:
                    break
            except Unanswered as error:
                now = time.monotonic()
                away_since = now if away_since is None or lines.seen > seen else away_since
                if now - away_since > AWAY_S:
                    self.error = error
                    break
            except ClusterError as error:
                self.error = error
                break
            time.sleep(AGAIN_S)
        if lines.rest:
            self._hand_on(lines.rest)
        self.waiting.put(None)

    def _hand_on(self, line: str) -> None:
        event = event_of(line)
        if event is not None:
            self.waiting.put(event)


def ended(dashboard: Jobs, id: str, patience: Callable[[], bool]) -> Job:
    """The job once Ray has written down how it ended. Raises: ClusterError when the cluster forgot it."""
    while True:
        job = dashboard.job(id)
        if job is None:
            what = f"{dashboard.address} knows no job {id} any more"
            raise ClusterError(
                Problem("address", what, "was the cluster started again? `shoal resume` goes on with the run")
            )
        if job.ended or not patience():
            return job
        time.sleep(0.2)


def status_of(job: Job) -> int:
    """The exit status that the driver left with, as a shell tells it."""
    if job.exit_code is not None:
        return 128 - job.exit_code if job.exit_code < 0 else job.exit_code
    return {"SUCCEEDED": 0, "STOPPED": 143}.get(job.status, 1)
