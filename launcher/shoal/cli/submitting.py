"""To a cluster seen from outside, through Ray's job API: plan here, look at the cluster, hand the work over."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from shoal.cli.leaving import Leaving
from shoal.cli.work import Work
from shoal.display import Display, size
from shoal.errors import SpecError
from shoal.spec.cluster import ClusterProfile
from shoal.submit.dashboard import Dashboard

if TYPE_CHECKING:
    from shoal.spec.job import JobSpec
    from shoal.storage import Storage
    from shoal.submit.place import Place
    from shoal.submit.submission import Submitted


class Submitting:
    def __init__(self, profile: ClusterProfile) -> None:
        self.profile = profile
        self.jobs = Dashboard(profile.address, profile.token)

    def hand_over(
        self,
        work: Work,
        job: "JobSpec | None",
        storage: "Storage",
        display: Display,
        flags: Sequence[str],
        leaving: Leaving,
    ) -> "tuple[Submitted, str]":
        """The work, handed over, and its folder; without a `job`, the run of that id goes on.

        The cluster is looked at while the plan is made.
        """
        from shoal.plan.places import problems
        from shoal.runs import RunFolder
        from shoal.storage import absolute, join
        from shoal.submit.package import package
        from shoal.submit.place import examined
        from shoal.submit.submission import as_json, request, submit
        from shoal.tune.space import trial_profile

        profile = self.profile
        if wrong := list(problems(profile)):
            raise SpecError(*wrong)
        folder = RunFolder(storage, join(absolute(profile.storage.runs), work.id))
        display.on_event({"kind": "phase", "phase": "planning", "detail": job.model.base if job else work.id})
        own = package()
        least = trial_profile(job.sweep, profile) if job and job.sweep else profile
        with ThreadPoolExecutor(1, thread_name_prefix="look") as pool:
            looking = pool.submit(examined, self.jobs, least, own, job.model.token if job else None)
            in_sight = work.plan(job, profile, storage, display)  # mistakes are told before anything is shipped
            place: Place = looking.result()
        display.on_event({"kind": "phase", "phase": "submitting", "detail": profile.address})
        wanted = request(profile, work.id, folder.url, job, place, own, *flags)
        leaving.watching = True  # it may be there from now on, whatever becomes of this process
        submitted = submit(self.jobs, work.id, wanted, place, own)
        if in_sight:
            storage.write(folder.submission, as_json(submitted))
        had = f"shoal {own.version} went along" if place.needs(own) else f"shoal {place.shoal} is there"
        sent = f"{size(sum(self.jobs.sent))} sent"
        display.on_event(
            {"kind": "note", "message": f"{work.id} is job {submitted.id} on {profile.address} ({had}, {sent})"}
        )
        return submitted, folder.url

    def clear_away(self, job_id: str, keep: bool) -> None:
        """Ray keeps its jobs, and nothing else was made."""
