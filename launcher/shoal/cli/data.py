"""check and prepare: what a data engineer does before anybody trains."""

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.common import Job, Json, On, Set, console, load_both, storage_of
from shoal.cli.reading import Map, Read, mapped, read_job
from shoal.errors import Problem, SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from shoal.backends import OnEvent
    from shoal.spec.cluster import ClusterProfile
    from shoal.storage import Storage
    from shoal.survey.clean import Cleaned
    from shoal.survey.figures import Survey
    from shoal.survey.removals import Options

PREFERENCE = "preference rows are read, but no method learns from them yet: what needs tokens is left out"

Threshold = Annotated[
    float,
    typer.Option(
        "--threshold",
        metavar="SHARE",
        min=0.3,
        max=1.0,
        help="Rows resemble each other from this Jaccard similarity of their words, three by three.",
    ),
]


def check(
    job: Job,
    on: On = None,
    set_: Set = None,
    show: Annotated[
        int, typer.Option("--show", metavar="N", min=0, help="Print N samples, what is learnt in colour.")
    ] = 0,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the survey as one HTML page too.")
    ] = None,
    threshold: Threshold = 0.8,
    as_json: Json = False,
) -> None:
    """Survey the data as training would read them: lengths, rejected rows, copies, leaks, languages, steps.

    Example:  shoal check jobs/quickstart.yaml --show 3 --html survey.html

    Nothing is trained; what is prepared here is not prepared again by `shoal run`. A second look is instant.
    """
    from shoal.display import display_for
    from shoal.launch import backend_for
    from shoal.survey.run import recipe, survey

    loaded, profile = load_both(job, set_, on)
    out = console(as_json)
    with storage_of(profile) as storage:
        if html is not None and not html.parent.is_dir():
            raise SpecError(Problem("--html", f"there is no folder {html.parent}", "name a file in one that exists"))
        with closing(backend_for(profile)) as backend, display_for(out) as display:
            read = read_job(loaded, profile, storage, backend, display.on_event)
            chosen = recipe(read.data, storage.s3, read.folder, read.rows)
            found = survey(
                read.data,
                chosen,
                read.prepared,
                storage,
                profile.storage.cache,
                threshold,
                mapped(backend),
                display.on_event,
            )
        found = _judged(found, read)
        if html is not None:
            _write_page(html, found, loaded.name)
        if as_json:
            typer.echo(found.model_dump_json(indent=1))
        else:
            _tell(out, found, read, show, html, storage)
    if read.refused:
        raise read.refused


def prepare(
    job: Job,
    on: On = None,
    set_: Set = None,
    dedupe: Annotated[bool, typer.Option("--dedupe", help="Write a set without exact copies of earlier rows.")] = False,
    near: Annotated[bool, typer.Option("--near", help="Without rows that nearly are earlier ones, either.")] = False,
    drop_leaks: Annotated[
        bool, typer.Option("--drop-leaks", help="Without rows to train on that are held out, exactly or nearly.")
    ] = False,
    to: Annotated[
        str | None, typer.Option("--to", metavar="LOCATION", help="Where the cleaned set goes; default: the storage.")
    ] = None,
    threshold: Threshold = 0.8,
    as_json: Json = False,
) -> None:
    """Prepare the data ahead of a run; with an option below, write a cleaned copy of them as JSON lines as well.

    Example:  shoal prepare jobs/quickstart.yaml --dedupe --drop-leaks --to s3://shoal/clean/quickstart

    The cleaned set holds the rows as they were, in their order; removed.jsonl and record.json beside them say what
    left and why. Rows that cannot be learnt from never come along.
    """
    from shoal.display import display_for
    from shoal.launch import backend_for
    from shoal.survey.removals import Options

    loaded, profile = load_both(job, set_, on)
    out = console(as_json)
    options = Options(dedupe=dedupe or near, near=near, drop_leaks=drop_leaks, threshold=threshold)
    cleans = dedupe or near or drop_leaks or to is not None
    with storage_of(profile) as storage:
        with closing(backend_for(profile)) as backend, display_for(out) as display:
            read = read_job(loaded, profile, storage, backend, display.on_event)
            if read.prepared is None:
                raise SpecError(Problem("data.format", PREFERENCE, "`shoal check` surveys them"))
            if read.refused and not cleans:
                raise read.refused
            cleaned = _clean(read, options, to, profile, storage, mapped(backend), display.on_event) if cleans else None
        _tell_prepared(out, read, cleaned, as_json)


def _judged(found: "Survey", read: Read) -> "Survey":
    """With what the job makes of the rows, and what to look at."""
    from shoal.data.order import count_steps
    from shoal.survey.advice import advice
    from shoal.survey.figures import Steps

    changes = {}
    if read.plan is None or read.prepared is None:
        found = found.model_copy(update={"note": PREFERENCE})
    else:
        steps = count_steps(read.prepared.lengths, read.plan.trajectory, read.prepared.sources)
        changes["steps"] = Steps(steps=steps.steps, steps_per_epoch=steps.steps_per_epoch, tokens=steps.tokens)
    return found.model_copy(update={"warnings": tuple(advice(found, read.data.max_rejected)), **changes})


def _write_page(path: Path, found: "Survey", name: str) -> None:
    from shoal.storage.local import answering
    from shoal.survey.page import page

    with answering(str(path)):
        path.write_text(page(found, name), encoding="utf-8")


def _tell(out: "Console", found: "Survey", read: Read, show: int, html: Path | None, storage: "Storage") -> None:
    from shoal.survey.report import report

    for block in report(found):
        out.print(block, "")
    if html is not None:
        out.print(f"the page is in {html}", soft_wrap=True)
    if not show or read.plan is None or read.prepared is None:
        return
    from shoal.backends.inline import quiet
    from shoal.storage import absolute
    from shoal.survey.inspect import samples

    quiet()
    from shoal.models import load_tokenizer, tokenizer_folder

    model = read.plan.trajectory.model
    folder = tokenizer_folder(model, storage, Path(absolute(read.plan.storage.cache)))
    tokenizer = load_tokenizer(folder, model.trust_remote_code)
    for sample in samples(read.prepared, tokenizer, show, colour=out.color_system is not None):
        out.print(sample, "")


def _clean(
    read: Read,
    options: "Options",
    to: str | None,
    profile: "ClusterProfile",
    storage: "Storage",
    run: Map,
    on_event: "OnEvent",
) -> "Cleaned":
    from shoal.data.cache import scratch
    from shoal.storage import absolute, join
    from shoal.storage.local import answering
    from shoal.survey.clean import clean, key, made
    from shoal.survey.removals import removals
    from shoal.survey.run import recipe, survey_units
    from shoal.survey.surveyed import Surveyed

    data, prepared = read.data, read.prepared
    assert prepared
    if options.drop_leaks and not (data.validation or data.validation_fraction):
        fix = "set data.validation to what is held out"
        raise SpecError(Problem("--drop-leaks", "nothing is held out, so nothing can leak", fix))
    default = join(absolute(profile.storage.prepared), "cleaned", key(data, options))
    location = default if to is None else absolute(to).rstrip("/")
    if found := made(storage, location, data, options):
        return found
    counts = survey_units(recipe(data, storage.s3, read.folder, read.rows, None), data, run, on_event)
    on_event({"kind": "phase", "phase": "cleaning", "detail": "looking for copies"})
    cache = Path(absolute(profile.storage.cache))
    with answering(str(cache)), scratch(cache, "cleaning") as folder:
        rows = Surveyed(storage, recipe(data, storage.s3, read.folder, read.rows, None).url, counts, folder)
        gone = removals(rows, prepared, len(data.train), options)
        return clean(data, rows, prepared, gone, options, location, profile.storage.cache, run, on_event)


def _tell_prepared(out: "Console", read: Read, cleaned: "Cleaned | None", as_json: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from shoal.display import size

    assert read.prepared
    found = read.prepared.summary
    if as_json:
        names = (
            "digest",
            "rows",
            "samples",
            "validation_samples",
            "tokens",
            "validation_tokens",
            "targets",
            "rejected",
        )
        body = {"prepared": read.folder, "bytes": found.shard_bytes + found.column_bytes}
        body |= {name: getattr(found, name) for name in names}
        typer.echo(json.dumps({**body, "cleaned": cleaned.model_dump(mode="json") if cleaned else None}, indent=1))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    rejected = f", {found.rejected_rows:,} rows rejected" if found.rejected_rows else ""
    held = f" and {found.validation_samples:,} held out" if found.validation_samples else ""
    table.add_row("prepared", Text(read.folder))
    table.add_row("samples", f"{found.samples:,} to train on{held}{rejected}")
    table.add_row("tokens", f"{found.tokens:,}, {size(found.shard_bytes + found.column_bytes)}")
    if cleaned:
        left = ", ".join(f"{count:,} {cause}" for cause, count in cleaned.removed.items()) or "nothing"
        table.add_row("cleaned set", Text(cleaned.location))
        table.add_row("rows", f"{cleaned.kept:,} of {cleaned.rows:,}; left out: {left}")
    out.print(table)
    if cleaned:
        out.print("\nin the job file:\n", Text(job_lines(cleaned), style="bold"), sep="", soft_wrap=True)


def job_lines(cleaned: "Cleaned") -> str:
    """What a job file says to read the cleaned set."""
    import yaml

    if len(cleaned.sources) == 1 and not cleaned.sources[0].columns and cleaned.sources[0].weight == 1:
        train: Any = cleaned.sources[0].cleaned
    else:
        train = [
            {"path": one.cleaned}
            | ({"weight": one.weight} if one.weight != 1 else {})
            | {"format": one.format}
            | ({"columns": one.columns} if one.columns else {})
            for one in cleaned.sources
        ]
    return yaml.safe_dump({"data": {"train": train}}, sort_keys=False, width=1000).rstrip()
