"""The rows that a run writes down of itself: events.jsonl and metrics.jsonl, one JSON object a line.

Rank 0's journal writes them; the driver adds a row of its own before the workers start and after they have ended.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shoal.runs import RunFolder

Row = dict[str, Any]
"""`kind`, `time` (UTC, ISO 8601) and `attempt` (how many journals were begun, this one counted), and what else it says."""


@dataclass(frozen=True)
class Record:
    """Both files of one run."""

    events: list[Row]
    metrics: list[Row]
    """Rows of kind `step` and `eval`, of the trajectory that counts: what a resume threw away is gone."""


def read(folder: RunFolder) -> Record:
    """What stands there now; a running writer may be a few seconds ahead. Raises StorageError."""
    return Record(events=_stored(folder, folder.events), metrics=_stored(folder, folder.metrics))


def append(folder: RunFolder, *events: Row) -> None:
    """The driver's own rows, while no journal is open: their attempt is the one before. Raises StorageError.

    One that has its time and stands there already is left out.
    """
    rows = _stored(folder, folder.events)
    attempt = max((row.get("attempt", 0) for row in rows), default=0)
    known = {(row["kind"], row.get("time")) for row in rows}
    for event in events:
        if (event["kind"], event.get("time")) not in known:
            rows.append({"time": stamp(), "attempt": attempt, **event})
    folder.storage.write(folder.events, "".join(map(line, rows)).encode())


def last_words(cache: str, run_id: str) -> Path:
    """Where a driver whose store is away leaves its last rows, on its own machine, until the next one takes them along."""
    return Path(cache).expanduser() / "unwritten" / f"{run_id}.jsonl"


def stamp() -> str:
    """Now, as rows say it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def parse(data: bytes) -> list[Row]:
    """Whole rows only: a process that died while writing leaves half a line at the end, a bad disk anything."""
    found = []
    for text in data.splitlines():
        try:
            row = json.loads(text)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("kind"), str):
            found.append(row)
    return found


def last_end(events: Sequence[Row]) -> Row | None:
    """How the last driver left; None when it works, or died."""
    last = next((row for row in reversed(events) if row["kind"] in ("driver", "ended")), None)
    return last if last is not None and last["kind"] == "ended" else None


def line(row: Row) -> str:
    return json.dumps(_finite(row), allow_nan=False, separators=(",", ":")) + "\n"


def _stored(folder: RunFolder, url: str) -> list[Row]:
    return parse(folder.storage.read(url)) if folder.storage.exists(url) else []


def _finite(value: Any) -> Any:
    """JSON has no infinities: a perplexity beyond a float's range is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value
