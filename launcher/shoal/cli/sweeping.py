"""A sweep that this process drives: under a display, with signals heard, its leaderboard at the end."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from shoal.cli.common import console, storage_of
from shoal.errors import Problem, SpecError

if TYPE_CHECKING:
    import threading

    from rich.console import Console

    from shoal.backends import OnEvent
    from shoal.spec.cluster import ClusterProfile
    from shoal.spec.job import JobSpec
    from shoal.storage import Storage
    from shoal.tune.board import Board
    from shoal.tune.folder import SweepPlan

    Begin = Callable[[Storage, OnEvent, threading.Event], Board]

NOTHING_FINISHED = 8
"""Exit status of a sweep in which no trial finished: that of training that failed."""


def begin(job: "JobSpec", profile: "ClusterProfile", run_id: str | None) -> "Begin":
    """A new sweep, or the one of that id once more."""

    def begin(storage: "Storage", on_event: "OnEvent", stop: "threading.Event") -> "Board":
        from shoal.runs import giving_up
        from shoal.tune.folder import SweepFolder
        from shoal.tune.forecast import forecast
        from shoal.tune.sweep import resume_sweep, run_sweep

        plan = _plan(job, run_id)
        folder = SweepFolder.of(storage, profile.storage.runs, plan.sweep_id)
        if storage.exists(folder.plan):
            _require_same(folder.read_plan(), plan)
            return resume_sweep(folder, profile, storage, on_event, stop)
        if storage.exists(folder.lease.plan):
            raise SpecError(Problem(f"--run-id {run_id}", "is a run, not a sweep", "give the sweep another id"))
        on_event({"kind": "phase", "phase": "planning", "detail": job.model.base})
        with giving_up(folder.lease):
            notes = forecast(plan.spec, job, profile, storage).notes
        for note in notes:
            on_event({"kind": "note", "message": note})
        return run_sweep(plan, profile, storage, on_event, stop)

    return begin


def go_on(sweep: str, profile: "ClusterProfile") -> "Begin":
    """The sweep whose id begins so."""

    def begin(storage: "Storage", on_event: "OnEvent", stop: "threading.Event") -> "Board":
        from shoal.tune.folder import find_sweep
        from shoal.tune.sweep import resume_sweep

        return resume_sweep(find_sweep(storage, profile.storage.runs, sweep), profile, storage, on_event, stop)

    return begin


def _plan(job: "JobSpec", run_id: str | None) -> "SweepPlan":
    from datetime import UTC, datetime

    from shoal import __version__
    from shoal.runs import new_id
    from shoal.tune.folder import SWEEP_VERSION, SweepPlan
    from shoal.tune.space import apply

    assert job.sweep
    return SweepPlan(
        version=SWEEP_VERSION,
        shoal=__version__,
        sweep_id=run_id or new_id(job.name),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        spec=job.sweep,
        job=apply(job, {}),  # without its `sweep`: what is not set stays so
    )


def _require_same(then: "SweepPlan", now: "SweepPlan") -> None:
    from shoal.spec.load import require_same

    require_same(now.sweep_id, then.job, now.job, "that sweep was begun with another job")
    require_same(now.sweep_id, then.spec, now.spec, "that sweep was begun with another `sweep` section")


def drive(profile: "ClusterProfile", begin: "Begin", options: str, events: bool, as_json: bool) -> None:
    """Run under a display, with signals heard; tell the leaderboard; leave with the status that says how it ended."""
    from shoal.cli.interrupts import Interrupts, driven
    from shoal.cli.relay import Relay, board_event
    from shoal.tune.live import display_for

    out = console(as_json)
    display = Relay() if events else display_for(out)
    with (
        Interrupts(display.on_event) as interrupts,
        driven(interrupts, "shoal sweep resume", options),
        display,
        storage_of(profile) as storage,
    ):
        found = begin(storage, interrupts.on_event, interrupts.stop)
    finished = not interrupts.stop.is_set()
    if events:
        display.on_event(board_event(found, finished))
    else:
        tell_board(out, found, finished, options, as_json)
    if not finished:
        raise typer.Exit(interrupts.status)
    if found.winner is None:
        raise typer.Exit(NOTHING_FINISHED)


def tell_board(out: "Console", found: "Board", finished: bool, options: str, as_json: bool) -> None:
    """The leaderboard, and what to do next."""
    from shoal.tune.table import board_table

    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1))
        return
    out.print(board_table(found, out.width))
    out.print(f"shoal sweep {'best' if finished else 'resume'} {found.sweep}{options}", markup=False, soft_wrap=True)
