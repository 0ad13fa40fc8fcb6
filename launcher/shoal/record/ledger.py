"""The goodput ledger: what a run's wall time went to, from the rows that it wrote. Pure; any run folder can be recomputed.

The time between two rows belongs to what the run did when the first was written. Of the time in the loop, each step's
row says how much was spent and how much of that was a wait for data; `repeated` rows say what a resume threw away. While
a run is stopped on request its clock stands still; while its driver is gone for any other reason, it is down.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

from shoal.record.rows import Row

PARTS = {
    "computing": "steps that count",
    "data": "steps that count, waiting for their data",
    "saving": "standing still for a checkpoint",
    "starting": "from the first sign of life to the loop",
    "restarting": "the same after a failure, its detection included",
    "repeated": "steps that a resume threw away",
    "evaluating": "held-out losses",
    "exporting": "export, its gate, answers",
    "down": "no driver, though nobody had asked it to stop",
    "other": "the rest",
}
"""Where wall time goes, and what each part counts."""
PHASES = {"training": "training", "evaluating": "evaluating", "saving": "saving", "exporting": "exporting"}
"""What a run does in a phase; in any other it is starting, or restarting."""
ASKED = ("finished", "stopped", "left")
"""States of an `ended` row after which the clock stands still."""
SILENT = ("paused", "down")


@dataclass(frozen=True)
class Ledger:
    """Seconds of each part; they sum to the run's wall time."""

    seconds: dict[str, float]
    attempts: int
    """Times the workers began."""
    steps: int
    """The newest step that counts."""
    repeated_steps: int

    @property
    def total(self) -> float:
        """Wall time in seconds."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float | None:
        """The share of wall time in steps that count, their data there; None while no time has passed."""
        return self.seconds["computing"] / self.total if self.total else None

    def share(self, part: str) -> float:
        return self.seconds[part] / self.total if self.total else 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "wall_seconds": round(self.total, 3),
            "goodput": None if self.goodput is None else round(self.goodput, 4),
            "attempts": self.attempts,
            "steps": self.steps,
            "repeated_steps": self.repeated_steps,
            "parts": {
                part: {"seconds": round(seconds, 3), "share": round(self.share(part), 4)}
                for part, seconds in self.seconds.items()
            },
        }


def ledger(events: Iterable[Row], metrics: Iterable[Row]) -> Ledger:
    """What the wall time between the first and the last row went to."""
    events, metrics = list(events), list(metrics)
    clock = _Clock()
    for row, following in pairwise(_timed([*events, *metrics])):
        clock.see(row)
        clock.pass_to(following, following.at - row.at)
    spent = dict.fromkeys(PARTS, 0.0) | {part: seconds for part, seconds in clock.spent.items() if part in PARTS}
    kept = [row.get("covers", row) for row in metrics if row["kind"] == "step"]
    thrown = [event for event in events if event["kind"] == "repeated"]
    _divide(spent, clock.spent.get("training", 0.0), kept, thrown)
    rows = [*events, *metrics]
    return Ledger(
        seconds=spent,
        attempts=max((row.get("attempt", 0) for row in rows), default=0),
        steps=max((row["step"] for row in metrics if row["kind"] == "step"), default=0),
        repeated_steps=sum(event["steps"] for event in thrown),
    )


def _divide(spent: dict[str, float], training: float, kept: list[Row], thrown: list[Row]) -> None:
    """Deals the time in the loop by what the steps' own clock says; rounding never makes more of it than passed."""
    spent["repeated"] = min(training, sum(event["seconds"] for event in thrown))
    stepping = min(training - spent["repeated"], sum(row.get("seconds", 0.0) for row in kept))
    spent["data"] = min(stepping, sum(row.get("data_seconds", 0.0) for row in kept))
    spent["computing"] = stepping - spent["data"]
    spent["other"] += training - spent["repeated"] - stepping


@dataclass(frozen=True)
class _Timed:
    at: float
    """Seconds since the epoch."""
    attempt: int
    row: Row

    @property
    def kind(self) -> str:
        return self.row["kind"]


@dataclass
class _Clock:
    """Walks the rows in the order of time."""

    state: str = "starting"
    attempt: int = 0
    spent: dict[str, float] = field(default_factory=dict)
    """By state: the parts, `training` for all that is in the loop, and `paused`."""

    def see(self, timed: _Timed) -> None:
        """What the run did from this row on."""
        begins = timed.attempt > self.attempt
        self.attempt = max(self.attempt, timed.attempt)
        match timed.kind:
            case "driver":
                self.state = "restarting" if timed.attempt else "starting"
            case "ended":
                self.state = "paused" if timed.row["state"] in ASKED else "down"
            case "failure":
                self.state = "restarting"
            case "phase":
                self.state = PHASES.get(timed.row["phase"], self._loading())
            case _ if begins:
                self.state = self._loading()

    def pass_to(self, following: _Timed, seconds: float) -> None:
        """Count the time until `following`; where the workers fell silent in between, it is not what they last did."""
        state = self.state
        if following.kind == "driver":
            state = "paused" if state == "paused" else "down"
        elif (following.attempt > self.attempt or following.kind == "failure") and state not in SILENT:
            state = "restarting" if self.attempt else "starting"
        self.spent[state] = self.spent.get(state, 0.0) + max(0.0, seconds)

    def _loading(self) -> str:
        return "restarting" if self.attempt > 1 else "starting"


def _timed(rows: list[Row]) -> list[_Timed]:
    """Rows in the order of time, and a mark where each attempt wrote its last step that was thrown away since."""
    found = [_Timed(_seconds(row["time"]), row.get("attempt", 0), row) for row in rows if "time" in row]
    found += [
        _Timed(_seconds(row["until"]), row["of"], {"kind": "thrown"}) for row in rows if row["kind"] == "repeated"
    ]
    return sorted(found, key=lambda timed: timed.at)


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
