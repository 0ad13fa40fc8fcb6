"""What a cluster has, and what of it a run cannot do with: asked before anything is shipped, judged by pure functions."""

import hashlib
import json
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.version import Version

from shoal.errors import ClusterError, Problem
from shoal.record.rows import Row
from shoal.spec.cluster import ClusterProfile
from shoal.submit import probe
from shoal.submit.dashboard import Dashboard, Node
from shoal.submit.package import Package

MIN_PYTHON = Version("3.11")
PROBE_S = 120.0
POLL_S = 0.2
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Place:
    """What the probe found on the head."""

    python: str
    executable: str
    """The interpreter of the cluster's Ray: the driver's."""
    shoal: str | None
    digest: str | None
    distributions: dict[str, str | None]
    unset: list[str]
    """Variables that the profile names and the head has not."""
    missing: list[str]
    """Files likewise."""
    unreached: list[str]
    """Hosts of the store that do not answer there."""

    def needs(self, package: Package) -> bool:
        """Whether this machine's Shoal is sent along."""
        return self.digest != package.digest


def asked(profile: ClusterProfile, package: Package, token: str | None) -> Row:
    """What the probe looks for; names and locations alone. `token` is the reference to the hub's."""
    keys = profile.storage.s3.credentials
    references = [keys.access_key_env, keys.secret_key_env, keys.session_token_env]
    variables = [name for name in references if name]
    files = [keys.file] if keys.file else []
    if token:
        kind, _, name = token.partition(":")
        (variables if kind == "env" else files).append(name)
    endpoint = urlsplit(profile.storage.s3.endpoint_url or "")
    hosts = [[endpoint.hostname, endpoint.port or PORTS.get(endpoint.scheme, 443)]] if endpoint.hostname else []
    names = [Requirement(one).name for one in package.requirements]
    return {"requirements": names, "variables": variables, "files": files, "hosts": hosts}


def look(dashboard: Dashboard, session: str, wanted: Row, cache: Path) -> Place:
    """Ask the head, once per cluster, its session and what is asked: a job of its own that takes no CPU.

    What was found wanting is not kept: somebody may have mended it.
    """
    key = json.dumps([dashboard.address, session, wanted, probe.__doc__], sort_keys=True)
    kept = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    if kept.exists():
        return Place(**json.loads(kept.read_text()))
    found = _ask(dashboard, wanted)
    if not (found.unset or found.missing or found.unreached or None in found.distributions.values()):
        cache.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(found)))
    return found


def _ask(dashboard: Dashboard, wanted: Row) -> Place:
    id = f"shoal-probe-{hashlib.sha256(f'{time.time_ns()}'.encode()).hexdigest()[:12]}"
    run = f"import os; exec(os.environ['{probe.SOURCE}'])"
    entrypoint = f"exec python3 -c {shlex.quote(run)} {shlex.quote(json.dumps(wanted))}"
    source = Path(probe.__file__).read_text()
    dashboard.submit(entrypoint, id, {"env_vars": {probe.SOURCE: source}}, {"shoal": "probe"})
    deadline = time.monotonic() + PROBE_S
    while (job := dashboard.job(id)) is None or not job.ended:
        if time.monotonic() > deadline:
            what = f"{dashboard.address} takes jobs, but began none within {PROBE_S:g} s"
            raise ClusterError(Problem("address", what, "`ray job list` and the head's load say why"))
        time.sleep(POLL_S)
    log = dashboard.log(id)
    lines = [line for line in log.splitlines() if line.startswith(probe.MARK)]
    if not lines:
        said = next((line for line in reversed(f"{log}\n{job.message}".splitlines()) if line.strip()), job.status)
        what = f"a first look at {dashboard.address} failed: {said.strip()[:300]}"
        raise ClusterError(
            Problem("address", what, f"`ray job logs {id}` says all; the head needs python3 on its PATH")
        )
    return Place(**json.loads(lines[-1].removeprefix(probe.MARK)))


def ray_problems(ray: str, package: Package) -> Iterator[Problem]:
    """A Ray that is too old, told before anything else is asked of it."""
    for one in map(Requirement, package.requirements):
        if one.name == "ray" and not one.specifier.contains(ray, prereleases=True):
            what = f"the cluster has Ray {ray}, and shoal {package.version} needs {one.specifier}"
            yield Problem("address", what, "start the cluster with a newer Ray, or use a shoal that fits it")


def place_problems(place: Place, package: Package, profile: ClusterProfile) -> Iterator[Problem]:
    """What would stop the driver, in the profile's words."""
    if Version(place.python) < MIN_PYTHON:
        fix = "start the cluster with a newer Python"
        yield Problem("address", f"the cluster has Python {place.python}, and shoal needs >={MIN_PYTHON}", fix)
    lacking, wrong = [], []
    for one in map(Requirement, package.requirements):
        version = place.distributions.get(one.name)
        if version is None:
            lacking.append(f"{one.name}{one.specifier}")
        elif not one.specifier.contains(version, prereleases=True):
            wrong.append(f"{one.name} {version} where {one.specifier} is needed")
    if lacking or wrong:
        has = f"shoal {place.shoal}" if place.shoal else "no shoal"
        found = "; ".join([*([f"not installed are {', '.join(lacking)}"] if lacking else []), *wrong])
        what = f"the cluster has {has}, and what shoal {package.version} needs is not there: {found}"
        fix = f"`pip install shoal=={package.version}` on every node, or in its image; shoal's own code is sent along"
        yield Problem("address", what, fix)
    for name in place.unset:
        what = f"the variable {name} is not set on the cluster's head"
        yield Problem(
            "storage.s3.credentials", what, "set it where `ray start` runs, on every node: keys are never sent"
        )
    for name in place.missing:
        yield Problem("storage.s3.credentials", f"{name} is not on the cluster's head", "put it there, on every node")
    for host in place.unreached:
        what = f"{profile.storage.s3.endpoint_url} does not answer the cluster's head ({host})"
        yield Problem("storage.s3.endpoint_url", what, "name the store as all nodes and this machine see it")


def room_problems(nodes: Sequence[Node], profile: ClusterProfile) -> Iterator[Problem]:
    """Workers that this cluster could not have even if nobody else were there."""
    wanted, count = profile.resources_per_worker, profile.min_workers
    types = sorted(
        {name.partition(":")[2] for node in nodes for name in node.resources if name.startswith("accelerator_type:")}
    )
    if wanted.accelerator_type and wanted.accelerator_type not in types:
        has = f"it has {', '.join(types)}" if types else "it has no GPUs that Ray knows the type of"
        what = f"{wanted.accelerator_type}, and no node of the cluster has that type: {has}"
        yield Problem("resources_per_worker.accelerator_type", what, "name one that is there, or join such nodes")
        return
    if wanted.gpu and not any(node.resources.get("GPU") for node in nodes):
        yield Problem(
            "resources_per_worker.gpu",
            f"{wanted.gpu:g}, and no node of the cluster has a GPU",
            "set 0 to train on cores",
        )
        return
    fits = [_fits(node, profile) for node in nodes]
    most = {
        "strict-pack": max(fits, default=0),
        "strict-spread": sum(1 for one in fits if one),
    }.get(profile.placement, sum(fits))
    if most < count:
        each = f"{wanted.cpu:g} CPU" + (f", {wanted.gpu:g} GPU" if wanted.gpu else "")
        what = f"{count}, and the cluster can never have more than {most} of {each} each ({profile.placement}): "
        what += "; ".join(_all_of(node) for node in nodes[:8]) or "it has no nodes"
        fix = "lower workers or resources_per_worker, or join more nodes"
        yield Problem("workers", what, fix)


def _fits(node: Node, profile: ClusterProfile) -> int:
    wanted = profile.resources_per_worker
    if wanted.accelerator_type and f"accelerator_type:{wanted.accelerator_type}" not in node.resources:
        return 0
    room = int(node.resources.get("CPU", 0) // wanted.cpu)
    return min(room, int(node.resources.get("GPU", 0) // wanted.gpu)) if wanted.gpu else room


def _all_of(node: Node) -> str:
    parts = [f"{node.resources[name]:g} {name}" for name in ("CPU", "GPU") if node.resources.get(name)]
    return f"{node.name} has {', '.join(parts) or 'no CPU'}"


def examined(dashboard: Dashboard, profile: ClusterProfile, package: Package, token: str | None) -> Place:
    """The cluster as it is. Raises: ClusterError with everything about it that the run cannot do with."""
    version = dashboard.version()
    old = list(ray_problems(version["ray_version"], package))
    if old:
        raise ClusterError(*old)
    room = [] if dashboard.grows() else list(room_problems(dashboard.nodes(), profile))
    if room:
        raise ClusterError(*room)
    cache = Path(profile.storage.cache).expanduser() / "clusters"
    wanted = asked(profile, package, token)
    place = look(dashboard, version["session_name"], wanted, cache)
    if problems := list(place_problems(place, package, profile)):
        raise ClusterError(*problems)
    return place
