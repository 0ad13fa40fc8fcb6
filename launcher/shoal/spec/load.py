"""From a file to a spec: read, override, refuse credentials, validate; every mistake of the file in one answer."""

import math
import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from shoal.errors import Problem, SpecError
from shoal.spec import secrets
from shoal.spec.base import Frozen
from shoal.spec.cluster import ClusterProfile, S3Spec, StorageSpec
from shoal.spec.document import Document, leaves, override, parse
from shoal.spec.explain import problems
from shoal.spec.job import JobSpec
from shoal.spec.schema import MODELS, Kind
from shoal.spec.space import space_problems

EMBEDDED = StorageSpec(s3=S3Spec(server="embedded"))
BUILT_IN = {
    "local": ClusterProfile(kind="local", workers=2, storage=EMBEDDED),
    "inline": ClusterProfile(kind="inline", workers=1, storage=EMBEDDED),
}


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """The job at `path` with `a.b=value` overrides. Raises SpecError that names every mistake."""
    return parse_job(_read(path, "job"), str(path), overrides)


def require_same(run_id: str, then: Frozen, now: Frozen, told: str = "that run was made from another job") -> None:
    """SpecError that names every field in which a job, or a section of it, differs from what a run was made from."""
    before, after = _leaves(then), _leaves(now)
    differing = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    if differing:
        fix = "put these fields back, or give what is new an id of its own"
        raise SpecError(
            Problem(f"--run-id {run_id}", told, fix),
            *(Problem(name, f"{after.get(name)!r} now, {before.get(name)!r} then") for name in differing),
        )


def _leaves(spec: Frozen) -> dict[str, Any]:
    return {".".join(map(str, path)): value for path, value in leaves(spec.model_dump(mode="json"))}


def parse_job(text: str | bytes, source: str, overrides: Sequence[str] = ()) -> JobSpec:
    """The job in `text`; `source` names it in messages. Raises SpecError."""
    return cast(JobSpec, _validate(parse(text, source), "job", overrides))


def job_of(value: dict[str, Any], source: str) -> JobSpec:
    """The job that a mapping says; `source` names it in messages. Raises SpecError."""
    return cast(JobSpec, _validate(Document(source, value), "job"))


def load_profile(name_or_path: str | Path) -> ClusterProfile:
    """The profile in a file, or a built-in one by name: `local` (two workers) or `inline`. Raises SpecError."""
    name = str(name_or_path)
    if name in BUILT_IN:
        return BUILT_IN[name]
    return cast(ClusterProfile, _validate(parse(_read(name, "cluster"), name), "cluster"))


def _read(path: str | Path, kind: Kind) -> bytes:
    """The file's text; `env:NAME` is the text that a variable holds, which is how a run that is submitted has its files."""
    if not str(path).strip():
        where = {"job": "JOB", "cluster": "--on"}[kind]
        raise SpecError(Problem(where, "names no file", "give one: is a variable empty?"))
    name = str(path).removeprefix("env:")
    if name != str(path):
        if name not in os.environ:
            raise SpecError(Problem(str(path), f"the environment variable {name} is not set", "name a file"))
        return os.environ[name].encode()
    try:
        return Path(path).expanduser().read_bytes()
    except FileNotFoundError:
        raise SpecError(_missing(Path(path), kind)) from None
    except IsADirectoryError:
        raise SpecError(Problem(str(path), "is a folder", _yaml_files(Path(path)) or "name a file")) from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SpecError(Problem(str(path), f"cannot be read: {why.lower()}", "name a file that can be read")) from None


def _missing(path: Path, kind: Kind) -> Problem:
    """What to say of a file that is not there, with the nearest name in its folder."""
    what = {"job": "there is no such job file", "cluster": "there is no such profile"}[kind]
    folder = path.expanduser().parent
    if kind == "cluster" and (near := get_close_matches(str(path), BUILT_IN, 1, 0.6)):
        return Problem(str(path), what, f"did you mean `{near[0]}`?")
    named = "`local` and `inline` need no file" if kind == "cluster" else "`shoal init` writes one to start from"
    if not folder.is_dir():
        return Problem(str(path), what, f"the folder {path.parent} is missing too; {named}")
    names = {file.stem: file.name for file in folder.iterdir() if file.suffix in (".yaml", ".yml", ".json")}
    if near := get_close_matches(path.stem, names, 1, 0.6):
        return Problem(str(path), what, f"did you mean {path.parent / names[near[0]]}?")
    files = _yaml_files(folder)
    if kind == "cluster" and files:
        return Problem(str(path), what, f"{files}; {named}")
    return Problem(str(path), what, files or named)


def _yaml_files(folder: Path) -> str:
    names = sorted(file.name for file in folder.expanduser().glob("*.yaml"))
    return f"in that folder: {', '.join(names[:8])}" + (", ..." if len(names) > 8 else "") if names else ""


def _validate(document: Document, kind: Kind, overrides: Sequence[str] = ()) -> Frozen:
    """The spec that the document says. Strict: a text is no number, `true` is no number, 1.5 is no whole number."""
    if other := _other_file(document, kind):
        raise SpecError(other)
    document, found = override(document, overrides)
    found += [*secrets.problems(document, kind), *_unbounded(document)]
    spaces = list(space_problems(document)) if kind == "job" else []
    found += [problem for _, problem in spaces]
    told_paths = [path for path, _ in spaces]
    try:
        spec = MODELS[kind].model_validate(document.value, strict=True)
    except ValidationError as error:
        told = {problem.where for problem in found}
        errors = [one for one in error.errors(include_url=False) if not _below(one["loc"], told_paths)]
        found += [problem for problem in problems(errors, document, kind) if problem.where not in told]
        raise SpecError(*found) from None
    if found:
        raise SpecError(*found)
    return spec


def _other_file(document: Document, kind: Kind) -> Problem | None:
    """What to say of a file that is something else altogether, rather than of each of its fields."""
    keys = document.value.keys()
    if "apiVersion" in keys:
        fix = "name the job and the profile that such manifests are rendered from, such as cluster/kuberay.yaml"
        return Problem(document.source, "is a Kubernetes manifest", fix)
    if {"cluster_name", "provider"} <= keys:
        fix = f"start the cluster with `ray up {document.source}`, then name a profile with its address: cluster/ray-submit.yaml"
        return Problem(document.source, "is a file of Ray's cluster launcher", fix)
    if kind == "cluster" and {"model", "data"} <= keys:
        return Problem(document.source, "is a job file, and --on names a cluster profile", "turn the two round")
    if kind == "job" and "kind" in keys and not {"model", "data"} & keys:
        return Problem(document.source, "is a cluster profile, and a job file is asked", "turn the two round")
    return None


def _below(path: tuple[str | int, ...], others: Sequence[tuple[str | int, ...]]) -> bool:
    return any(path[: len(other)] == other for other in others)


def _unbounded(document: Document) -> Iterator[Problem]:
    for path, value in leaves(document.value):
        if isinstance(value, float) and not math.isfinite(value):
            yield Problem(
                document.where(path), f"is {value}, which is no number to compute with", "give a finite number"
            )
