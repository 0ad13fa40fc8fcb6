"""The flow, in one place: facts -> plan -> prepare -> counted plan -> run folder -> backend -> result."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from shoal.backends import Backend, OnEvent
from shoal.errors import ClusterError, DataError, Problem, SpecError, StorageError
from shoal.facts.gather import gather
from shoal.lease import STALE_AFTER_S, held
from shoal.plan.planner import counted, plan
from shoal.plan.types import Plan
from shoal.record import rows
from shoal.record.ending import read_result
from shoal.record.ledger import Ledger, ledger
from shoal.runs import RunFolder, checked_id, find_run, giving_up, new_id
from shoal.spec.cluster import ClusterProfile
from shoal.spec.job import JobSpec
from shoal.spec.load import parse_job, require_same
from shoal.storage import Storage, absolute, join
from shoal.train.world import Event, Result

Amend = Callable[[Plan], Plan]
"""What a caller changes of a plan before it is carried out."""

SETTLE_S = 10.0
"""How long an ending driver waits for the store to take its last words."""
REPLACED_S = STALE_AFTER_S + 10
"""How long a driver that was submitted again waits for the lease of the one before it to run out."""


@dataclass(frozen=True)
class Outcome:
    """How a command that trained ended."""

    folder: RunFolder
    plan: Plan
    result: Result
    ledger: Ledger | None
    """What the wall time went to; None when the store was away at the end."""


def backend_for(profile: ClusterProfile) -> Backend:
    match profile.kind:
        case "inline":
            from shoal.backends.inline import Inline

            return Inline()
        case "local":
            from shoal.backends.ray_local import RayLocal

            return RayLocal(profile)
        case "ray":
            from shoal.backends.ray_cluster import RayCluster

            if profile.submits:
                what = (
                    f"{profile.address} is a cluster seen from outside: runs are submitted there, and nothing else is"
                )
                fix = "on the cluster itself, with address: auto, this works too; `ray job submit -- shoal ...` gets there"
                raise ClusterError(Problem("address", what, fix))
            return RayCluster(profile)
        case "kuberay":
            what = "kuberay makes its cluster for one run or sweep: nothing else works there"
            fix = "`shoal run`, `sweep`, `resume`, `logs` and `stop` do; k8s/README.md has more"
            raise ClusterError(Problem("kind", what, fix))


def plan_job(job: JobSpec, profile: ClusterProfile, storage: Storage, run_id: str | None = None) -> Plan:
    """What a run of `job` on `profile` would be. Needs neither torch nor Ray."""
    return plan(job, profile, gather(job, profile, storage), run_id or new_id(job.name))


def run(
    job: JobSpec,
    profile: ClusterProfile,
    storage: Storage,
    backend: Backend,
    on_event: OnEvent,
    stop: threading.Event,
    run_id: str | None = None,
    amend: Amend = lambda plan: plan,
) -> Outcome:
    """Train `job` as a new run on a backend that was started; with a `run_id`, go on with the run of that id if it is there.

    Raises: ShoalError; SpecError when the run of that id was made from another job.
    """
    replaced_s = 0.0 if run_id is None else REPLACED_S
    run_id = new_id(job.name) if run_id is None else checked_id(run_id)
    folder = RunFolder(storage, join(absolute(profile.storage.runs), run_id))
    if storage.exists(folder.plan):
        return _again(folder, job, profile, backend, on_event, stop, amend)
    with giving_up(folder):
        made = amend(prepared_plan(job, profile, storage, backend, on_event, run_id))
    text = yaml.safe_dump(job.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)
    storage.write(folder.job, text.encode())
    return _train(folder, made, backend, on_event, stop, replaced_s)


def prepared_plan(
    job: JobSpec,
    profile: ClusterProfile,
    storage: Storage,
    backend: Backend,
    on_event: OnEvent,
    run_id: str | None = None,
) -> Plan:
    """What a run of `job` on `profile` will be, its data prepared and its steps counted."""
    on_event({"kind": "phase", "phase": "planning", "detail": job.model.base})
    made = plan_job(job, profile, storage, run_id)
    for note in made.notes:
        on_event({"kind": "note", "message": note})
    found = backend.prepare(made, storage, on_event)
    if made.trajectory.data.validation_fraction and not found.validation_samples:
        share = f"data.validation: {made.trajectory.data.validation_fraction:g} of {found.samples:,} samples"
        on_event({"kind": "note", "message": f"{share} held out none: nothing is evaluated"})
    return _counted(made, storage)


def _again(
    folder: RunFolder,
    job: JobSpec,
    profile: ClusterProfile,
    backend: Backend,
    on_event: OnEvent,
    stop: threading.Event,
    amend: Amend,
) -> Outcome:
    """The same command once more: what is finished is shown, anything else goes on."""
    require_same(folder.id, parse_job(folder.storage.read(folder.job), folder.job), job)
    if not folder.storage.exists(folder.result):
        return _go_on(folder, profile, backend, on_event, stop, REPLACED_S, amend)
    made = Plan.read_back(folder.storage.read(folder.plan), folder.plan)
    on_event({"kind": "run", "run": folder.id, "folder": folder.url, "plan": made})
    on_event({"kind": "note", "message": f"{folder.id} is finished already: there is nothing to do"})
    return Outcome(folder, made, Result(**read_result(folder)), None)


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
    return _go_on(folder, profile, backend, on_event, stop)


def _go_on(
    folder: RunFolder,
    profile: ClusterProfile,
    backend: Backend,
    on_event: OnEvent,
    stop: threading.Event,
    wait_s: float = 0.0,
    amend: Amend = lambda plan: plan,
) -> Outcome:
    on_event({"kind": "phase", "phase": "planning", "detail": f"going on with {folder.id}"})
    made = amend(_placed(Plan.read_back(folder.storage.read(folder.plan), folder.plan), folder, profile))
    backend.prepare(made, folder.storage, on_event)
    return _train(folder, made, backend, on_event, stop, wait_s)


def _train(
    folder: RunFolder, made: Plan, backend: Backend, on_event: OnEvent, stop: threading.Event, wait_s: float
) -> Outcome:
    lost = threading.Event()
    unwritten: list[Event] = []

    def leave() -> None:
        lost.set()
        stop.set()

    def asked(by: str) -> None:
        on_event({"kind": "note", "message": f"{by} asks to stop: this step is finished and saved first"})
        stop.set()

    def hear(event: Event) -> None:
        if event["kind"] == "failure" and event["final"]:
            unwritten.append(event)  # no worker comes that could write it down
        on_event(event)

    with held(folder, on_lost=leave, wait_s=wait_s, on_asked=asked):
        folder.storage.write(folder.plan, made.model_dump_json(indent=1).encode())
        folder.storage.delete(folder.ledger)
        kept = rows.last_words(made.storage.cache, folder.id)
        earlier = rows.parse(kept.read_bytes()) if kept.exists() else []
        rows.append(folder, *earlier, {"kind": "driver", "host": socket.gethostname(), "pid": os.getpid()})
        kept.unlink(missing_ok=True)
        on_event({"kind": "run", "run": made.run_id, "folder": folder.url, "plan": made})
        try:
            result = backend.train(made, hear, stop)
        except BaseException as error:
            if not lost.is_set():
                state = "left" if isinstance(error, KeyboardInterrupt) else "failed"
                said = {"error": type(error).__name__, "message": str(error)}
                _settle(folder, kept, *unwritten, {"kind": "ended", "state": state, **said})
            raise
        ended = {"kind": "ended", "state": result.state, "step": result.step}
        return Outcome(folder, made, result, None if lost.is_set() else _settle(folder, kept, ended))


def _settle(folder: RunFolder, kept: Path, *last: rows.Row) -> Ledger | None:
    """Write down how it ended, and what the wall time went to; a store that is away leaves the rows in `kept`."""
    found: list[Ledger] = []
    last = tuple({"time": rows.stamp(), **row} for row in last)
    with contextlib.suppress(OSError):  # a full disk, perhaps: what went wrong first is told all the same
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text("".join(map(rows.line, last)))

    def write() -> None:
        with contextlib.suppress(StorageError):
            rows.append(folder, *last)
            kept.unlink(missing_ok=True)
            record = rows.read(folder)
            found.append(ledger(record.events, record.metrics))
            folder.storage.write(folder.ledger, json.dumps(found[0].as_json(), indent=1).encode())

    # A thread, for a store that is away is tried again for a minute, and somebody waits to hear what happened.
    thread = threading.Thread(target=write, name="settle", daemon=True)
    thread.start()
    thread.join(SETTLE_S)
    return found[0] if found else None


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
        "baselines": None,
    }
    storage = then.storage.model_copy(update=places)
    device = "cuda" if profile.resources_per_worker.gpu else "cpu"
    asked = (profile.max_workers, profile.min_workers, device)
    if (then.layout.workers, then.layout.min_workers, then.layout.device) == asked:
        patience = ("max_failures", "max_preemptions", "hang_timeout_s")
        return then.model_copy(update={"storage": storage} | {name: getattr(profile, name) for name in patience})
    job = parse_job(folder.storage.read(folder.job), folder.job)
    now = plan(job, profile, gather(job, profile, folder.storage), then.run_id)
    if now.trajectory_digest != then.trajectory_digest:
        what = (
            f"cannot move to {profile.max_workers} {device} workers: model, data or dtype would not be what they were"
        )
        fix = f"resume it on {then.layout.workers} {then.layout.device} workers"
        raise SpecError(Problem(folder.id, what, fix))
    return now.model_copy(update={"trajectory": then.trajectory, "storage": storage})
