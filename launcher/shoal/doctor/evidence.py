"""What a run folder says of its run: rows, plan, lease, checkpoints, result. Reads; judges nothing."""

import time
from dataclasses import dataclass
from typing import Any

from shoal import lease
from shoal.errors import ShoalError
from shoal.record import rows
from shoal.record.ending import read_result
from shoal.record.rows import Record, Row
from shoal.runs import RunFolder
from shoal.spec.base import recorded
from shoal.train import manifest

PLANNED = (
    "trajectory.steps.value", "trajectory.model.base", "trajectory.method", "trajectory.dtype", "trajectory.batch_size",
    "trajectory.data.train", "layout.workers", "layout.device", "layout.stage", "storage.cache",
)  # fmt: skip
"""What a plan of any version says."""


@dataclass(frozen=True)
class Evidence:
    """One run, as its folder shows it at one moment."""

    run: str
    record: Record
    plan: dict[str, Any]
    """plan.json as it stands; an older version's as well."""
    result: dict[str, Any] | None
    holder: lease.Holder | None
    """Whoever took the run last and did not let it go."""
    held: bool
    """He still works, as far as one can know."""
    checkpoint: int | None
    """Step of the newest complete one."""
    incomplete: tuple[str, ...]
    """Why newer ones do not count, and what else of the folder cannot be read."""
    now: float
    """Seconds since the epoch."""

    @property
    def drive(self) -> list[Row]:
        """The events since a driver took the run last."""
        begun = [number for number, row in enumerate(self.record.events) if row["kind"] == "driver"]
        return self.record.events[begun[-1] :] if begun else self.record.events

    @property
    def ended(self) -> Row | None:
        """How the last driver left; None when he works, or died."""
        return rows.last_end(self.record.events)

    @property
    def steps(self) -> list[Row]:
        """The steps written down that count, oldest first."""
        return [row for row in self.record.metrics if row["kind"] == "step"]

    @property
    def planned_steps(self) -> int:
        return self.plan["trajectory"]["steps"]["value"]


def evidence(folder: RunFolder) -> Evidence:
    """Raises: StorageError when the store is away, SpecError when plan or result cannot be read."""
    storage, incomplete = folder.storage, []
    holder = lease.last_holder(folder)
    try:
        newest = manifest.newest(storage, folder, incomplete.append)
    except ShoalError as error:
        newest = None
        incomplete.append(str(error))
    plan = recorded(storage.read(folder.plan), folder.plan, PLANNED)
    record = _record(folder, plan["storage"]["cache"])
    if not record.events:
        incomplete.append("events.jsonl says nothing, as a driver would have: it was lost, or cut short")
    return Evidence(
        run=folder.id,
        record=record,
        plan=plan,
        result=read_result(folder) if storage.exists(folder.result) else None,
        holder=holder,
        held=holder is not None and lease.works(holder),
        checkpoint=newest.step if newest else None,
        incomplete=tuple(incomplete),
        now=time.time(),
    )


def _record(folder: RunFolder, cache: str) -> Record:
    """With the last words of a driver on this machine whose store was away, if it left any."""
    record, kept = rows.read(folder), rows.last_words(cache, folder.id)
    if not kept.exists():
        return record
    attempt = max((row.get("attempt", 0) for row in record.events), default=0)
    last = [{"attempt": attempt, **row} for row in rows.parse(kept.read_bytes())]
    return Record([*record.events, *last], record.metrics)
