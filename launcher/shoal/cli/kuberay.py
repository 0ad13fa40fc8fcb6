"""run and resume on Kubernetes: plan here, apply what is rendered, show how it goes, clear away."""

import getpass
import secrets
import signal
import socket
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import typer

from shoal.cli.common import console, storage_of
from shoal.cli.following import follow
from shoal.cli.leaving import Leaving
from shoal.cli.submitting import require_unfinished, sees, tell_detached
from shoal.display import Display, display_for
from shoal.errors import ClusterError, Problem, SpecError

if TYPE_CHECKING:
    from shoal.kube.names import Manifest
    from shoal.kuberay.watch import RayJobs
    from shoal.spec.cluster import ClusterProfile
    from shoal.spec.job import JobSpec
    from shoal.submit.submission import Submitted

FINISHED_WITH = ("PodDisruptionBudget", "ConfigMap")
"""What an ended run needs no more. Its NetworkPolicy guards the pods while they are kept, and goes with the RayJob."""

ASKED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit statuses of a driver that was asked to leave."""


def run(
    job: "JobSpec", profile: "ClusterProfile", on: str | None, run_id: str | None, flags: Sequence[str],
    detach: bool, keep: bool, as_json: bool,
) -> None:  # fmt: skip
    """`shoal run` there. Leaves with the run's status."""
    from shoal.runs import checked_id, new_run_id

    run_id = checked_id(run_id) if run_id else new_run_id(job.name, datetime.now(), secrets.token_hex(2))
    _hand_over(run_id, job, profile, on, flags, detach, keep, as_json)


def resume(
    beginning: str, profile: "ClusterProfile", on: str | None, flags: Sequence[str],
    detach: bool, keep: bool, as_json: bool,
) -> None:  # fmt: skip
    """`shoal resume` there: the very same job, applied again."""
    from shoal.kuberay.watch import RayJobs
    from shoal.spec.load import parse_job
    from shoal.submit.found import find

    with storage_of(profile) as storage:
        found = find(beginning, storage, profile.storage.runs, RayJobs.of(profile))
        require_unfinished(found)
        if not found.in_store:
            fix = f"run its job file again with --run-id {found.id}: it goes on where it was"
            raise ClusterError(Problem(found.id, "its folder cannot be read from here", fix))
        job = parse_job(storage.read(found.folder.job), found.folder.job)
    _hand_over(found.id, job, profile, on, flags, detach, keep, as_json)


def _hand_over(
    run_id: str, job: "JobSpec", profile: "ClusterProfile", on: str | None, flags: Sequence[str],
    detach: bool, keep: bool, as_json: bool,
) -> None:  # fmt: skip
    from shoal.kuberay.watch import RayJobs

    display = display_for(console(as_json))
    options = f" --on {on}" if on else ""
    jobs = RayJobs.of(profile)
    with Leaving() as leaving:
        try:
            with display:
                submitted, folder = _submitted(run_id, job, profile, jobs, display, flags)
        except KeyboardInterrupt:
            typer.echo("left before the run was applied: what was made for it is taken away", err=True)
            raise typer.Exit(leaving.status) from None
        if detach:
            tell_detached(run_id, folder, submitted, options, as_json)
            return
        try:
            follow(run_id, submitted.id, profile, jobs, display, leaving, options, as_json)
        except KeyboardInterrupt:
            raise typer.Exit(leaving.status) from None
        finally:
            _after(jobs, submitted.id, profile, keep)


def _submitted(
    run_id: str, job: "JobSpec", profile: "ClusterProfile", jobs: "RayJobs", display: Display, flags: Sequence[str]
) -> "tuple[Submitted, str]":
    """The run, applied, and its folder. Mistakes are told before anything is sent, refusals before anything is made."""
    from shoal.kuberay.apply import apply
    from shoal.launch import plan_job
    from shoal.record.rows import stamp
    from shoal.runs import RunFolder
    from shoal.storage import absolute, join
    from shoal.submit.found import submission_url
    from shoal.submit.submission import Submitted, as_json

    manifests = _rendered(job, profile, run_id, flags)
    with storage_of(profile) as storage:
        folder = RunFolder(storage, join(absolute(profile.storage.runs), run_id))
        display.on_event({"kind": "phase", "phase": "planning", "detail": job.model.base})
        in_sight = sees(storage, profile, display)
        if in_sight:
            plan_job(job, profile, storage, run_id)
        display.on_event({"kind": "phase", "phase": "applying", "detail": jobs.address})

        def tell(message: str) -> None:
            display.on_event({"kind": "note", "message": message})

        made = apply(jobs.api, manifests, tell)
        name = made["metadata"]["name"]
        submitted = Submitted(name, jobs.address, f"{getpass.getuser()} on {socket.gethostname()}", stamp())
        if in_sight:
            storage.write(submission_url(folder), as_json(submitted))
    tell(f"{run_id} is RayJob {name} in {jobs.address}")
    return submitted, folder.url


def _rendered(job: "JobSpec", profile: "ClusterProfile", run_id: str, flags: Sequence[str]) -> "list[Manifest]":
    """As `shoal render` has them, but that the driver tells its events for the display here."""
    from shoal.cli.render import files_here
    from shoal.kube.render import run as render

    if job.sweep is not None:
        fix = "`shoal render JOB --on PROFILE | kubectl apply -f -` does so"
        raise SpecError(Problem("sweep", "is not applied and followed from here on kuberay", fix))
    manifests = render(job, profile, run_id, files_here(job))
    manifests[-1]["spec"]["entrypoint"] = " ".join([manifests[-1]["spec"]["entrypoint"], "--events", *flags])
    return manifests


def _after(jobs: "RayJobs", name: str, profile: "ClusterProfile", keep: bool) -> None:
    """Clear away after a run that finished, or that never got its pods; keep everything of one that failed."""
    from shoal.kuberay.apply import clear, clear_beside

    namespace = jobs.api.namespace
    delete = f"kubectl -n {namespace} delete rayjob {name}"
    try:
        ended = jobs.job(name)
        if name in jobs.lost:
            if keep:
                typer.echo(f"kept, and it may yet start; take it away with  {delete}", err=True)
            else:
                clear(jobs.api, name)
                typer.echo(f"RayJob {name} and what was made for it are taken away", err=True)
        elif ended is None or not ended.ended or ended.status == "STOPPED" or ended.exit_code in ASKED:
            return
        elif ended.status == "SUCCEEDED" and not keep:
            clear_beside(jobs.api, name, FINISHED_WITH)
        elif ended.status == "FAILED":
            assert profile.kubernetes is not None
            kept = f"its pods are kept for {profile.kubernetes.ttl_seconds_after_finished} s"
            look = f"kubectl -n {namespace} get rayjob,pods,events; kubectl -n {namespace} describe rayjob {name}"
            typer.echo(f"{kept}; look with  {look}", err=True)
            typer.echo(f"all of it goes with  {delete}", err=True)
    except ClusterError as error:
        typer.echo(f"not cleared away: {error}", err=True)
