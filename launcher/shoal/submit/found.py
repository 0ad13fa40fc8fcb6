"""A run seen from any machine: its folder in the store, its jobs on a cluster, either of which may be out of sight."""

import json
from dataclasses import dataclass

from shoal import lease
from shoal.errors import ClusterError, Problem, StorageError
from shoal.record.rows import Row, read
from shoal.runs import RunFolder, find_id, made_order
from shoal.storage import Storage, absolute, join
from shoal.submit.dashboard import Job
from shoal.submit.jobs import Jobs
from shoal.submit.submission import RUN


@dataclass(frozen=True)
class Found:
    """One run."""

    id: str
    folder: RunFolder
    in_store: bool
    """Whether anything of it can be read from here."""
    jobs: list[Job]
    """Its submissions that the cluster remembers, oldest first."""

    @property
    def job(self) -> Job | None:
        """The newest."""
        return self.jobs[-1] if self.jobs else None

    @property
    def is_driven(self) -> bool:
        """Whether a driver holds it, as far as the store says."""
        return self.in_store and lease.is_held(self.folder)

    def rows(self) -> list[Row]:
        """What it wrote down, in the order of time."""
        record = read(self.folder)
        return sorted([*record.events, *record.metrics], key=lambda row: row.get("time", ""))

    def result(self) -> Row | None:
        """How it finished; None while it has not."""
        storage = self.folder.storage
        return json.loads(storage.read(self.folder.result)) if storage.exists(self.folder.result) else None


def submission_url(folder: RunFolder) -> str:
    """Who drives it: there before the plan is."""
    return join(folder.url, "submission.json")


def submitted_ids(storage: Storage, runs_url: str) -> list[str]:
    """Runs that were handed to a cluster, whether they have begun there or not."""
    return [one.url.split("/")[-2] for one in storage.list(join(absolute(runs_url), "*", "submission.json"))]


def find(beginning: str, storage: Storage, runs_url: str, dashboard: Jobs | None) -> Found:
    """The one run whose id begins so, in the store or on the cluster.

    Raises: SpecError with the candidates; what the store or the cluster refuses, when neither can be asked.
    """
    jobs: list[Job] = []
    told: ClusterError | StorageError | None = None
    try:
        jobs = dashboard.jobs() if dashboard else []
    except ClusterError as error:
        told = error
    try:
        begun = storage.list(join(absolute(runs_url), "*", "plan.json"))
        stored = {one.url.split("/")[-2] for one in begun} | set(submitted_ids(storage, runs_url))
    except StorageError:
        if dashboard is None or told is not None:
            raise
        stored = set()
    ids = sorted(stored | {job.metadata[RUN] for job in jobs if RUN in job.metadata}, key=made_order)
    if not ids and told is not None:
        raise told
    id = find_id(ids, beginning, runs_url, "run", "start one with `shoal run JOB`")
    folder = RunFolder(storage, join(absolute(runs_url), id))
    return Found(id, folder, id in stored, [job for job in jobs if job.metadata.get(RUN) == id])


def ask_to_stop(found: Found, dashboard: Jobs | None, by: str, now: bool) -> str:
    """Ask whoever drives the run to save and leave; what was done, in words. Raises: ClusterError when nobody does.

    A driver that holds the run finds a mark beside its lease, and has all the time it needs. One that is still preparing
    has nothing to save: Ray sends it SIGTERM. `now` is SIGTERM in either case, which to a driver that was asked before
    means at once.
    """
    driven, job = found.is_driven, found.job
    runs = job is not None and not job.ended
    if driven and not (now and runs):
        if job is not None and runs and dashboard is not None:
            dashboard.hold(job.id)
        lease.ask_to_leave(found.folder, by)
        return "it was asked to finish its step, save and leave"
    if job is not None and runs and dashboard is not None:
        dashboard.stop(job.id)
        return "its driver was sent SIGTERM"
    raise ClusterError(Problem(found.id, "is not running: nobody is there to stop", "`shoal runs` says how runs stand"))
