"""render: the Kubernetes manifests of a run, or of a standing cluster."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.common import Json, On, Set, load_both, profile_name
from shoal.cli.training import RunId
from shoal.errors import Problem, SpecError

if TYPE_CHECKING:
    from shoal.kube.names import Manifest
    from shoal.spec.job import JobSpec


def render(
    job: Annotated[str | None, typer.Argument(metavar="JOB", help="The job file: what to learn.")] = None,
    on: On = None,
    set_: Set = None,
    run_id: RunId = None,
    pool: Annotated[
        bool, typer.Option("--pool", help="Render a standing cluster (RayCluster), which is of no job.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", metavar="FOLDER", help="Write one file each, and a kustomization.yaml, instead of printing."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the Kubernetes manifests of a run, for the KubeRay operator. Applies nothing, and asks no store or cluster.

    Example:  shoal render jobs/sft-lora.yaml --on cluster/kuberay.yaml | kubectl apply -f -

    The job and the profile decide everything that is rendered; whether data and model are there is `shoal plan`'s matter.
    """
    from shoal.kube.render import to_list, to_yaml

    _require_one(job, pool, set_, run_id)
    if out is not None and not out.strip():
        raise SpecError(Problem("--out", "names no folder", "give one, or leave it out to print them"))
    made = _pool(on) if job is None else _run(job, on, set_, run_id)
    if out is not None:
        written = _write(made, Path(out))
        typer.echo(json.dumps(written, indent=1) if as_json else f"{out}: {', '.join(written)}")
    else:
        typer.echo(json.dumps(to_list(made), indent=1) if as_json else to_yaml(made).rstrip())


def _require_one(job: str | None, pool: bool, set_: list[str] | None, run_id: str | None) -> None:
    if job is None and not pool:
        raise SpecError(Problem("JOB", "is missing", "name a job file, or render a standing cluster with --pool"))
    if pool and job is not None:
        raise SpecError(Problem("--pool", f"renders a cluster, and {job} a run", "take one of the two out"))
    if pool and (set_ or run_id):
        raise SpecError(Problem("--pool", "has no job to change or to name", "take --set and --run-id out"))


def _pool(on: str | None) -> "list[Manifest]":
    from shoal.kube.render import pool
    from shoal.spec.load import load_profile

    return pool(load_profile(profile_name(on)))


def _run(job: str, on: str | None, set_: list[str] | None, run_id: str | None) -> "list[Manifest]":
    from shoal.kube.render import run
    from shoal.runs import new_id
    from shoal.tune.checks import place_problems

    loaded, profile = load_both(job, set_, on)
    if loaded.sweep and (wrong := list(place_problems(loaded.sweep, profile))):
        raise SpecError(*wrong)
    named = run_id or new_id(loaded.name)
    return run(loaded, profile, named, files_here(loaded))


def files_here(job: "JobSpec") -> frozenset[str]:
    """Names in the job that are files of this machine: models/mine may be a folder here, or the hub's."""
    base = job.model.base
    return frozenset({base} if "://" not in base and Path(base).expanduser().exists() else ())


def _write(made: "list[Manifest]", folder: Path) -> list[str]:
    """Returns the names of the files."""
    from shoal.kube.render import to_files

    files = to_files(made)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise SpecError(Problem(str(folder), f"cannot be written: {error.strerror}", "name another folder")) from None
    return list(files)
