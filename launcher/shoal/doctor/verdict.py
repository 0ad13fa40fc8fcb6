"""One verdict on one run: what became of it, what says so, and what to do. Pure."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from shoal.doctor.causes import UNKNOWN, Cause, said_by, told_by
from shoal.doctor.evidence import Evidence
from shoal.record.rows import Row

LAST_STEPS = 3
SAID_LINES = 6
"""Of an error's message so many lines are shown."""
QUIET_S = 300.0
"""A run that is held but has not written for so long is told of."""
WELL = ("finished", "running", "stopped")


@dataclass(frozen=True)
class Verdict:
    kind: str
    """finished, running, stopped, never-started, driver-gone, or the class of cause (causes.py) that it failed by."""
    says: str
    evidence: tuple[str, ...]
    """From the most to the least telling."""
    do: tuple[str, ...]

    @property
    def is_well(self) -> bool:
        return self.kind in WELL

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def verdict(found: Evidence, options: str = "") -> Verdict:
    """`options`: what the next command needs beside the run's id, such as ` --on PROFILE`."""
    go_on = f"go on with  shoal resume {found.run}{options}"
    if found.result is not None:
        return _finished(found, options)
    if found.held:
        return _running(found)
    ended = found.ended
    if ended is not None and ended["state"] in ("stopped", "left"):
        how = "stopped on request" if ended["state"] == "stopped" else "left at once on request"
        return Verdict("stopped", f"{how}{_at(ended)}", (*_standing(found),), (go_on,))
    errors = [row for row in found.drive if row["kind"] == "error"]
    if ended is None and not errors:
        return _driver_gone(found, go_on)
    return _failed(found, ended, _failures(found), errors, go_on)


def _finished(found: Evidence, options: str) -> Verdict:
    assert found.result is not None
    evidence = [f"step {found.result['step']} of {found.result['steps']}"]
    if found.result.get("loss") is not None:
        evidence.append(f"held-out loss {found.result['loss']:.4f}")
    if found.result.get("export"):
        evidence.append(f"export {found.result['export']}")
    return Verdict(
        "finished", "finished", (*evidence, *_past(found)), (f"talk to it:  shoal chat {found.run}{options}",)
    )


def _running(found: Evidence) -> Verdict:
    assert found.holder is not None
    by = f"process {found.holder.pid} on {found.holder.host} drives it"
    do = ["`shoal report` shows how it goes"]
    quiet = found.now - _last_sign(found)
    says = "is running"
    if quiet > QUIET_S:
        says += f", but has written nothing for {quiet / 60:.0f} min"
        do = ["a long evaluation or export is quiet too; if nothing comes, Ctrl-C it and resume"]
    return Verdict("running", says, (by, *_standing(found), *_past(found)), tuple(do))


def _driver_gone(found: Evidence, go_on: str) -> Verdict:
    begun = next((row for row in found.drive if row["kind"] == "driver"), None)
    evidence = list(_standing(found))
    if found.holder is not None:
        beat = _clock(found.holder.beat)
        evidence.insert(
            0, f"its lease is stale: process {found.holder.pid} on {found.holder.host}, last heard of {beat}"
        )
    elif begun is not None:
        evidence.insert(0, f"process {begun['pid']} on {begun['host']} took it{_at(begun)} and never said how it ended")
    if not found.record.metrics and not any(row["kind"] == "phase" for row in found.drive):
        says = "never began to train: its driver is gone"
        return Verdict("never-started", says, tuple(evidence), (go_on, "nothing was lost: no step was made"))
    do = (go_on, "had its machine gone down? a driver of a long run belongs in tmux, or into a job of the cluster")
    return Verdict("driver-gone", "the driver is gone, and its workers with it", (*evidence, *_past(found)), do)


def _failed(found: Evidence, ended: Row | None, failures: list[Row], errors: list[Row], go_on: str) -> Verdict:
    last = failures[-1] if failures else None
    final = f"{ended.get('error', '')}: {ended.get('message', '')}" if ended else ""
    said = [str(row["message"]) for row in errors[-1:]] or [final]
    cause = told_by(last["cause"], str(last.get("message", ""))) if last else UNKNOWN
    for words in (said[0], final):
        cause = said_by(words) if cause is UNKNOWN else cause
    where = _place(last) if last else ""
    evidence = []
    if last:
        evidence.append(f"failure{_at(last)}: {_said(last)}")
    evidence += [line for line in said[0].splitlines()[:SAID_LINES] if line not in "".join(evidence)]
    if not ended and found.holder is not None:
        evidence.append(f"the driver (process {found.holder.pid} on {found.holder.host}) is gone as well")
    faults = _faults(found)
    if faults and (cause.name == "store-away" or not last):
        evidence.append(faults)
    evidence += [*_standing(found), *_past(found, without=last)]
    return Verdict(
        cause.name, f"failed: {cause.says}{where}", tuple(dict.fromkeys(evidence)), _todo(cause, found, go_on)
    )


def _todo(cause: Cause, found: Evidence, go_on: str) -> tuple[str, ...]:
    if cause.name in ("data-refused", "user-error"):
        return (cause.advice, f"where the trajectory stays the same (profile, store), {go_on}")
    what = f" (from step {found.checkpoint})" if found.checkpoint else " (from the start: nothing was saved yet)"
    return (cause.advice, go_on + what)


def _standing(found: Evidence) -> tuple[str, ...]:
    """The last steps, and the newest checkpoint."""
    told = []
    if found.steps:
        last = [f"{row['step']} (loss {row['loss']:.4f})" for row in found.steps[-LAST_STEPS:] if row.get("loss")]
        done = found.steps[-1]["step"]
        told.append(f"step {done} of {found.planned_steps}{_at(found.steps[-1])}; last: {', '.join(last) or done}")
    else:
        phases = [row for row in found.drive if row["kind"] == "phase"]
        told.append(f"no step was made; last phase: {phases[-1]['phase']}" if phases else "no step was made")
    told.append(
        f"newest complete checkpoint: step {found.checkpoint}" if found.checkpoint else "no complete checkpoint"
    )
    return (*told, *found.incomplete)


def _past(found: Evidence, without: Row | None = None) -> tuple[str, ...]:
    """The failures that it went on from."""
    earlier = [row for row in found.record.events if row["kind"] == "failure" and row is not without]
    if not earlier:
        return ()
    shown = "; ".join(map(_said, earlier[-3:]))
    return (f"{len(earlier)} earlier failure{'s' if len(earlier) > 1 else ''}: {shown}",)


def _failures(found: Evidence) -> list[Row]:
    """Of the last driver: those after which nothing new was done."""
    work = [
        row for row in (*found.record.events, *found.record.metrics) if row["kind"] in ("step", "checkpoint", "eval")
    ]
    worked = max((_seconds(row) for row in work if "time" in row), default=0.0)
    return [row for row in found.drive if row["kind"] == "failure" and _seconds(row) >= worked]


def _faults(found: Evidence) -> str:
    faults = [row for row in found.drive if row["kind"] == "storage"]
    if not faults:
        return ""
    return f"{len(faults)} faults of the store; the last{_at(faults[-1])}: {faults[-1]['what']} ({faults[-1]['url']})"


def _said(row: Row) -> str:
    """A failure's message, which mostly names its place."""
    message = str(row.get("message") or row["cause"])
    return message if row.get("node") and row["node"] in message else message + _place(row)


def _place(row: Row) -> str:
    parts = [f"rank {row['rank']}"] if row.get("rank") is not None else []
    parts += [f"node {row['node']}"] if row.get("node") else []
    parts += [f"after step {row['step']}"] if row.get("step") is not None else []
    return f" ({', '.join(parts)})" if parts else ""


def _at(row: Row) -> str:
    return f" at {_clock(_seconds(row))}" if "time" in row else ""


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _seconds(row: Row) -> float:
    return datetime.fromisoformat(row["time"]).timestamp()


def _last_sign(found: Evidence) -> float:
    rows = [row for row in (*found.record.events, *found.record.metrics) if "time" in row]
    return max(map(_seconds, rows), default=found.now)
