"""A run's events as lines of JSON, for a display on another machine: what `--events` prints and `shoal logs` reads."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from shoal.record.ledger import PARTS, Ledger
from shoal.record.rows import line, stamp
from shoal.train.world import Event, Result

if TYPE_CHECKING:
    from shoal.launch import Outcome

STEP_EVERY_S = 2.0
"""Steps come at most so often: a week of them is tens of megabytes, which a head keeps."""


class Relay:
    """A display that nobody looks at here."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.told = clock, -math.inf

    def on_event(self, event: Event) -> None:
        if event["kind"] == "step":
            now = self.clock()
            if event["step"] != event["steps"] and now - self.told < STEP_EVERY_S:
                return
            self.told = now
        said = {name: value for name, value in event.items() if name != "plan"}  # which lies in the run folder
        sys.stdout.write(line({"kind": said.pop("kind"), "time": stamp()} | said))  # one write: threads tell events too
        sys.stdout.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def outcome_event(outcome: "Outcome") -> Event:
    """The last line: how it ended, as `--json` says it."""
    book = None if outcome.ledger is None else outcome.ledger.as_json()
    return {
        "kind": "outcome", "run": outcome.folder.id, "folder": outcome.folder.url,
        "result": asdict(outcome.result), "ledger": book,
    }  # fmt: skip


def outcome_of(event: Event) -> tuple[Result, Ledger | None]:
    """What such a line says."""
    return Result(**event["result"]), _ledger(event["ledger"])


def _ledger(said: dict[str, Any] | None) -> Ledger | None:
    if said is None:
        return None
    seconds = dict.fromkeys(PARTS, 0.0) | {part: one["seconds"] for part, one in said["parts"].items()}
    return Ledger(seconds, said["attempts"], said["steps"], said["repeated_steps"])
