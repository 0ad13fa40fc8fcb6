"""runs: what runs there are, how they stand, and clearing away."""

import json
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.common import Json, On, Yes, console, profile_name, storage_of
from shoal.cli.standing import Standing, survey
from shoal.errors import Problem, SpecError, StorageError, together

if TYPE_CHECKING:
    from shoal.spec.cluster import ClusterProfile
    from shoal.storage import Storage

AGE = re.compile(r"(\d+)([hdw])")
GAP = 2
LEAST = ("size", "age", "goodput", "step", "loss")
"""Columns that a narrow terminal goes without, the first one first."""
HOURS = {"h": 1, "d": 24, "w": 24 * 7}


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
        found = seen_by_cluster(survey(storage, profile.storage.runs), profile)
        if not trials or prune:
            found = [one for one in found if one.sweep is None]
        if prune:
            _prune(storage, chosen(found, whole, keep, hours, time.time()), whole, yes, as_json)
        elif as_json:
            typer.echo(json.dumps([asdict(one) for one in found], indent=1))
        else:
            _list(found, profile.storage.runs)


def seen_by_cluster(found: list[Standing], profile: "ClusterProfile") -> list[Standing]:
    """Of what was handed to a cluster and has no plan, the cluster may know that its driver is gone: it could not say so."""
    from shoal.cli.following import jobs_of
    from shoal.errors import ShoalError
    from shoal.submit.submission import RUN

    if all(one.state != "submitted" for one in found):
        return found
    try:
        jobs = jobs_of(profile)
        ended = {job.metadata.get(RUN): job.ended for job in jobs.jobs()} if jobs else {}  # the newest of each counts
    except ShoalError:
        return found  # out of sight, or not to be asked from here: the store alone is heard
    return [replace(one, state="failed") if one.state == "submitted" and ended.get(one.id) else one for one in found]


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
    kept: dict[str, StorageError] = {}
    for one in doomed:
        try:
            for folder in reversed(one.folders):  # a sweep's own goes last: until then its trials are known as such
                storage.delete(join(folder, "" if whole else "checkpoints/"))
        except StorageError as error:  # one that is somebody else's keeps no other
            kept[one.id] = error
            freed -= one.bytes if whole else one.checkpoint_bytes
    if as_json:
        removed = [one.id for one in doomed if one.id not in kept]
        typer.echo(json.dumps({"removed": removed, "whole": whole, "bytes": freed}, indent=1))
    else:
        out.print(f"{size(freed)} freed" if doomed else f"no {what} to remove")
    if kept:
        raise together(list(kept.values()))


def _list(found: list[Standing], runs_url: str) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()
    if not found:
        out.print(f"there are no runs in {runs_url}; start one with  shoal run JOB", markup=False)
        return
    columns = _columns(found)
    widths = {name: max(map(len, (name, *cells))) + GAP for name, cells in columns.items()}
    if not out.is_terminal:
        out.width = max(out.width, sum(widths.values()))
    for name in LEAST:  # rather than cut an id, which is there to be copied
        if sum(widths.values()) > out.width:
            del widths[name]
    table = Table(box=None, padding=(0, GAP, 0, 0))
    for name in widths:
        table.add_column(name, justify="left" if name in ("run", "state") else "right", no_wrap=name == "run")
    for row in zip(*(columns[name] for name in widths), strict=True):
        table.add_row(*map(Text, row))
    out.print(table)


def _columns(found: list[Standing]) -> dict[str, list[str]]:
    from shoal.display import duration, size

    columns: dict[str, list[str]] = {name: [] for name in ("run", "state", "step", "loss", "goodput", "age", "size")}
    for one in found:
        step = "" if one.step is None else f"{one.step:,}"
        step = step if one.trials is None else f"{one.trials:,} trials"
        loss = "" if one.loss is None else f"{one.loss:.4f}"
        goodput = "" if one.goodput is None else f"{one.goodput:.0%}"
        age = None if one.made is None else max(0.0, time.time() - one.made)
        days = "" if age is None else f"{age / 86400:.0f} days" if age > 2 * 86400 else duration(age)
        row = (one.id, one.state, step, loss, goodput, days, size(one.bytes))
        for cells, cell in zip(columns.values(), row, strict=True):
            cells.append(cell)
    return columns


def _hours(age: str) -> int:
    match = AGE.fullmatch(age.strip())
    if match is None:
        raise SpecError(Problem("--older-than", f"{age!r} is no age", "write 12h, 7d or 4w"))
    return int(match[1]) * HOURS[match[2]]
