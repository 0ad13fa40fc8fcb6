"""sweep: train a job many times, look at the trials, take the best."""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from shoal.cli import outside, sweeping
from shoal.cli.common import (
    Job,
    Json,
    On,
    Set,
    checked_run_id,
    console,
    load_both,
    options_of,
    profile_name,
    storage_of,
)
from shoal.cli.training import Detach, Events, Keep
from shoal.errors import Problem, SpecError

Sweep = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep's id, or a beginning of it that no other has.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the page of the sweep to this file.")]
SweepId = Annotated[
    str | None,
    typer.Option(
        "--run-id",
        metavar="ID",
        help="Call the sweep so. Given once more, it goes on with that sweep, or says that it is finished.",
        callback=checked_run_id,
    ),
]


ELSEWHERE = {
    "stop": "shoal stop SWEEP", "logs": "shoal logs SWEEP", "runs": "shoal runs", "list": "shoal runs", "ls": "shoal runs",
    "report": "shoal sweep show SWEEP", "rm": "shoal runs --prune", "export": "shoal sweep best SWEEP --export FOLDER",
}  # fmt: skip
"""Words that somebody may expect here, and what does it."""


class JobFirst(TyperGroup):
    """`shoal sweep JOB` is `shoal sweep run JOB`: a first word that is no verb is the job file."""

    def parse_args(self, ctx, args):
        if args and args[0] not in (*self.commands, "-h", "--help"):
            _require_job(args[0], list(self.commands))
            args = ["run", *args]
        return super().parse_args(ctx, args)


def _require_job(word: str, verbs: list[str]) -> None:
    """SpecError for a word that is a verb elsewhere, or nearly one of these, rather than a file."""
    if Path(word).exists():
        return
    near = get_close_matches(word, verbs, 1, 0.7)
    if word in ELSEWHERE or near:
        fix = f"use  {ELSEWHERE[word]}" if word in ELSEWHERE else f"did you mean  shoal sweep {near[0]}?"
        raise SpecError(Problem(f"shoal sweep {word}", "is no command, and no job file is called so", fix))


app = typer.Typer(
    cls=JobFirst,
    help="Train a job many times with other values of some fields, and take the best.\n\n"
    "\b\n"
    "  shoal sweep JOB --dry-run      what it would take\n"
    "  shoal sweep JOB                run it: Ctrl-C leaves in order\n"
    "  shoal sweep resume SWEEP       go on with it\n"
    "  shoal sweep show SWEEP         its trials, best first\n"
    "  shoal sweep best SWEEP         the best one's job file and model",
    no_args_is_help=True,
    rich_markup_mode=None,
    subcommand_metavar="JOB | COMMAND [ARGS]...",
)


@app.command(short_help="Begin a sweep; the word itself may be left out.")
def run(
    job: Job,
    on: On = None,
    set_: Set = None,
    run_id: SweepId = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, and every reason why it would not work.")
    ] = False,
    detach: Detach = False,
    keep: Keep = False,
    events: Events = False,
    as_json: Json = False,
) -> None:
    """Run the sweep that a job file describes.

    Example:  shoal sweep jobs/sweep-lr.yaml --on cluster/local.yaml

    Every trial is a run of its own. Ctrl-C or SIGTERM once saves the running trials and leaves; `shoal sweep resume`,
    or the same command with its --run-id, goes on: finished trials are kept, none is repeated.
    """
    from shoal.tune.forecast import forecast

    loaded, profile = load_both(job, set_, on)
    if loaded.sweep is None:
        fix = "add one, such as  sweep: {space: {optimizer.learning_rate: {loguniform: [1e-5, 1e-3]}}, trials: 8}"
        raise SpecError(Problem(job, "has no `sweep` section", fix))
    if dry_run:
        with storage_of(profile) as storage:
            told = forecast(loaded.sweep, loaded, profile, storage)
        if as_json:
            typer.echo(json.dumps(told.as_json(), indent=1))
        else:
            from shoal.tune.table import forecast_table

            console().print(forecast_table(told, loaded.sweep, profile))
        return
    if outside.is_outside(profile, detach, keep):
        outside.run(loaded, profile, on, run_id, (), detach, keep, as_json)
        return
    sweeping.drive(profile, sweeping.begin(loaded, profile, run_id), options_of(on), events, as_json)


@app.command(short_help="Go on with a sweep that was stopped or died.")
def resume(sweep: Sweep, on: On = None, detach: Detach = False, keep: Keep = False, as_json: Json = False) -> None:
    """Go on with a sweep: finished trials are kept, the others continue from their checkpoints.

    Example:  shoal sweep resume sweep-lr-2026
    """
    from shoal.spec.load import load_profile

    profile = load_profile(profile_name(on))
    if outside.is_outside(profile, detach, keep):
        outside.resume(sweep, True, profile, on, (), detach, keep, as_json)
        return
    sweeping.drive(profile, sweeping.go_on(sweep, profile), options_of(on), False, as_json)


@app.command(short_help="A sweep's trials, best first; a page of it with --html.")
def show(sweep: Sweep, on: On = None, html: Html = None, as_json: Json = False) -> None:
    """Show the leaderboard: states, values, what stopped each trial.

    Example:  shoal sweep show sweep-lr-2026 --html sweep.html

    The page has the loss curves, the params side by side and which of them mattered; it needs nothing from the network.
    """
    from shoal.spec.load import load_profile
    from shoal.tune.board import board
    from shoal.tune.folder import find_sweep
    from shoal.tune.table import board_table

    if html is not None:
        _require_folder("--html", html)
    profile = load_profile(profile_name(on))
    with storage_of(profile) as storage:
        folder = find_sweep(storage, profile.storage.runs, sweep)
        found = board(folder)
        if html is not None:
            from shoal.tune.page import page

            _write("--html", html, page(found, folder.read_plan()))
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1))
        return
    out = console()
    out.print(board_table(found, out.width))
    if html is not None:
        out.print(f"written to {html}", markup=False, soft_wrap=True)


@app.command(short_help="The best trial: its job file, its model.")
def best(
    sweep: Sweep,
    on: On = None,
    job: Annotated[
        Path | None,
        typer.Option("--job", metavar="FILE", help="Write the best trial's job here. Default: SWEEP-best.yaml."),
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FOLDER", help="Copy its model into this folder, which is made.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the winning job file, complete and without a sweep, and say where its model lies, or copy it.

    Example:  shoal sweep best sweep-lr-2026 --job best.yaml --export best-model

    `shoal run best.yaml` trains the very same trial once more.
    """
    from shoal.spec.load import load_profile
    from shoal.tune.best import HEADING, copy_export, winning
    from shoal.tune.folder import find_sweep

    profile = load_profile(profile_name(on))
    with storage_of(profile) as storage:
        found = winning(find_sweep(storage, profile.storage.runs, sweep))
        path = job or Path(f"{found.sweep}-best.yaml")
        _require_folder("--job", path)
        if path.is_file() and not path.read_bytes().startswith(HEADING.encode()):
            raise SpecError(Problem("--job", f"{path} is there already, and no sweep wrote it", "name another file"))
        _write("--job", path, found.text)
        copied = copy_export(found, storage, export) if export is not None else None
    told = {"job": str(path), "copied_to": None if copied is None else str(copied), **found.as_json()}
    if as_json:
        typer.echo(json.dumps(told, indent=1))
        return
    out = console()
    out.print(found.words, markup=False, soft_wrap=True)
    options = options_of(on)
    out.print(f"job      {path}   (again:  shoal run {path}{options})", markup=False, soft_wrap=True)
    where = found.export if copied is None else copied
    out.print(
        f"model    {where}" if where else f"model    none: {found.lack}; run its job",
        markup=False,
        soft_wrap=True,
    )
    if where:
        out.print(f"talk to  shoal chat {found.run}{options}", markup=False, soft_wrap=True)


def _require_folder(option: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise SpecError(Problem(option, f"there is no folder {path.parent}", "name a file in one that exists"))


def _write(option: str, path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        what = f"{path} cannot be written: {(error.strerror or str(error)).lower()}"
        raise SpecError(Problem(option, what, "name another file")) from None
