"""A run or a sweep handed to a cluster: its job and its profile travel as two small variables, Shoal itself only where it
is missing.

What starts there is `shoal run` or `shoal sweep run` as anybody would type it on the head: `kind: ray`, `address: auto`.
Nothing of this machine travels along: no working directory, no value of a variable, no key.
"""

import getpass
import json
import shlex
import socket
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from shoal.errors import ClusterError, Problem
from shoal.record.rows import stamp
from shoal.spec.cluster import ClusterProfile
from shoal.spec.job import JobSpec
from shoal.submit.dashboard import Dashboard, Job
from shoal.submit.package import Package
from shoal.submit.place import Place

JOB, PROFILE = "SHOAL_JOB", "SHOAL_CLUSTER"
"""Variables that the job file and the profile come in."""
RUN = "shoal_run"
"""The id of a run, or of a sweep, in a job's metadata."""
SWEEP = "shoal_sweep"
"""In a job's metadata as well, of a sweep."""
STOP_WAIT_S = 600
"""How long Ray waits for a driver that it has sent SIGTERM, rather than its 3 s: time to finish a step and save."""


@dataclass(frozen=True)
class Submitted:
    """Who drives a run, as submission.json in its folder says."""

    id: str
    """Ray's submission id: the run's own; that of a resume has a number behind it."""
    address: str
    by: str
    at: str


def profile_there(profile: ClusterProfile) -> str:
    """The profile that the driver gets: the same, from inside."""
    body = profile.model_dump(mode="json", exclude_unset=True)
    body.pop("token", None)
    return yaml.safe_dump({**body, "address": "auto"}, sort_keys=False)


def job_text(job: JobSpec) -> str:
    """The job with its overrides applied."""
    return yaml.safe_dump(job.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)


def request(
    profile: ClusterProfile, run_id: str, folder: str, job: JobSpec | None, place: Place, package: Package, *flags: str
) -> dict[str, Any]:
    """Entrypoint, environment and metadata; without a `job`, the run of that id goes on. Pure."""
    variables = {PROFILE: profile_there(profile), "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    metadata = {RUN: run_id, "folder": folder}
    words = ["resume", run_id]
    if job is not None:
        words = ["run", f"env:{JOB}", "--run-id", run_id]
        variables[JOB] = job_text(job)
        if job.sweep is not None:
            words, metadata[SWEEP] = ["sweep", *words], "yes"
    command = [place.executable, "-m", "shoal", *words, "--on", f"env:{PROFILE}", "--events", *flags]
    environment: dict[str, Any] = {"env_vars": variables}
    if place.needs(package):
        environment["py_modules"] = [package.uri]
    return {"entrypoint": f"exec {shlex.join(command)}", "runtime_env": environment, "metadata": metadata}


def jobs_of(dashboard: Dashboard, run_id: str) -> list[Job]:
    """The run's submissions that the cluster remembers, oldest first."""
    return [job for job in dashboard.jobs() if job.metadata.get(RUN) == run_id]


def submit(dashboard: Dashboard, run_id: str, wanted: dict[str, Any], place: Place, package: Package) -> Submitted:
    """Hands the run over. Raises: ClusterError when it is driven there already."""
    before = jobs_of(dashboard, run_id)
    if before and not before[-1].ended:
        what = f"runs already on {dashboard.address}, as job {before[-1].id}"
        raise ClusterError(Problem(run_id, what, f"`shoal logs {run_id} --follow` shows it"))
    id = f"{run_id}.{len(before) + 1}" if before else run_id
    if place.needs(package) and not dashboard.has_package(package.name):
        dashboard.put_package(package.name, package.data)
    dashboard.submit(wanted["entrypoint"], id, wanted["runtime_env"], wanted["metadata"])
    return Submitted(id, dashboard.address, f"{getpass.getuser()} on {socket.gethostname()}", stamp())


def as_json(submitted: Submitted) -> bytes:
    return json.dumps(asdict(submitted), indent=1).encode()
