"""What several verbs share: their options, the files they are given, the store they open."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from shoal.errors import SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from shoal.spec.cluster import ClusterProfile
    from shoal.spec.job import JobSpec
    from shoal.storage import Storage

Loaded = TypeVar("Loaded")

Job = Annotated[str, typer.Argument(metavar="JOB", help="The job file: what to learn.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or a beginning of it that no other run has.")]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="PROFILE",
        help="Where: a profile file, or `local` or `inline`. Default: $SHOAL_PROFILE, else cluster/local.yaml, else local.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Change one field of the job; may be given several times."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def checked_run_id(given: str | None) -> str | None:
    """What `--run-id` was given, looked at before anything else: an empty variable of a script is no id."""
    from shoal.runs import checked_id

    return None if given is None else checked_id(given)


def profile_name(on: str | None) -> str:
    if on is not None:
        return on
    here = Path("cluster/local.yaml")
    return os.environ.get("SHOAL_PROFILE") or (str(here) if here.exists() else "local")


def options_of(on: str | None) -> str:
    """What the next command needs as well, behind its words."""
    return f" --on {on}" if on else ""


def load_both(job: str, overrides: Sequence[str] | None, on: str | None) -> "tuple[JobSpec, ClusterProfile]":
    """Job and profile; SpecError with the mistakes of both."""
    from shoal.spec.load import load_job, load_profile

    mistakes: list[SpecError] = []
    loaded_job = _try(lambda: load_job(job, overrides or []), mistakes)
    profile = _try(lambda: load_profile(profile_name(on)), mistakes)
    if mistakes:
        raise SpecError(*(problem for mistake in mistakes for problem in mistake.problems))
    assert loaded_job and profile
    return loaded_job, profile


def _try(load: Callable[[], Loaded], mistakes: list[SpecError]) -> Loaded | None:
    try:
        return load()
    except SpecError as error:
        mistakes.append(error)
        return None


@contextmanager
def storage_of(profile: "ClusterProfile") -> "Iterator[Storage]":
    """The profile's storage, with the embedded server up for as long as the block lasts."""
    from shoal.storage import Storage
    from shoal.store import serving

    with serving(profile.storage.s3):
        yield Storage(profile.storage.s3)


def console(json: bool = False) -> "Console":
    """Where a person reads: stdout, or stderr when stdout is for a script."""
    from rich.console import Console

    return Console(stderr=json, highlight=False)
