"""Runs and sweeps that are driven elsewhere: planned here, handed over, watched as if they ran here.

Two ways lead there, alike to what is here: Ray's job API (`Submitting`), and a RayJob on Kubernetes (`Applying`).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from shoal.cli.common import options_of, storage_of
from shoal.cli.following import follow
from shoal.cli.kuberay import Applying
from shoal.cli.leaving import Leaving
from shoal.cli.submitting import Submitting
from shoal.cli.work import Work
from shoal.errors import ClusterError, Problem, SpecError

if TYPE_CHECKING:
    from shoal.spec.cluster import ClusterProfile
    from shoal.spec.job import JobSpec
    from shoal.submit.found import Found
    from shoal.submit.submission import Submitted


def is_outside(profile: "ClusterProfile", detach: bool, keep: bool) -> bool:
    """Whether the profile's runs are driven elsewhere. Raises: SpecError for an option that means nothing here."""
    if keep and profile.kind != "kuberay":
        raise SpecError(Problem("--keep", "nothing was applied that could be taken away", "it is for kind: kuberay"))
    if profile.submits or profile.kind == "kuberay":
        return True
    if detach:
        fix = "give a profile with  kind: ray  and  address: http://HEAD:8265  (cluster/ray-submit.yaml)"
        raise SpecError(Problem("--detach", "this profile trains in this very process", fix))
    return False


def run(
    job: "JobSpec", profile: "ClusterProfile", on: str | None, run_id: str | None, flags: Sequence[str],
    detach: bool, keep: bool, as_json: bool,
) -> None:  # fmt: skip
    """`shoal run`, or `shoal sweep` of a job that has one, there. Leaves with its status."""
    from shoal.runs import new_id

    work = Work(run_id or new_id(job.name), job.sweep is not None, options_of(on), as_json)
    _hand_over(work, job, _way(profile), flags, detach, keep)


def resume(
    beginning: str, is_sweep: bool, profile: "ClusterProfile", on: str | None, flags: Sequence[str],
    detach: bool, keep: bool, as_json: bool,
) -> None:  # fmt: skip
    """`shoal resume`, or `shoal sweep resume`, there: the very same job once more."""
    from shoal.spec.load import parse_job
    from shoal.submit.found import find

    way, job = _way(profile), None
    with storage_of(profile) as storage:
        found = find(beginning, storage, profile.storage.runs, way.jobs)
        _require_unfinished(found, is_sweep)
        if is_sweep or profile.kind == "kuberay":
            if not found.in_sight:
                fix = f"use its job file again, with --run-id {found.id}: it goes on where it was"
                raise ClusterError(Problem(found.id, "its folder cannot be read from here", fix))
            job = parse_job(storage.read(found.folder.job), found.folder.job)
    _hand_over(Work(found.id, is_sweep, options_of(on), as_json), job, way, flags, detach, keep)


def _way(profile: "ClusterProfile") -> Submitting | Applying:
    return Applying(profile) if profile.kind == "kuberay" else Submitting(profile)


def _require_unfinished(found: "Found", is_sweep: bool) -> None:
    if found.is_sweep and not is_sweep:
        raise SpecError(Problem(found.id, "is a sweep", f"`shoal sweep resume {found.id}` goes on with it"))
    if is_sweep and not found.is_sweep:
        raise SpecError(Problem(found.id, "is a run, not a sweep", f"`shoal resume {found.id}` goes on with it"))
    if found.in_sight and found.is_finished:
        fix = f"`shoal chat {found.id}` talks to it; a new job can go on from it with model.adapter: {found.id}"
        fix = f"`shoal sweep best {found.id}` takes its best trial" if is_sweep else fix
        raise SpecError(Problem(found.id, "is finished: there is nothing to resume", fix))
    if found.in_sight and not found.has_begun:
        what = "never began to train: there is nothing to go on from"
        raise SpecError(Problem(found.id, what, f"use its job file again, with --run-id {found.id}"))


def _hand_over(
    work: Work, job: "JobSpec | None", way: Submitting | Applying, flags: Sequence[str], detach: bool, keep: bool
) -> None:
    display = work.display()
    with Leaving() as leaving:
        try:
            with storage_of(way.profile) as storage, display:
                submitted, folder = way.hand_over(work, job, storage, display, flags, leaving)
        except KeyboardInterrupt:
            typer.echo("left before it was handed over: what was made for it is taken away", err=True)
            raise typer.Exit(leaving.status) from None
        if detach:
            _tell_detached(work, folder, submitted)
            return
        try:
            follow(work, submitted.id, way.profile, way.jobs, display, leaving)
        except KeyboardInterrupt:
            raise typer.Exit(leaving.status) from None
        finally:
            way.clear_away(submitted.id, keep)


def _tell_detached(work: Work, folder: str, submitted: "Submitted") -> None:
    if work.as_json:
        said = {work.kind: work.id, "folder": folder, "submission": asdict(submitted)}
        typer.echo(json.dumps(said, indent=1))
        return
    typer.echo(f"{work.id} goes on by itself")
    typer.echo(f"watch it             shoal logs {work.id} --follow{work.options}")
    typer.echo(f"save, and leave      shoal stop {work.id}{work.options}")
