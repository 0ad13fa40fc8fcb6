"""To Kubernetes: plan here, apply what is rendered, clear away in the end."""

import getpass
import signal
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from shoal.cli.leaving import Leaving
from shoal.cli.work import Work
from shoal.display import Display
from shoal.errors import ClusterError
from shoal.spec.cluster import ClusterProfile

if TYPE_CHECKING:
    from shoal.kube.names import Manifest
    from shoal.kuberay.watch import RayJobs
    from shoal.spec.job import JobSpec
    from shoal.storage import Storage
    from shoal.submit.submission import Submitted

FINISHED_WITH = ("PodDisruptionBudget", "ConfigMap")
"""What an ended run needs no more. Its NetworkPolicy guards the pods while they are kept, and goes with the RayJob."""

ASKED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit statuses of a driver that was asked to leave."""


class Applying:
    def __init__(self, profile: ClusterProfile) -> None:
        from shoal.kuberay.watch import RayJobs

        self.profile = profile
        self.jobs = RayJobs.of(profile)

    def hand_over(
        self,
        work: Work,
        job: "JobSpec | None",
        storage: "Storage",
        display: Display,
        flags: Sequence[str],
        leaving: Leaving,
    ) -> "tuple[Submitted, str]":
        """The work, applied, and its folder. Mistakes are told before anything is sent, refusals before anything is made."""
        from shoal.kuberay.apply import apply
        from shoal.record.rows import stamp
        from shoal.runs import RunFolder
        from shoal.storage import absolute, join
        from shoal.submit.submission import Submitted, as_json

        assert job is not None, "each try is a cluster of its own, which is made from the job"
        manifests = _rendered(job, self.profile, work.id, flags)
        folder = RunFolder(storage, join(absolute(self.profile.storage.runs), work.id))
        display.on_event({"kind": "phase", "phase": "planning", "detail": job.model.base})
        in_sight = work.plan(job, self.profile, storage, display)
        display.on_event({"kind": "phase", "phase": "applying", "detail": self.jobs.address})

        def tell(message: str) -> None:
            display.on_event({"kind": "note", "message": message})

        made = apply(self.jobs.api, manifests, tell)
        leaving.watching = True
        name = made["metadata"]["name"]
        submitted = Submitted(name, self.jobs.address, f"{getpass.getuser()} on {socket.gethostname()}", stamp())
        if in_sight:
            storage.write(folder.submission, as_json(submitted))
        tell(f"{work.id} is RayJob {name} in {self.jobs.address}")
        return submitted, folder.url

    def clear_away(self, job_id: str, keep: bool) -> None:
        """After work that finished, or that never got its pods; everything is kept of work that failed."""
        try:
            _clear_away(self.jobs, job_id, self.profile, keep)
        except ClusterError as error:
            typer.echo(f"not cleared away: {error}", err=True)


def _rendered(job: "JobSpec", profile: ClusterProfile, run_id: str, flags: Sequence[str]) -> "list[Manifest]":
    """As `shoal render` has them, but that the driver tells its events for the display here."""
    from shoal.cli.render import files_here
    from shoal.kube.render import run as render

    manifests = render(job, profile, run_id, files_here(job))
    manifests[-1]["spec"]["entrypoint"] = " ".join([manifests[-1]["spec"]["entrypoint"], "--events", *flags])
    return manifests


def _clear_away(jobs: "RayJobs", name: str, profile: ClusterProfile, keep: bool) -> None:
    from shoal.kuberay.apply import clear, clear_beside

    namespace = jobs.api.namespace
    delete = f"kubectl -n {namespace} delete rayjob {name}"
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
