"""A run or a sweep seen from any machine: its folder in the store, its jobs on a cluster, either of which may be out of sight."""

from dataclasses import dataclass

from shoal import lease
from shoal.errors import ClusterError, Problem, StorageError, together
from shoal.record.rows import Row, last_end, read
from shoal.runs import PLAN, SUBMISSION, SWEEP_PLAN, RunFolder, find_id, holding, is_behind, made_order, names_run
from shoal.storage import Storage, absolute, join
from shoal.submit.dashboard import Job
from shoal.submit.jobs import Jobs
from shoal.submit.submission import RUN, SWEEP


@dataclass(frozen=True)
class Found:
    """One run, or one sweep: both have a lease, events and the job file under the same names."""

    id: str
    folder: RunFolder
    is_sweep: bool
    in_sight: bool
    """Whether the store can be read from here."""
    jobs: list[Job]
    """Its submissions that the cluster remembers, oldest first."""

    @property
    def job(self) -> Job | None:
        """The newest."""
        return self.jobs[-1] if self.jobs else None

    @property
    def is_driven(self) -> bool:
        """Whether a driver holds it, as far as the store says."""
        return self.in_sight and lease.is_held(self.folder)

    @property
    def has_begun(self) -> bool:
        return has_begun(self.folder)

    @property
    def is_finished(self) -> bool:
        if not self.is_sweep:
            return self.folder.storage.exists(self.folder.result)
        end = last_end(read(self.folder).events)
        return end is not None and end["state"] == "finished"

    @property
    def has_saved(self) -> bool:
        """Whether there is anything that a resume would not do again, as far as one can see from here."""
        if self.is_sweep or not self.in_sight:
            return self.in_sight and self.has_begun
        return bool(self.folder.storage.list(f"{self.folder.checkpoints}*/manifest.json"))

    def rows(self) -> list[Row]:
        """What it wrote down, in the order of time."""
        record = read(self.folder)
        return sorted([*record.events, *record.metrics], key=lambda row: row.get("time", ""))


def has_begun(folder: RunFolder) -> bool:
    """Whether its driver has made a plan. Raises: StorageError."""
    return any(folder.storage.exists(join(folder.url, name)) for name in (PLAN, SWEEP_PLAN))


def find(beginning: str, storage: Storage, runs_url: str, dashboard: Jobs | None) -> Found:
    """The one run or sweep whose id begins so, in the store or on the cluster.

    Raises: SpecError with the candidates; what the store or the cluster refuses, when neither can be asked.
    """
    jobs: list[Job] = []
    told: ClusterError | StorageError | None = None
    try:
        jobs = dashboard.jobs() if dashboard else []
    except ClusterError as error:
        told = error
    sweeps = {job.metadata[RUN] for job in jobs if SWEEP in job.metadata}
    try:
        begun = _with(SWEEP_PLAN, storage, runs_url)
        stored = begun | _with(PLAN, storage, runs_url) | _with(SUBMISSION, storage, runs_url)
        sweeps |= begun
        in_sight = True
    except StorageError as error:
        if told is not None:
            raise together([told, error]) from error
        if dashboard is None:
            raise
        stored, in_sight = set[str](), False
    known = stored | {job.metadata[RUN] for job in jobs if RUN in job.metadata}
    ids = sorted((one for one in known if not is_behind(one, beginning, sweeps)), key=made_order)
    if not ids and told is not None:
        raise told
    id = find_id(ids, beginning, runs_url, "run", "start one with `shoal run JOB`")
    folder = RunFolder(storage, join(absolute(runs_url), id))
    return Found(id, folder, id in sweeps, in_sight, [job for job in jobs if job.metadata.get(RUN) == id])


def _with(name: str, storage: Storage, runs_url: str) -> set[str]:
    """Ids of the folders that hold such a file."""
    return {id for url in holding(storage, runs_url, name) if names_run(id := url.rpartition("/")[2])}


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
