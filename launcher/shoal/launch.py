"""The flow, in one place: facts -> plan -> prepare -> counted plan -> run folder -> backend -> result."""

import secrets
import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml

from shoal.backends import Backend, OnEvent
from shoal.errors import DataError, Problem, SpecError
from shoal.facts.gather import gather
from shoal.lease import held
from shoal.plan.planner import counted, plan
from shoal.plan.types import Plan
from shoal.runs import RunFolder, find_run, new_run_id
from shoal.spec.cluster import ClusterProfile
from shoal.spec.job import JobSpec
from shoal.spec.load import parse_job
from shoal.storage import Storage, absolute, join
from shoal.train.world import Result


@dataclass(frozen=True)
class Outcome:
    """How a command that trained ended."""

    folder: RunFolder
    plan: Plan
    result: Result


def backend_for(profile: ClusterProfile) -> Backend:
    match profile.kind:
        case "inline":
            from shoal.backends.inline import Inline

            return Inline()
        case "local":
            from shoal.backends.ray_local import RayLocal

            return RayLocal(profile)


def plan_job(job: JobSpec, profile: ClusterProfile, storage: Storage) -> Plan:
    """What a run of `job` on `profile` would be. Needs neither torch nor Ray."""
    run_id = new_run_id(job.name, datetime.now(), secrets.token_hex(2))
    return plan(job, profile, gather(job, profile, storage), run_id)


def run(
    job: JobSpec,
    profile: ClusterProfile,
    storage: Storage,
    backend: Backend,
    on_event: OnEvent,
    stop: threading.Event,
) -> Outcome:
    """Train `job` as a new run on a backend that was started. Raises: ShoalError."""
    on_event({"kind": "phase", "phase": "planning", "detail": job.model.base})
    made = plan_job(job, profile, storage)
    for note in made.notes:
        on_event({"kind": "note", "message": note})
    found = backend.prepare(made, storage, on_event)
    if made.trajectory.data.validation_fraction and not found.validation_samples:
        share = f"data.validation: {made.trajectory.data.validation_fraction:g} of {found.samples:,} samples"
        on_event({"kind": "note", "message": f"{share} held out none: nothing is evaluated"})
    made = _counted(made, storage)
    folder = RunFolder(storage, made.storage.run)
    text = yaml.safe_dump(job.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)
    storage.write(folder.job, text.encode())
    return _train(folder, made, backend, on_event, stop)


def resume(
    beginning: str,
    profile: ClusterProfile,
    storage: Storage,
    backend: Backend,
    on_event: OnEvent,
    stop: threading.Event,
) -> Outcome:
    """Go on with the run whose id begins so, from its newest complete checkpoint. The layout follows the profile.

    Raises: SpecError for a run that is finished, that nobody knows, or whose data or model are not what they were.
    """
    folder = find_run(storage, profile.storage.runs, beginning)
    if storage.exists(folder.result):
        fix = f"`shoal chat {folder.id}` talks to it; a new job can go on from it with model.adapter: {folder.id}"
        raise SpecError(Problem(folder.id, "is finished: there is nothing to resume", fix))
    on_event({"kind": "phase", "phase": "planning", "detail": f"going on with {folder.id}"})
    made = _placed(Plan.model_validate_json(storage.read(folder.plan)), folder, profile)
    backend.prepare(made, storage, on_event)
    return _train(folder, made, backend, on_event, stop)


def _train(folder: RunFolder, made: Plan, backend: Backend, on_event: OnEvent, stop: threading.Event) -> Outcome:
    with held(folder, on_lost=stop.set):
        folder.storage.write(folder.plan, made.model_dump_json(indent=1).encode())
        on_event({"kind": "run", "run": made.run_id, "folder": folder.url, "plan": made})
        return Outcome(folder, made, backend.train(made, on_event, stop))


def _counted(made: Plan, storage: Storage) -> Plan:
    """The plan with the steps that its prepared data really make."""
    from shoal.data.order import count_steps
    from shoal.data.prepared import Prepared

    place = made.storage
    prepared = Prepared.open(storage, place.prepared, Path(absolute(place.cache)), place.cache_bytes)
    exact = count_steps(prepared.lengths, made.trajectory, prepared.sources)
    if not exact.steps:
        raise DataError(Problem("data.train", "its weights leave no sample to train on", "raise a weight"))
    return counted(made, exact.steps, exact.steps_per_epoch, exact.tokens)


def _placed(then: Plan, folder: RunFolder, profile: ClusterProfile) -> Plan:
    """A run's plan where it is resumed: its own trajectory, storage as the profile says, the layout anew if need be."""
    prepared = join(absolute(profile.storage.prepared), then.trajectory.data.digest)
    places = {
        "run": folder.url,
        "prepared": prepared,
        "cache": profile.storage.cache,
        "cache_bytes": round(profile.storage.cache_gib * 2**30),
        "s3": profile.storage.s3,
    }
    storage = then.storage.model_copy(update=places)
    device = "cuda" if profile.resources_per_worker.gpu else "cpu"
    if (then.layout.workers, then.layout.device) == (profile.workers, device):
        return then.model_copy(update={"storage": storage, "max_failures": profile.max_failures})
    job = parse_job(folder.storage.read(folder.job), folder.job)
    now = plan(job, profile, gather(job, profile, folder.storage), then.run_id)
    if now.trajectory_digest != then.trajectory_digest:
        what = f"cannot move to {profile.workers} {device} workers: model, data or dtype would not be what they were"
        fix = f"resume it on {then.layout.workers} {then.layout.device} workers"
        raise SpecError(Problem(folder.id, what, fix))
    return now.model_copy(update={"trajectory": then.trajectory, "storage": storage})
