"""A job's data as far as they can be read: planned, prepared, and where the work on them is done."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.errors import DataError

if TYPE_CHECKING:
    from shoal.backends import Backend, OnEvent
    from shoal.data.prepared import Prepared
    from shoal.plan.types import DataPlan, Plan
    from shoal.spec.cluster import ClusterProfile
    from shoal.spec.job import JobSpec
    from shoal.storage import Storage

Map = Callable[[Callable[[Any], Iterator[Any]], Iterable[Any]], Iterator[Any]]

SMALL_BYTES = 16 << 20
"""Less than this is read faster here than a backend comes up."""


@dataclass(frozen=True)
class Read:
    """A job's data as they are read; `plan` and `prepared` are None where the rows cannot be encoded."""

    data: "DataPlan"
    folder: str
    """Of the prepared data."""
    rows: int
    """About how many."""
    plan: "Plan | None"
    prepared: "Prepared | None"
    refused: DataError | None
    """Why a run would not start."""


def read_job(
    job: "JobSpec", profile: "ClusterProfile", storage: "Storage", backend: "Backend", on_event: "OnEvent"
) -> Read:
    """Plans the job and prepares its data, as far as they can be."""
    from shoal.data.prepared import Prepared
    from shoal.data.summary import summary
    from shoal.facts.gather import gather
    from shoal.plan.planner import data_plan, plan
    from shoal.storage import absolute, join

    on_event({"kind": "phase", "phase": "planning", "detail": job.model.base})
    facts = gather(job, profile, storage)
    sources = (*facts.data.train, *facts.data.validation)
    if any(source.format == "preference" for source in sources):
        folder = join(absolute(profile.storage.prepared), facts.data.digest)
        rows = sum(source.rows for source in sources)
        return Read(data_plan(job, facts), folder, rows, None, None, None)
    made = plan(job, profile, facts, job.name)
    for note in made.notes:
        on_event({"kind": "note", "message": note})
    url, refused = made.storage.prepared, None
    if summary(storage, url) is None:
        backend.start()
    try:
        backend.prepare(made, storage, on_event)
    except DataError as error:
        if summary(storage, url) is None:
            raise
        refused = error  # too many rows are rejected: all the more to look at
    prepared = Prepared.open(storage, url, Path(absolute(made.storage.cache)), made.storage.cache_bytes)
    return Read(made.trajectory.data, url, prepared.summary.rows, made, prepared, refused)


def mapped(backend: "Backend") -> Map:
    """The backend's map, for work that is worth bringing it up."""

    def run(work: Callable[[Any], Iterator[Any]], todo: Iterable[Any]) -> Iterator[Any]:
        from shoal.backends.inline import Inline

        todo = list(todo)
        units = [getattr(one, "task", one).unit for one in todo]
        if sum(unit.bytes for unit in units) < SMALL_BYTES:
            return Inline().map(work, todo)
        backend.start()
        return backend.map(work, todo)

    return run
