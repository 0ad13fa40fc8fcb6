"""doctor: what is wrong with a place before a run, and what became of a run after it."""

import json
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.common import Json, On, console, options_of, profile_name, storage_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from shoal.doctor.judge import Finding
    from shoal.doctor.verdict import Verdict
    from shoal.spec.cluster import ClusterProfile

SICK = 1
"""Exit status when there is a problem."""
COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}

OneRun = Annotated[
    str | None,
    typer.Argument(metavar="RUN", help="A run's id or a beginning of it: what became of it. Without one: the place."),
]


def doctor(run: OneRun = None, on: On = None, as_json: Json = False) -> None:
    """Before a run, look for what is wrong with its place; after one, say what became of it and what to do.

    Example:  shoal doctor --on cluster/local.yaml     shoal doctor quickstart-2026

    Without RUN every node of the profile is asked for its GPUs, drivers and versions, its clock, memory, disks and limits,
    for names and the object store as it sees them, and all nodes together for the speed of an all-reduce: half a
    minute. With RUN the run's folder alone is read. Leaves with status 1 when something is wrong.
    """
    from shoal.spec.load import load_profile

    profile = load_profile(profile_name(on))
    if run is None:
        out = console(as_json)
        findings = _place(profile, out)
        if as_json:
            typer.echo(json.dumps([one.as_json() for one in findings], indent=1))
        else:
            for one in findings:
                out.print(_line(one), soft_wrap=True)
        well = all(one.state != "problem" for one in findings)
    else:
        answer = _run(profile, run, options_of(on))
        if as_json:
            typer.echo(json.dumps({"run": answer[0], **answer[1].as_json()}, indent=1))
        else:
            _tell(console(), *answer)
        well = answer[1].is_well
    if not well:
        raise typer.Exit(SICK)


def _run(profile: "ClusterProfile", run: str, options: str) -> "tuple[str, Verdict]":
    from shoal.doctor.evidence import evidence
    from shoal.doctor.verdict import verdict
    from shoal.runs import find_run

    with storage_of(profile) as storage:
        folder = find_run(storage, profile.storage.runs, run)
        return folder.id, verdict(evidence(folder), options)


def _tell(out: "Console", run: str, answer: "Verdict") -> None:
    from rich.text import Text

    out.print(Text.assemble((run, "bold"), "  ", (answer.says, "green" if answer.is_well else "red")), soft_wrap=True)
    for line in answer.evidence:
        out.print(Text(f"  {line}"), soft_wrap=True)
    for line in answer.do:
        out.print(Text.assemble(("  -> ", "bold"), line), soft_wrap=True)


def _place(profile: "ClusterProfile", out: "Console") -> "list[Finding]":
    """Looks at every node; whatever keeps it from that is a finding as well."""
    from shoal import launch
    from shoal.doctor.judge import judge
    from shoal.doctor.look import look, unseen
    from shoal.errors import ShoalError

    refused: tuple[str, ...] = ()
    with out.status("starting") as status, closing(launch.backend_for(profile)) as backend:
        try:
            backend.start()  # comes up while the store does
            with storage_of(profile):
                return judge(look(profile, backend, status.update))
        except ShoalError as error:
            refused = tuple(map(str, error.problems))
    return judge(unseen(profile, refused))


def _line(finding: "Finding") -> "Text":
    from rich.text import Text

    parts = [(f"{finding.state:<8}", COLOURS[finding.state]), (f"{finding.check:<12}", "dim"), finding.says]
    return Text.assemble(*parts, (f"\n{'':<20}-> {finding.do}", "bold") if finding.do else "")
