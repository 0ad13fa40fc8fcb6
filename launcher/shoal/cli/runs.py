"""runs: what runs there are, how they stand, and clearing away."""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.common import Json, On, Yes, console, profile_name, storage_of
from shoal.errors import Problem, SpecError

if TYPE_CHECKING:
    from shoal.runs import RunFolder
    from shoal.storage import ObjectInfo, Storage

TAIL_BYTES = 8192
AGE = re.compile(r"(\d+)([hdw])")
HOURS = {"h": 1, "d": 24, "w": 24 * 7}


@dataclass(frozen=True)
class Standing:
    """One run, as the list shows it."""

    id: str
    folder: str
    state: str
    """finished, running, stopped (it has a checkpoint), or started (it has none)."""
    step: int | None
    """Of the result, or of the newest checkpoint."""
    loss: float | None
    """Held-out where it was measured, else of the last logged step."""
    made: float
    """Seconds since the epoch."""
    bytes: int
    checkpoint_bytes: int
    goodput: float | None = None
    """Share of its wall time in steps that count; None before the first."""


def runs(
    on: On = None,
    as_json: Json = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Clear away: checkpoints of finished runs, or whole runs with --whole.")
    ] = False,
    whole: Annotated[bool, typer.Option("--whole", help="With --prune: remove whole runs, exports and all.")] = False,
    keep: Annotated[
        int | None, typer.Option("--keep", metavar="N", min=0, help="With --prune: leave the N newest runs alone.")
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="With --prune: only runs older than 12h, 7d or 4w."),
    ] = None,
    yes: Yes = False,
) -> None:
    """List runs: state, step, loss, goodput, age, size. With --prune, clear away what is not needed.

    Example:  shoal runs --prune --keep 3     shoal runs --prune --whole --older-than 30d
    """
    from shoal.spec.load import load_profile

    if prune and whole and keep is None and older_than is None:
        raise SpecError(Problem("--whole", "would remove every run", "say which with --keep N or --older-than 7d"))
    if not prune and (whole or keep is not None or older_than is not None):
        raise SpecError(Problem("--whole, --keep, --older-than", "say what --prune removes", "add --prune"))
    hours = _hours(older_than) if older_than else None
    profile = load_profile(profile_name(on))
    with storage_of(profile) as storage:
        found = survey(storage, profile.storage.runs)
        if prune:
            _prune(storage, chosen(found, whole, keep, hours, time.time()), whole, yes, as_json)
        elif as_json:
            typer.echo(json.dumps([asdict(one) for one in found], indent=1))
        else:
            _list(found, profile.storage.runs)


def survey(storage: "Storage", runs_url: str) -> list[Standing]:
    """All runs, newest first, from one listing and a short read of each."""
    from shoal.runs import list_runs
    from shoal.storage import join

    objects = storage.list(join(runs_url, ""))
    found = [standing(folder, [one for one in objects if one.url.startswith(f"{folder.url}/")])
             for folder in list_runs(storage, runs_url)]  # fmt: skip
    return found[::-1]


def standing(folder: "RunFolder", objects: "Sequence[ObjectInfo]") -> Standing:
    from shoal import lease

    sizes = {one.url: one.size for one in objects}
    saved = [
        int(url.split("/")[-2])
        for url in sizes
        if url.startswith(folder.checkpoints) and url.endswith("/manifest.json")
    ]
    state, step, loss = "started", max(saved, default=None), None
    if folder.result in sizes:
        result = json.loads(folder.storage.read(folder.result))
        state, step = result["state"], result["step"]
        loss = result["loss"] if result["loss"] is not None else result["train_loss"]
    else:
        if lease.is_held(folder):
            state = "running"
        elif saved:
            state = "stopped"
        last = _last_metrics(folder, sizes.get(folder.metrics, 0))
        loss = last.get("loss")
        step = last.get("step", step) if state == "running" else step
    return Standing(
        id=folder.id,
        folder=folder.url,
        state=state,
        step=step,
        loss=loss,
        made=made(folder.id),
        bytes=sum(sizes.values()),
        checkpoint_bytes=sum(size for url, size in sizes.items() if url.startswith(folder.checkpoints)),
        goodput=_goodput(folder, sizes),
    )


def _goodput(folder: "RunFolder", sizes: Mapping[str, int]) -> float | None:
    """As the ledger says that a driver leaves; a run that goes on, or whose driver died, is read whole."""
    from shoal.errors import StorageError
    from shoal.record import rows
    from shoal.record.ledger import ledger

    try:
        if folder.ledger in sizes:
            return json.loads(folder.storage.read(folder.ledger))["goodput"]
        if folder.events not in sizes:
            return None
        record = rows.read(folder)
        return ledger(record.events, record.metrics).goodput
    except StorageError:
        return None


def made(run_id: str) -> float:
    """When a run was made, as its id says: seconds since the epoch."""
    day, clock, _ = run_id.rsplit("-", 2)
    return datetime.strptime(f"{day[-8:]}-{clock}", "%Y%m%d-%H%M%S").timestamp()


def chosen(found: Iterable[Standing], whole: bool, keep: int | None, hours: int | None, now: float) -> list[Standing]:
    """The runs to clear away; `found` is newest first. A running one never is; one that can go on keeps its checkpoints."""
    old = [one for one in list(found)[keep or 0 :] if hours is None or now - one.made > hours * 3600]
    if whole:
        return [one for one in old if one.state != "running"]
    return [one for one in old if one.state == "finished" and one.checkpoint_bytes]


def _prune(storage: "Storage", doomed: list[Standing], whole: bool, yes: bool, as_json: bool) -> None:
    from shoal.display import size
    from shoal.storage import join

    freed = sum(one.bytes if whole else one.checkpoint_bytes for one in doomed)
    what = "whole runs" if whole else "checkpoints of finished runs"
    out = console(as_json)
    for one in doomed:
        out.print(f"  {one.id}  {one.state}  {size(one.bytes if whole else one.checkpoint_bytes)}", markup=False)
    if doomed and not yes and not typer.confirm(f"remove {what} of these {len(doomed)} ({size(freed)})?", err=as_json):
        raise typer.Exit(1)
    for one in doomed:
        storage.delete(join(one.folder, "" if whole else "checkpoints/"))
    if as_json:
        typer.echo(json.dumps({"removed": [one.id for one in doomed], "whole": whole, "bytes": freed}, indent=1))
    else:
        out.print(f"{size(freed)} freed" if doomed else f"no {what} to remove")


def _list(found: list[Standing], runs_url: str) -> None:
    from rich.table import Table

    from shoal.display import duration, size

    out = console()
    if not found:
        out.print(f"there are no runs in {runs_url}; start one with  shoal run JOB", markup=False)
        return
    table = Table("run", "state", "step", "loss", "goodput", "age", "size", box=None, padding=(0, 2, 0, 0))
    for column in table.columns[2:]:
        column.justify = "right"
    for one in found:
        step = "" if one.step is None else f"{one.step:,}"
        loss = "" if one.loss is None else f"{one.loss:.4f}"
        goodput = "" if one.goodput is None else f"{one.goodput:.0%}"
        age = max(0.0, time.time() - one.made)
        days = f"{age / 86400:.0f} days" if age > 2 * 86400 else duration(age)
        table.add_row(one.id, one.state, step, loss, goodput, days, size(one.bytes))
    out.print(table)


def _last_metrics(folder: "RunFolder", length: int) -> dict[str, Any]:
    """The last whole row of metrics.jsonl; a running writer may replace the file while it is read."""
    from shoal.errors import StorageError

    if not length:
        return {}
    try:
        [tail] = folder.storage.read_ranges(folder.metrics, [(max(0, length - TAIL_BYTES), length)])
        rows = tail.decode(errors="replace").strip().splitlines()
        return json.loads(rows[-1]) if rows else {}
    except (StorageError, json.JSONDecodeError):
        return {}


def _hours(age: str) -> int:
    match = AGE.fullmatch(age.strip())
    if match is None:
        raise SpecError(Problem("--older-than", f"{age!r} is no age", "write 12h, 7d or 4w"))
    return int(match[1]) * HOURS[match[2]]
