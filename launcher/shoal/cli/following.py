"""logs and stop: what is driven somewhere else, watched and asked to leave, from any machine that sees its store."""

import getpass
import json
import queue
import socket
import time
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.common import Json, On, Run, console, options_of, profile_name, storage_of
from shoal.cli.leaving import Leaving
from shoal.cli.work import Work
from shoal.display import Display, Lines, RunLines
from shoal.errors import ClusterError, Problem, StorageError
from shoal.submit.dashboard import Dashboard
from shoal.submit.jobs import Jobs

if TYPE_CHECKING:
    from shoal.spec.cluster import ClusterProfile
    from shoal.submit.dashboard import Job
    from shoal.submit.found import Found
    from shoal.train.world import Event

POLL_S = 0.2
LOOK_S = 2.0
"""How often the store is asked what is new."""
ASK = "\nd: detach, the run goes on    s: stop, it saves a checkpoint and leaves    c: go on watching    [d/s/c] "


def logs(
    run: Run,
    on: On = None,
    follow_: Annotated[
        bool, typer.Option("--follow", "-f", help="Stay until the run has ended, and leave with its exit status.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a run's or a sweep's driver said; with --follow, watch it as if it ran here: this is how to reattach.

    Example:  shoal logs quickstart-2026 --follow --on cluster/ray-submit.yaml

    Of a run that was submitted to a cluster, the driver's log; of any other, what it wrote into its run folder. With
    --json the same as a list of events, or how it ended with --follow.
    """
    from shoal.spec.load import load_profile
    from shoal.submit.found import find

    profile = load_profile(profile_name(on))
    dashboard = jobs_of(profile)
    with Leaving() as leaving, storage_of(profile) as storage:
        try:
            found = find(run, storage, profile.storage.runs, dashboard)
            work = Work(found.id, found.is_sweep, options_of(on), as_json)
            job, runs = found.job, _runs(dashboard, found)
            said = "" if dashboard is None or job is None or (follow_ and runs) else dashboard.log(job.id)
            if follow_ and dashboard is not None and job is not None and (runs or said):
                follow(work, job.id, profile, dashboard, work.display(), leaving)
            elif said:
                _print_log(said, work)
            elif found.is_sweep:
                _board(found, work, follow_)
            else:
                _from_store(found, work, follow_)
        except KeyboardInterrupt:
            raise typer.Exit(leaving.status) from None


def stop(
    run: Run,
    on: On = None,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for the step and its checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Stop a run or a sweep wherever it is driven: it finishes its step, saves and leaves. `shoal resume` goes on.

    Example:  shoal stop quickstart-2026 --on cluster/ray-submit.yaml

    Waits until it has left; Ctrl-C stops the waiting alone.
    """
    from shoal.spec.load import load_profile
    from shoal.submit.found import ask_to_stop, find

    profile = load_profile(profile_name(on))
    dashboard = jobs_of(profile)
    with storage_of(profile) as storage:
        found = find(run, storage, profile.storage.runs, dashboard)
        typer.echo(f"{found.id}: {ask_to_stop(found, dashboard, _me(), now)}", err=as_json)
        while found.is_driven or _runs(dashboard, found):
            time.sleep(POLL_S * 5)
        work = Work(found.id, found.is_sweep, options_of(on), as_json)
        resume = work.resume if found.has_saved else None
        if found.in_sight and not found.has_begun:
            storage.delete(found.folder.submission)  # nothing stays of what never began
    if as_json:
        typer.echo(json.dumps({work.kind: work.id, "resume": resume}, indent=1))
    else:
        typer.echo(f"it has left; go on with  {resume}" if resume else "it has left, without a checkpoint")


def jobs_of(profile: "ClusterProfile") -> Jobs | None:
    """Who runs the drivers of a place that is seen from outside; None where they are processes like this one."""
    if profile.kind == "kuberay":
        from shoal.kuberay.watch import RayJobs

        return RayJobs.of(profile)
    return Dashboard(profile.address, profile.token) if profile.submits else None


def _runs(dashboard: Jobs | None, found: "Found") -> bool:
    if dashboard is None or found.job is None:
        return False
    job = dashboard.job(found.job.id)
    return job is not None and not job.ended


def follow(
    work: Work, job_id: str, profile: "ClusterProfile", dashboard: Jobs, display: Display, leaving: Leaving
) -> None:
    """Show what was submitted until it ends, then leave with its status."""
    from shoal.submit.follow import Follower, ended, status_of

    follower = Follower(dashboard, job_id)
    follower.start()
    leaving.watching = True
    outcome, errors = None, []
    with display:
        while True:
            if leaving.asked:
                _decide(work, profile, dashboard, display, leaving)
            try:
                event = follower.next(POLL_S)
            except queue.Empty:
                continue
            if event is None:
                break
            if event["kind"] == "outcome":
                outcome = event
            elif event["kind"] == "error":
                errors.append(event["message"])
            else:
                display.on_event(_shown(event))
    if follower.error is not None:
        fix = f"it may well go on: `shoal logs {work.id} --follow{work.options}` looks again"
        raise ClusterError(*follower.error.problems, Problem(work.id, f"job {job_id} is out of sight", fix))
    job = ended(dashboard, job_id, lambda: True)
    if outcome is not None:
        work.tell(outcome, profile)
    for line in errors:
        typer.echo(line, err=True)
    if status := status_of(job):
        begun = _has_begun(work, profile)
        if outcome is None and not errors:
            _tell_death(work, job, status, begun)
        raise typer.Exit(status)


def _has_begun(work: Work, profile: "ClusterProfile") -> bool:
    """Whether its driver made a plan, as far as one can see from here. Of one that did not, nothing stays in the store."""
    from shoal.runs import RunFolder
    from shoal.storage import absolute, join
    from shoal.submit.found import has_begun

    try:
        with storage_of(profile) as storage:
            folder = RunFolder(storage, join(absolute(profile.storage.runs), work.id))
            if has_begun(folder):
                return True
            storage.delete(folder.submission)
            return False
    except StorageError:
        return True


def _shown(event: "Event") -> "Event":
    """What somebody else wrote into the log is shown as it is."""
    return {**event, "kind": "note"} if event["kind"] == "log" else event


def _decide(work: Work, profile: "ClusterProfile", dashboard: Jobs, display: Display, leaving: Leaving) -> None:
    """After a first signal: detach, stop, or go on watching. Raises: typer.Exit to detach."""
    answer = "d"
    if leaving.may_ask:
        display.__exit__(None, None, None)
        try:
            answer = _answer()
        except (KeyboardInterrupt, EOFError):
            answer = "d"
        if answer != "d":
            display.__enter__()
    if answer == "d":
        again = f"shoal logs {work.id} --follow{work.options}"
        typer.echo(f"detached: {work.id} goes on; watch it with  {again}", err=True)
        raise typer.Exit(leaving.status)
    if answer == "s":
        from shoal.submit.found import ask_to_stop, find

        with storage_of(profile) as storage:
            done = ask_to_stop(find(work.id, storage, profile.storage.runs, dashboard), dashboard, _me(), now=False)
        display.on_event({"kind": "note", "message": f"{done}; Ctrl-C once more detaches"})
    leaving.asked = False


def _answer() -> str:
    while True:
        typer.echo(ASK, err=True, nl=False)
        said = input().strip().lower()[:1]
        if said in ("d", "s", "c"):
            return said


def _tell_death(work: Work, job: "Job", status: int, begun: bool) -> None:
    """Of a driver that could say nothing itself: the last words that are no event of ours, nor Ray's heading of them."""
    from shoal.submit.follow import event_of

    events = filter(None, map(event_of, job.message.splitlines()))
    said = [
        one["message"]
        for one in events
        if one["kind"] in ("log", "error") and "last available logs" not in one["message"]
    ]
    what = f"job {job.id} {job.status.lower()} with status {status}" + (f": {said[-1].strip()[:300]}" if said else "")
    then = f"go on with  {work.resume}" if begun else f"use its job file again, with  --run-id {work.id}"
    typer.echo(f"{work.id}: {what}; {then}", err=True)


def _print_log(said: str, work: Work) -> None:
    """All that the driver has said so far, each line with its own time."""
    from shoal.submit.follow import event_of
    from shoal.tune import live

    events = [event for line in said.splitlines() if (event := event_of(line)) is not None]
    if work.as_json:
        typer.echo(json.dumps(events))
        return
    now = [0.0]

    def clock() -> float:
        now[0] += LOOK_S  # the driver has thinned steps out already
        return now[0]

    display = Lines(console(), live.Trials()) if work.is_sweep else RunLines(console(), clock)
    for event in events:
        if event["kind"] == "error":
            typer.echo(event["message"])
        elif event["kind"] != "outcome":
            display.on_event(_shown(event))


def _board(found: "Found", work: Work, follow_: bool) -> None:
    """A sweep without a job that anybody remembers: its leaderboard, as it is or as it is in the end."""
    from shoal.cli.sweeping import tell_board
    from shoal.tune.board import board
    from shoal.tune.folder import SweepFolder

    while follow_ and found.is_driven:
        time.sleep(LOOK_S)
    finished = found.is_finished
    tell_board(
        console(), board(SweepFolder(found.folder.storage, found.folder.url)), finished, work.options, work.as_json
    )
    if follow_ and not finished:
        raise typer.Exit(1)


def _from_store(found: "Found", work: Work, follow_: bool) -> None:
    """A run without a job that anybody remembers: what it wrote down, and what it goes on to write."""
    display = work.display()
    seen: set[str] = set()
    with display:
        while True:
            driven, finished = found.is_driven, found.is_finished
            for row in found.rows() if found.in_sight else []:
                key = json.dumps(row, sort_keys=True)
                if key not in seen and row["kind"] not in ("driver", "ended"):
                    display.on_event({"steps": row.get("step"), **row})
                seen.add(key)
            if not follow_ or finished or not driven:
                break
            time.sleep(LOOK_S)
    if work.as_json:
        typer.echo(json.dumps(found.rows() if found.in_sight else []))
    elif not seen:
        typer.echo(f"{found.id} has written nothing yet", err=True)
    if follow_ and not finished:
        doctor = f"shoal doctor {found.id}{work.options}"
        typer.echo(f"{found.id} is not finished, and nobody drives it; what became of it says  {doctor}", err=True)
        raise typer.Exit(1)


def _me() -> str:
    return f"{getpass.getuser()} on {socket.gethostname()}"
