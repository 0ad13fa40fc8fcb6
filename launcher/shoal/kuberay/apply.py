"""A run's manifests brought into a cluster, all or nothing, and taken away again."""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy

from shoal.errors import ClusterError, Problem
from shoal.kube.names import PART_OF, RUN_ID, Manifest
from shoal.kuberay.api import Api
from shoal.kuberay.words import ENDED

INSTANCE = "app.kubernetes.io/instance"
BESIDE = ("PodDisruptionBudget", "ConfigMap", "NetworkPolicy")
"""Kinds of what stands beside a RayJob, and is of that run alone."""
GONE_S = 300.0
"""How long a RayJob of an earlier try may take to go: its pods have their grace period."""
POLL_S = 1.0


def apply(api: Api, manifests: Sequence[Manifest], tell: Callable[[str], None]) -> Manifest:
    """Makes everything, the RayJob last, which owns what stands beside it from then on; returns the RayJob as it was made.

    A dry run of all goes first. What this call made is taken away again when the rest cannot be made.
    Raises: ClusterError with everything that is refused.
    """
    *around, job = manifests
    known = _known(api, manifests)
    _require(api, manifests, known)
    if known[-1] is not None:
        tell("an earlier try of it has ended; what is left of that is taken away first")
        clear(api, job["metadata"]["name"])
        known = [None if one["kind"] in (*BESIDE, "RayJob") else was for one, was in zip(manifests, known, strict=True)]
    made: list[Manifest] = []
    try:
        for one, was in zip(around, known[:-1], strict=True):
            api.apply(one)
            if was is None:
                made.append(one)
        done = api.apply(job)
        made.append(job)
        _own(api, around, done)
    except (ClusterError, KeyboardInterrupt) as left:
        if isinstance(left, KeyboardInterrupt):
            made.append(job)  # the server may have made it, and we not have heard
        for one in reversed(made):
            _take_away(api, one)
        raise
    return done


def clear(api: Api, name: str) -> None:
    """Take away a RayJob and what stands beside it, and wait until it is gone. Raises: ClusterError after GONE_S."""
    api.delete("RayJob", name)
    clear_beside(api, name, BESIDE)
    deadline = time.monotonic() + GONE_S
    while api.get("RayJob", name) is not None or any(_of_run(api, kind, name) for kind in BESIDE):
        if time.monotonic() > deadline:
            what = f"still there {GONE_S:.0f} s after it was deleted: something holds it (a finalizer)"
            raise ClusterError(Problem(f"RayJob {name}", what, "`kubectl describe rayjob` says what"))
        time.sleep(POLL_S)


def clear_beside(api: Api, name: str, kinds: Sequence[str]) -> list[str]:
    """Take away what stands beside a RayJob, found by its label. Returns kinds and names."""
    gone = []
    for kind in kinds:
        for one in _of_run(api, kind, name):
            if api.delete(kind, one["metadata"]["name"]):
                gone.append(f"{kind} {one['metadata']['name']}")
    return gone


def _of_run(api: Api, kind: str, name: str) -> list[Manifest]:
    return api.list(kind, labelSelector=f"{INSTANCE}={name},{_selector(PART_OF)}")


def _selector(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())


def _known(api: Api, manifests: Sequence[Manifest]) -> list[Manifest | None]:
    """What is there already, of each."""
    return [api.get(one["kind"], one["metadata"]["name"]) for one in manifests]


def _require(api: Api, manifests: Sequence[Manifest], known: Sequence[Manifest | None]) -> None:
    """Refuses what is somebody else's or runs, and then whatever a dry run of all is refused for."""
    problems = [
        problem
        for one, was in zip(manifests, known, strict=True)
        if was is not None and (problem := _taken(one, was))
    ]  # fmt: skip
    if problems:
        raise ClusterError(*problems)
    replaced = known[-1] is not None
    refused: list[Problem | str] = []
    for one, was in zip(manifests, known, strict=True):
        if replaced and was is not None and one["kind"] in (*BESIDE, "RayJob"):
            continue  # it goes first, and another takes its place
        try:
            api.apply(one, dry_run=True)
        except ClusterError as error:
            if type(error) is not ClusterError:
                raise  # nobody answers: the others would say so again
            refused += error.problems
    if refused:
        raise ClusterError(*dict.fromkeys(refused))


def _taken(one: Manifest, was: Manifest) -> Problem | None:
    about, kind = was["metadata"], one["kind"]
    where = f"{kind} {about['name']}"
    labels = about.get("labels") or {}
    ours = labels.items() >= PART_OF.items()
    if kind == "ServiceAccount":
        fix = "set kubernetes.service_account.create: false to use it as it is, or name another"
        return None if ours else Problem(where, "is there already, and is not Shoal's", fix)
    if not ours or labels.get(INSTANCE) != one["metadata"]["labels"][INSTANCE]:
        by = ", ".join(dict.fromkeys(entry["manager"] for entry in about.get("managedFields", []))) or "somebody else"
        return Problem(where, f"is there already, made by {by}", "give the run another id with --run-id")
    if kind != "RayJob":
        return None
    then = about.get("annotations", {}).get(RUN_ID)
    run_id = one["metadata"]["annotations"][RUN_ID]
    if then != run_id:
        return Problem(where, f"is of the run {then}", "give the run another id with --run-id")
    if (was.get("status") or {}).get("jobDeploymentStatus") not in ENDED:
        return Problem(run_id, f"runs already, as {where}", f"`shoal logs {run_id} --follow` shows it")
    return None


def _own(api: Api, around: Sequence[Manifest], job: Manifest) -> None:
    """Deleting the RayJob takes the rest with it, also when nobody of Shoal's is there any more."""
    about = {"apiVersion": job["apiVersion"], "kind": "RayJob"} | {key: job["metadata"][key] for key in ("name", "uid")}
    for one in around:
        if one["kind"] in BESIDE:
            owned = deepcopy(one)
            owned["metadata"]["ownerReferences"] = [about]
            api.apply(owned)


def _take_away(api: Api, one: Manifest) -> None:
    try:
        api.delete(one["kind"], one["metadata"]["name"])
    except ClusterError:
        return  # what went wrong first is told
