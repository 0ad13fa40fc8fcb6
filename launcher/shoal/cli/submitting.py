"""run and resume on a cluster seen from outside: plan here, look at the cluster, hand the run over, show how it goes."""

import json
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

import typer

from shoal.cli.common import console, storage_of
from shoal.cli.following import follow
from shoal.cli.leaving import Leaving
from shoal.display import Display, display_for, size
from shoal.errors import SpecError, StorageError
from shoal.submit.dashboard import Dashboard

if TYPE_CHECKING:
    from shoal.spec.cluster import ClusterProfile
    from shoal.spec.job import JobSpec
    from shoal.storage import Storage
    from shoal.submit.found import Found
    from shoal.submit.place import Place
    from shoal.submit.submission import Submitted


def run(
    job: "JobSpec",
    profile: "ClusterProfile",
    on: str | None,
    run_id: str | None,
    flags: Sequence[str],
    detach: bool,
    as_json: bool,
) -> None:
    """`shoal run` there. Leaves with the run's status."""
    from shoal.runs import checked_id, new_run_id

    run_id = checked_id(run_id) if run_id else new_run_id(job.name, datetime.now(), secrets.token_hex(2))
    _hand_over(run_id, job, profile, on, flags, detach, as_json)


def resume(
    beginning: str, profile: "ClusterProfile", on: str | None, flags: Sequence[str], detach: bool, as_json: bool
) -> None:
    """`shoal resume` there."""
    from shoal.submit.found import find

    with storage_of(profile) as storage:
        found = find(beginning, storage, profile.storage.runs, Dashboard(profile.address, profile.token))
        require_unfinished(found)
    _hand_over(found.id, None, profile, on, flags, detach, as_json)


def require_unfinished(found: "Found") -> None:
    from shoal.errors import Problem

    if found.in_store and found.result() is not None:
        fix = f"`shoal chat {found.id}` talks to it; a new job can go on from it with model.adapter: {found.id}"
        raise SpecError(Problem(found.id, "is finished: there is nothing to resume", fix))
    if found.in_store and not found.folder.storage.exists(found.folder.plan):
        what = "never began to train: there is nothing to go on from"
        raise SpecError(Problem(found.id, what, f"run its job again with --run-id {found.id}"))


def _hand_over(
    run_id: str,
    job: "JobSpec | None",
    profile: "ClusterProfile",
    on: str | None,
    flags: Sequence[str],
    detach: bool,
    as_json: bool,
) -> None:
    out = console(as_json)
    display = display_for(out)
    options = f" --on {on}" if on else ""
    dashboard = Dashboard(profile.address, profile.token)
    with Leaving() as leaving:
        try:
            with storage_of(profile) as storage, display:
                submitted, folder = _submitted(run_id, job, profile, storage, dashboard, display, flags)
        except KeyboardInterrupt:
            typer.echo("left before anything was submitted", err=True)
            raise typer.Exit(leaving.status) from None
        if detach:
            tell_detached(run_id, folder, submitted, options, as_json)
            return
        follow(run_id, submitted.id, profile, dashboard, display, leaving, options, as_json)


def _submitted(
    run_id: str,
    job: "JobSpec | None",
    profile: "ClusterProfile",
    storage: "Storage",
    dashboard: Dashboard,
    display: Display,
    flags: Sequence[str],
) -> "tuple[Submitted, str]":
    """The run, handed over, and its folder. The cluster is looked at while the plan is made."""
    from shoal.launch import plan_job
    from shoal.plan.places import problems
    from shoal.runs import RunFolder
    from shoal.storage import absolute, join
    from shoal.submit.found import submission_url
    from shoal.submit.package import package
    from shoal.submit.place import examined
    from shoal.submit.submission import as_json, request, submit

    if wrong := list(problems(profile)):
        raise SpecError(*wrong)
    folder = RunFolder(storage, join(absolute(profile.storage.runs), run_id))
    display.on_event({"kind": "phase", "phase": "planning", "detail": job.model.base if job else run_id})
    own = package()
    with ThreadPoolExecutor(1, thread_name_prefix="look") as pool:
        looking = pool.submit(examined, dashboard, profile, own, job.model.token if job else None)
        sees_store = sees(storage, profile, display)
        if job is not None and sees_store:
            plan_job(job, profile, storage, run_id)  # mistakes are told before anything is shipped
        place: Place = looking.result()
    display.on_event({"kind": "phase", "phase": "submitting", "detail": profile.address})
    wanted = request(profile, run_id, folder.url, job, place, own, *flags)
    submitted = submit(dashboard, run_id, wanted, place, own)
    if sees_store:
        storage.write(submission_url(folder), as_json(submitted))
    had = f"shoal {own.version} went along" if place.needs(own) else f"shoal {place.shoal} is there"
    sent = f"{size(sum(dashboard.sent))} sent"
    display.on_event(
        {"kind": "note", "message": f"{run_id} is job {submitted.id} on {profile.address} ({had}, {sent})"}
    )
    return submitted, folder.url


def sees(storage: "Storage", profile: "ClusterProfile", display: Display) -> bool:
    """Whether the store can be read from here; where only the cluster reaches it, the driver finds the mistakes."""
    from shoal.storage import join

    try:
        storage.exists(join(profile.storage.runs, ""))
    except StorageError as error:
        said = "; ".join(str(problem) for problem in error.problems)
        display.on_event({"kind": "note", "message": f"not planned here, the cluster does that: {said}"})
        return False
    return True


def tell_detached(run_id: str, folder: str, submitted: "Submitted", options: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"run": run_id, "folder": folder, "submission": asdict(submitted)}, indent=1))
        return
    typer.echo(f"{run_id} goes on by itself")
    typer.echo(f"watch it             shoal logs {run_id} --follow{options}")
    typer.echo(f"save, and leave      shoal stop {run_id}{options}")
