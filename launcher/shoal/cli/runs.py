"""runs: what runs there are, how they stand, and clearing away."""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.common import Json, On, Yes, console, profile_name, storage_of
from shoal.errors import Problem, SpecError

if TYPE_CHECKING:
    from shoal.runs import RunFolder
    from shoal.storage import ObjectInfo, Storage
    from shoal.tune.folder import SweepFolder

TAIL_BYTES = 8192
AGE = re.compile(r"(\d+)([hdw])")
MADE = re.compile(r"-(\d{8}-\d{6})-[0-9a-z]{4}(-\d{4,5})?$")
"""The time in an id that Shoal made, a trial's number after it."""
HOURS = {"h": 1, "d": 24, "w": 24 * 7}


@dataclass(frozen=True)
class Standing:
    """One run, as the list shows it."""

    id: str
    folder: str
    state: str
    """finished, running, stopped (it has a checkpoint), started (it has none), submitted (its driver has no plan yet), or
    unreadable (a sweep of another version of Shoal)."""
    step: int | None
    """Of the result, or of the newest checkpoint."""
    loss: float | None
    """Held-out where it was measured, else of the last logged step."""
    made: float | None
    """Seconds since the epoch; None for an id that somebody chose."""
    bytes: int
    checkpoint_bytes: int
    """Of a sweep, with its trials'."""
    goodput: float | None = None
    """Share of its wall time in steps that count; None before the first."""
    trials: int | None = None
    """Of a sweep, how many began; None for a run."""
    sweep: str | None = None
    """Of a trial, its sweep."""
    folders: tuple[str, ...] = ()
    """What goes when it goes: its folder, a sweep's trials' too."""


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
    trials: Annotated[bool, typer.Option("--trials", help="List the trials of sweeps too.")] = False,
    yes: Yes = False,
) -> None:
    """List runs and sweeps: state, step, loss, goodput, age, size. With --prune, clear away what is not needed.

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
        if not trials or prune:
            found = [one for one in found if one.sweep is None]
        if prune:
            _prune(storage, chosen(found, whole, keep, hours, time.time()), whole, yes, as_json)
        elif as_json:
            typer.echo(json.dumps([asdict(one) for one in found], indent=1))
        else:
            _list(found, profile.storage.runs)


def survey(storage: "Storage", runs_url: str) -> list[Standing]:
    """All runs, sweeps and trials, newest first, from one listing and a short read of each."""
    from shoal.runs import TRIAL_ID, RunFolder, list_runs, made_order
    from shoal.storage import join
    from shoal.tune.folder import list_sweeps

    objects = storage.list(join(runs_url, ""))
    sweeps = {one.id: one for one in list_sweeps(storage, runs_url)}
    found: list[Standing] = []
    for folder in list_runs(storage, runs_url):
        one = standing(folder, [one for one in objects if one.url.startswith(f"{folder.url}/")])
        match = TRIAL_ID.fullmatch(folder.id)
        found.append(replace(one, sweep=match["sweep"] if match and match["sweep"] in sweeps else None))
    begun = {one.id for one in found}
    for url in (one.url for one in objects if one.url.endswith("/submission.json")):
        folder = RunFolder(storage, url.removesuffix("/submission.json"))
        if folder.id not in begun and folder.id not in sweeps:
            own = [one for one in objects if one.url.startswith(f"{folder.url}/")]
            found.append(replace(standing(folder, own), state="submitted"))
    for sweep in sweeps.values():
        own = sum(one.size for one in objects if one.url.startswith(f"{sweep.url}/"))
        found.append(sweep_standing(sweep, own, [one for one in found if one.sweep == sweep.id]))
    return sorted(found, key=lambda one: made_order(one.id), reverse=True)


def sweep_standing(folder: "SweepFolder", own_bytes: int, trials: "Sequence[Standing]") -> Standing:
    """A sweep with its trials; its loss is the best of those that finished."""
    from shoal import lease
    from shoal.record import rows

    ends = [row["state"] for row in rows.read(folder.lease).events if row["kind"] == "ended"]
    try:
        spec, known = folder.read_plan().spec, folder.read_trials()
    except SpecError:  # of another version of Shoal
        state, loss, known = "unreadable", None, []
    else:
        values = [end.metric for _, end in known if end and end.state == "finished" and end.metric is not None]
        loss = (min if spec.mode == "min" else max)(values, default=None)
        state = "running" if lease.is_held(folder.lease) else ends[-1] if ends else "stopped" if known else "started"
    return Standing(
        id=folder.id,
        folder=folder.url,
        state=state,
        step=None,
        loss=loss,
        made=made(folder.id),
        bytes=own_bytes + sum(one.bytes for one in trials),
        checkpoint_bytes=sum(one.checkpoint_bytes for one in trials),
        trials=len(known),
        folders=(folder.url, *(one.folder for one in trials)),
    )


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
        folders=(folder.url,),
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


def made(run_id: str) -> float | None:
    """When a run, a sweep or a trial was made, as its id says: seconds since the epoch; None when it does not say."""
    found = MADE.search(run_id)
    return datetime.strptime(found[1], "%Y%m%d-%H%M%S").timestamp() if found else None


def chosen(found: Iterable[Standing], whole: bool, keep: int | None, hours: int | None, now: float) -> list[Standing]:
    """The runs to clear away; `found` is newest first. A running one never is; one that can go on keeps its checkpoints."""
    others = list(found)[keep or 0 :]
    old = [one for one in others if hours is None or (one.made is not None and now - one.made > hours * 3600)]
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
        for folder in reversed(one.folders):  # a sweep's own goes last: until then its trials are known as such
            storage.delete(join(folder, "" if whole else "checkpoints/"))
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
        step = step if one.trials is None else f"{one.trials:,} trials"
        loss = "" if one.loss is None else f"{one.loss:.4f}"
        goodput = "" if one.goodput is None else f"{one.goodput:.0%}"
        age = None if one.made is None else max(0.0, time.time() - one.made)
        days = "" if age is None else f"{age / 86400:.0f} days" if age > 2 * 86400 else duration(age)
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
