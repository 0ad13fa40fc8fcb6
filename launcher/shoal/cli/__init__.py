"""The verbs: parse, call, print. Everything heavy is imported inside the verb that needs it."""

import os
import sys
import traceback
from datetime import datetime
from pathlib import Path

import typer

from shoal.cli import data, doctor, following, render, report, results, runs, start, store, sweep, training
from shoal.errors import ShoalError
from shoal.spec.cluster import StorageSpec

app = typer.Typer(
    name="shoal",
    help="Fine-tune transformer models on Ray from one job file.\n\n"
    "\b\nA first look:\n"
    "  shoal init job.yaml\n"
    "  shoal check job.yaml --show 3\n"
    "  shoal plan job.yaml\n"
    "  shoal run job.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(short_help="Write a job file to start from.")(start.init)
app.command(short_help="Survey the data as training would read them.")(data.check)
app.command(short_help="Prepare the data ahead of a run; write a cleaned copy of them.")(data.prepare)
app.command(short_help="Say what a run would do, before anything is taken.")(training.plan)
app.command(short_help="Train a job as a new run.")(training.run)
app.command(short_help="Go on with a run that was stopped or died.")(training.resume)
app.command(short_help="Show what a run said; watch it, wherever it runs.")(following.logs)
app.command(short_help="Let a run save and leave, wherever it runs.")(following.stop)
app.command(short_help="Print a run's Kubernetes manifests.")(render.render)
app.add_typer(sweep.app, name="sweep", short_help="Train a job many times, and take the best: run, resume, show, best.")
app.command(short_help="List runs, and clear away old ones.")(runs.runs)
app.command(short_help="One run on one screen: losses, speed, where its time went.")(report.report)
app.command(short_help="Say what is wrong with a place, or what became of a run.")(doctor.doctor)
app.command(short_help="Talk to a result, the base model beside it if you like.")(results.chat)
app.command(short_help="Say where an export lies; merge an adapter into its base.")(results.export)
app.add_typer(store.app, name="store", short_help="Look into the object store: ls, put, get, rm.")
app.command(short_help="Print the JSON Schema of the files, for editors.")(start.schema)


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    if version:
        from shoal import __version__

        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """The console entry point: 0 when all is well, an error's own status, 1 for a bug of ours.

    A signal that ended the command is told as shells do: 130 for Ctrl-C, 143 for SIGTERM.
    """
    status = _status()
    sys.stdout.flush()
    sys.stderr.flush()
    if "ray" in sys.modules:
        # Everything of ours is closed by now; a Ray that is still up dies with this process. An orderly way out would
        # wait for its thread, which may still be starting, or blocked in a run that was left by force.
        os._exit(status)
    sys.exit(status)


def _status() -> int:
    try:
        app()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0 if done.code is None else 1
    except ShoalError as error:
        for problem in error.problems:
            typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
            typer.echo(str(problem), err=True)
        return error.exit_status
    except Exception as error:  # noqa: BLE001  the process's edge
        _tell_of_bug(error)
        return 1
    return 0


def _tell_of_bug(error: Exception) -> None:
    trace = "".join(traceback.format_exception(error))
    if os.environ.get("SHOAL_DEBUG") == "1":
        typer.echo(trace, err=True)
    folder = Path(StorageSpec().cache).expanduser() / "bugs"
    path = folder / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(trace)
        where = f"the traceback is in {path}"
    except OSError as refused:
        where = f"its traceback could not be written ({refused}); SHOAL_DEBUG=1 shows it"
    what = (str(error).strip().splitlines() or [""])[0]
    typer.echo(f"this is a bug of Shoal: {type(error).__name__}: {what[:200]}; {where}", err=True)
