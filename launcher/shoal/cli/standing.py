"""How runs and sweeps stand, as their folders show it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from shoal.errors import Forbidden, SpecError, StorageError

if TYPE_CHECKING:
    from shoal.runs import RunFolder
    from shoal.storage import ObjectInfo, Storage
    from shoal.tune.folder import SweepFolder

TAIL_BYTES = 8192
MADE = re.compile(r"-(\d{8}-\d{6})-[0-9a-z]{4}(-\d{4,5})?$")
"""The time in an id that Shoal made, a trial's number after it."""


@dataclass(frozen=True)
class Standing:
    """One run, as the list shows it."""

    id: str
    folder: str
    state: str
    """finished, running, stopped (it has a checkpoint), started (it has none), submitted (its driver has no plan yet),
    failed (a sweep, or a run whose driver never came to a plan), or unreadable (what it wrote down is not whole, of
    another version of Shoal, or somebody else's)."""
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


def survey(storage: "Storage", runs_url: str) -> list[Standing]:
    """All runs, sweeps and trials, newest first, from one listing and a short read of each."""
    from shoal.runs import SUBMISSION, TRIAL_ID, RunFolder, gave_up, list_runs, made_order, names_run
    from shoal.tune.folder import list_sweeps

    objects, closed = _visible(storage, runs_url)
    sweeps = {one.id: one for one in list_sweeps(storage, runs_url)}
    found: list[Standing] = []
    for folder in list_runs(storage, runs_url):
        one = standing(folder, [one for one in objects if one.url.startswith(f"{folder.url}/")])
        match = TRIAL_ID.fullmatch(folder.id)
        found.append(replace(one, sweep=match["sweep"] if match and match["sweep"] in sweeps else None))
    begun = {one.id for one in found} | sweeps.keys()
    for folder in (RunFolder(storage, url) for url in closed):
        if names_run(folder.id) and folder.id not in begun:
            found.append(standing(folder, []))
    for url in (one.url for one in objects if one.url.endswith(f"/{SUBMISSION}")):
        folder = RunFolder(storage, url.removesuffix(f"/{SUBMISSION}"))
        if folder.id not in begun:
            own = [one for one in objects if one.url.startswith(f"{folder.url}/")]
            found.append(replace(standing(folder, own), state="failed" if gave_up(folder) else "submitted"))
    for sweep in sweeps.values():
        own = sum(one.size for one in objects if one.url.startswith(f"{sweep.url}/"))
        found.append(sweep_standing(sweep, own, [one for one in found if one.sweep == sweep.id]))
    return sorted(found, key=lambda one: made_order(one.id), reverse=True)


def _visible(storage: "Storage", runs_url: str) -> "tuple[list[ObjectInfo], list[str]]":
    """All objects, and the folders that others may not look into."""
    from shoal.storage import join

    try:
        return storage.list(join(runs_url, "")), []
    except Forbidden:
        found: list[ObjectInfo] = []
        closed: list[str] = []
        for folder in storage.folders(runs_url):
            try:
                found += storage.list(folder)
            except Forbidden:
                closed.append(folder.rstrip("/"))
        return found, closed


def sweep_standing(folder: "SweepFolder", own_bytes: int, trials: "Sequence[Standing]") -> Standing:
    """A sweep with its trials; its loss is the best of those that finished."""
    from shoal import lease
    from shoal.record import rows

    try:
        spec, known = folder.read_plan().spec, folder.read_trials()
        held, last = lease.is_held(folder.lease), rows.last_end(rows.read(folder.lease).events)
    except (SpecError, Forbidden):
        state, loss, known = "unreadable", None, []
    else:
        ended = [end for _, end in known if end and end.state == "finished"]
        values = [one.metric for one in ended if one.metric is not None]
        loss = (min if spec.mode == "min" else max)(values, default=None)
        state = "running" if held else last["state"] if last else "stopped" if known else "started"
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
    sizes = {one.url: one.size for one in objects}
    saved = [
        int(url.split("/")[-2])
        for url in sizes
        if url.startswith(folder.checkpoints) and url.endswith("/manifest.json") and url.split("/")[-2].isdecimal()
    ]
    try:
        state, step, loss = _how_it_stands(folder, sizes, max(saved, default=None))
    except (SpecError, Forbidden):
        state, step, loss = "unreadable", max(saved, default=None), None
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


def _how_it_stands(
    folder: "RunFolder", sizes: Mapping[str, int], saved: int | None
) -> tuple[str, int | None, float | None]:
    """State, step and loss. Raises: SpecError when it wrote down what cannot be read."""
    from shoal import lease
    from shoal.record.ending import read_result

    if folder.result in sizes:
        result = read_result(folder)
        loss = result["loss"] if result["loss"] is not None else result.get("train_loss")
        return result["state"], result["step"], loss
    state = "running" if lease.is_held(folder) else "started" if saved is None else "stopped"
    last = _last_metrics(folder, sizes.get(folder.metrics, 0))
    return state, last.get("step", saved) if state == "running" else saved, last.get("loss")


def _goodput(folder: "RunFolder", sizes: Mapping[str, int]) -> float | None:
    """As the ledger says that a driver leaves; a run that goes on, or whose driver died, is read whole."""
    from shoal.record import rows
    from shoal.record.ledger import ledger
    from shoal.spec.base import recorded

    try:
        if folder.ledger in sizes:
            return recorded(folder.storage.read(folder.ledger), folder.ledger, ["goodput"])["goodput"]
        if folder.events not in sizes:
            return None
        record = rows.read(folder)
        return ledger(record.events, record.metrics).goodput
    except (StorageError, SpecError):
        return None


def made(run_id: str) -> float | None:
    """When a run, a sweep or a trial was made, as its id says: seconds since the epoch; None when it does not say."""
    found = MADE.search(run_id)
    try:
        return datetime.strptime(found[1], "%Y%m%d-%H%M%S").timestamp() if found else None
    except ValueError:  # no such day
        return None


def _last_metrics(folder: "RunFolder", length: int) -> dict[str, Any]:
    """The last whole row of metrics.jsonl; a running writer may replace the file while it is read."""
    from shoal.record.rows import parse

    if not length:
        return {}
    try:
        [tail] = folder.storage.read_ranges(folder.metrics, [(max(0, length - TAIL_BYTES), length)])
    except StorageError:
        return {}
    return next(reversed(parse(tail)), {})
