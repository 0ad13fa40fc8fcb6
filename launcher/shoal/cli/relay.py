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
    from shoal.tune.board import Board

STEP_EVERY_S = 2.0
"""Steps come at most so often, those of a sweep's trials in turn: a week of them is tens of megabytes, which a head keeps."""


class Relay:
    """A display that nobody looks at here."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.told: dict[int | None, float] = {}
        """Trial -> when its last step was told; of a run, under None."""

    def on_event(self, event: Event) -> None:
        trial = event.get("trial")
        if event["kind"] == "trial_end":
            self.told.pop(trial, None)
        if event["kind"] == "step":
            now, last = self.clock(), self.told.setdefault(trial, -math.inf)
            if event["step"] != event["steps"] and now - last < STEP_EVERY_S * len(self.told):
                return
            self.told[trial] = now
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


def board_event(board: "Board", finished: bool) -> Event:
    """The last line of a sweep: its leaderboard as `--json` says it, without the trials' curves, which are long."""
    body = board.as_json()
    body["rows"] = [row | {"curve": []} for row in body["rows"]]
    state = "finished" if finished else "stopped"
    return {"kind": "outcome", "sweep": board.sweep, "state": state, "board": body}


def board_of(event: Event) -> "Board":
    """What such a line says."""
    from shoal.tune.board import Board, Standing

    body: dict[str, Any] = event["board"]
    own = {name: value for name, value in body.items() if name not in ("winner", "rows")}
    rows: list[dict[str, Any]] = sorted(body["rows"], key=lambda row: row["number"])
    trials = [{name: value for name, value in row.items() if name != "score"} for row in rows]
    return Board(**own, rows=tuple(Standing(**{**trial, "curve": ()}) for trial in trials))


def _ledger(said: dict[str, Any] | None) -> Ledger | None:
    if said is None:
        return None
    seconds = dict.fromkeys(PARTS, 0.0) | {part: one["seconds"] for part, one in said["parts"].items()}
    return Ledger(seconds, said["attempts"], said["steps"], said["repeated_steps"])
