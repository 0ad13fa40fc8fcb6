"""plan, run, resume: from a job file to a result."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import outside
from shoal.cli.common import (
    Job,
    Json,
    On,
    Run,
    Set,
    checked_run_id,
    console,
    load_both,
    options_of,
    profile_name,
    storage_of,
)
from shoal.errors import Problem, SpecError

if TYPE_CHECKING:
    import threading

    from shoal.backends import Backend, OnEvent
    from shoal.launch import Outcome
    from shoal.spec.cluster import ClusterProfile
    from shoal.storage import Storage

NOT_BETTER = 9
"""Exit status of --expect-improvement."""

RunId = Annotated[
    str | None,
    typer.Option(
        "--run-id",
        metavar="ID",
        help="Call the run so. Given once more, it goes on with that run, or says that it is finished.",
        callback=checked_run_id,
    ),
]
Expect = Annotated[
    bool,
    typer.Option(
        "--expect-improvement",
        help="Leave with status 9 unless the export's held-out loss is below the base model's.",
    ),
]
Events = Annotated[
    bool,
    typer.Option("--events", help="Print one JSON line per event, the last of kind `outcome`, and nothing else."),
]
Detach = Annotated[
    bool,
    typer.Option(
        "--detach", help="On a cluster that is given runs from outside: submit and leave; `shoal logs` shows it."
    ),
]

Keep = Annotated[
    bool,
    typer.Option(
        "--keep", help="On kuberay: take nothing away at the end, not even what a finished run needs no more."
    ),
]


def plan(job: Job, on: On = None, set_: Set = None, as_json: Json = False) -> None:
    """Say what a run would do, before anything is taken: steps, micro-batches, ZeRO stage, locations.

    Example:  shoal plan jobs/quickstart.yaml --on cluster/local.yaml --set train.batch_size=16
    """
    from shoal.launch import plan_job

    loaded, profile = load_both(job, set_, on)
    with storage_of(profile) as storage:
        made = plan_job(loaded, profile, storage)
    if as_json:
        typer.echo(made.model_dump_json(indent=1))
        return
    from shoal.plan.table import table

    console().print(table(made))


def run(
    job: Job,
    on: On = None,
    set_: Set = None,
    run_id: RunId = None,
    expect_improvement: Expect = False,
    detach: Detach = False,
    keep: Keep = False,
    events: Events = False,
    as_json: Json = False,
) -> None:
    """Train a job as a new run: prepare the data, train, export, compare the export with what was trained.

    Example:  shoal run jobs/quickstart.yaml --on cluster/local.yaml

    Ctrl-C or SIGTERM once finishes the step, saves a checkpoint and leaves; `shoal resume` goes on from there.
    With --run-id the very same command does, as often as a scheduler submits it.
    """
    from shoal import launch
    from shoal.runs import SWEEP_PLAN
    from shoal.storage import join

    loaded, profile = load_both(job, set_, on)
    if loaded.sweep is not None:
        fix = f"use  shoal sweep {job}  or train it once as it is written:  --set sweep=null"
        raise SpecError(Problem(job, "has a `sweep` section: it is trained many times", fix))
    if outside.is_outside(profile, detach, keep):
        outside.run(loaded, profile, on, run_id, _flags(expect_improvement), detach, keep, as_json)
        return

    def begin(storage: "Storage", backend: "Backend", on_event: "OnEvent", stop: "threading.Event") -> "Outcome":
        if run_id and storage.exists(join(profile.storage.runs, run_id, SWEEP_PLAN)):
            raise SpecError(Problem(f"--run-id {run_id}", "is a sweep, not a run", "give the run another id"))
        return launch.run(loaded, profile, storage, backend, on_event, stop, run_id)

    _train(profile, begin, on, expect_improvement, events, as_json)


def resume(
    run: Run,
    on: On = None,
    expect_improvement: Expect = False,
    detach: Detach = False,
    keep: Keep = False,
    events: Events = False,
    as_json: Json = False,
) -> None:
    """Go on with a run that was stopped or died, from its newest complete checkpoint.

    Example:  shoal resume quickstart-2026

    The losses are those of a run that never stopped, also on another number of workers.
    """
    from shoal import launch
    from shoal.spec.load import load_profile

    profile = load_profile(profile_name(on))
    if outside.is_outside(profile, detach, keep):
        outside.resume(run, False, profile, on, _flags(expect_improvement), detach, keep, as_json)
        return

    def begin(storage: "Storage", backend: "Backend", on_event: "OnEvent", stop: "threading.Event") -> "Outcome":
        return launch.resume(run, profile, storage, backend, on_event, stop)

    _train(profile, begin, on, expect_improvement, events, as_json)


def _flags(expect_improvement: bool) -> tuple[str, ...]:
    return ("--expect-improvement",) if expect_improvement else ()


def _train(
    profile: "ClusterProfile",
    begin: "Callable[[Storage, Backend, OnEvent, threading.Event], Outcome]",
    on: str | None,
    expect_improvement: bool,
    events: bool,
    as_json: bool,
) -> None:
    """Train under a display, with signals heard; print how it ended; leave with the status that says so."""
    from shoal import launch
    from shoal.cli.interrupts import Interrupts, driven
    from shoal.cli.relay import Relay, outcome_event
    from shoal.display import display_for, tell_ending

    out = console(as_json)
    display = Relay() if events else display_for(out)
    options = options_of(on)
    with Interrupts(display.on_event) as interrupts, closing(launch.backend_for(profile)) as backend:
        with driven(interrupts, "shoal resume", options), display:
            backend.start()  # comes up while the store does
            with storage_of(profile) as storage:
                outcome = begin(storage, backend, interrupts.on_event, interrupts.stop)
        result = outcome.result
        if events:
            display.on_event(outcome_event(outcome))
        elif as_json:
            book = None if outcome.ledger is None else outcome.ledger.as_json()
            body = {"run": outcome.folder.id, "folder": outcome.folder.url, **asdict(result), "ledger": book}
            typer.echo(json.dumps(body, indent=1))
        else:
            tell_ending(out, outcome.plan, result, options, outcome.ledger)
    if result.state != "finished":
        raise typer.Exit(interrupts.status)
    if expect_improvement and not _improved(result.base_loss, result.loss):
        told = (
            "no held-out loss was measured"
            if result.loss is None
            else "the held-out loss is not below the base model's"
        )
        typer.echo(f"--expect-improvement: {told}", err=True)
        raise typer.Exit(NOT_BETTER)


def _improved(before: float | None, after: float | None) -> bool:
    return before is not None and after is not None and after < before
