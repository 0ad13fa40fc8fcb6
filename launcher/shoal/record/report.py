"""One run in figures, from what it wrote down: losses, throughput, wall time, faults, failures. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from shoal.record.ledger import Ledger, ledger
from shoal.record.rows import Record, Row

SHOWN_FAILURES = 8


@dataclass(frozen=True)
class Losses:
    """Nats per target."""

    first: float | None
    last: float | None
    smallest: float | None
    held_out: tuple[tuple[int, float], ...]
    """(step, loss) of each evaluation."""


@dataclass(frozen=True)
class Throughput:
    tokens: int
    """Of the steps that count and were written down."""
    tokens_per_s: float | None
    """Over the time in these steps, waits for data included."""
    step_s: float | None
    """Of the median step."""
    data_share: float | None
    """Of the time in steps, waiting for data."""


@dataclass(frozen=True)
class Saves:
    """Checkpoints: medians over all."""

    count: int
    bytes: float | None
    stall_s: float | None
    """Seconds that training stood still."""
    upload_mb_per_s: float | None


@dataclass(frozen=True)
class Figures:
    step: int
    steps: int
    losses: Losses
    throughput: Throughput
    saves: Saves
    ledger: Ledger
    faults: dict[str, int]
    """What the store did wrong, by kind."""
    failures: tuple[Row, ...]
    """Of worker groups, oldest first."""
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"ledger": self.ledger.as_json()}


def figures(record: Record, planned_steps: int) -> Figures:
    """What the rows amount to; `planned_steps` are those of the plan."""
    steps = sorted((row for row in record.metrics if row["kind"] == "step"), key=lambda row: row["step"])
    evaluations = sorted((row for row in record.metrics if row["kind"] == "eval"), key=lambda row: row["step"])
    losses = [row["loss"] for row in steps if row.get("loss") is not None]
    return Figures(
        step=steps[-1]["step"] if steps else 0,
        steps=planned_steps,
        losses=Losses(
            first=losses[0] if losses else None,
            last=losses[-1] if losses else None,
            smallest=min(losses, default=None),
            held_out=tuple((row["step"], row["loss"]) for row in evaluations if row.get("loss") is not None),
        ),
        throughput=_throughput(steps),
        saves=_saves([row for row in record.events if row["kind"] == "checkpoint"]),
        ledger=ledger(record.events, record.metrics),
        faults=dict(Counter(_kind(row) for row in record.events if row["kind"] == "storage").most_common()),
        failures=tuple(row for row in record.events if row["kind"] == "failure")[-SHOWN_FAILURES:],
        notes=tuple(dict.fromkeys(row["message"] for row in record.events if row["kind"] == "note")),
    )


def _throughput(steps: Sequence[Row]) -> Throughput:
    covered = [row.get("covers", row) for row in steps]
    seconds = sum(row.get("seconds", 0.0) for row in covered)
    waited = sum(row.get("data_seconds", 0.0) for row in covered)
    own = [(row["tokens"], row["seconds"]) for row in steps if row.get("seconds") and "tokens" in row]
    took = sum(each for _, each in own)
    tokens = sum(each for each, _ in own)
    return Throughput(
        tokens=tokens,
        tokens_per_s=tokens / took if took else None,
        step_s=median(each for _, each in own) if own else None,
        data_share=waited / seconds if seconds else None,
    )


def _saves(saves: Sequence[Row]) -> Saves:
    return Saves(
        count=len(saves),
        bytes=_median(saves, "bytes"),
        stall_s=_median(saves, "stall_seconds", "seconds"),
        upload_mb_per_s=_median(saves, "upload_mb_per_s"),
    )


def _median(rows: Sequence[Row], *names: str) -> float | None:
    """Of the first of these fields that a row has."""
    found = [next((row[name] for name in names if row.get(name) is not None), None) for row in rows]
    known = [value for value in found if value is not None]
    return median(known) if known else None


def _kind(row: Row) -> str:
    """`get: no connection`: what differs from fault to fault is left out."""
    return f"{row['operation']}: {row['what'].split(':')[0]}"
