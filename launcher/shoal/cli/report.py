"""report: one run on one screen."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from shoal.cli.common import Json, On, Run, console, options_of, profile_name, storage_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shoal.doctor.evidence import Evidence
    from shoal.doctor.verdict import Verdict
    from shoal.record.ledger import Ledger
    from shoal.record.report import Figures

SHOWN_EVALUATIONS = 6
SHOWN_FAULTS = 6
BAR = 24
"""Characters of a whole."""

Lines = Iterator[tuple[str, str]]


def report(run: Run, on: On = None, as_json: Json = False) -> None:
    """One run on one screen: what it was, its losses and speed, where its wall time went, and what went wrong.

    Example:  shoal report quickstart-2026     shoal report quickstart --json

    The goodput ledger is computed from events.jsonl and metrics.jsonl each time, also while the run goes on.
    """
    from shoal.doctor.evidence import evidence
    from shoal.doctor.verdict import verdict
    from shoal.record.report import figures
    from shoal.runs import find_run
    from shoal.spec.load import load_profile

    profile = load_profile(profile_name(on))
    with storage_of(profile) as storage:
        found = evidence(find_run(storage, profile.storage.runs, run))
    body = figures(found.record, found.planned_steps)
    answer = verdict(found, options_of(on))
    if as_json:
        plan = {"trajectory": found.plan["trajectory"], "layout": found.plan["layout"]}
        told = {"run": found.run, **answer.as_json(), **body.as_json(), "checkpoint": found.checkpoint, "plan": plan}
        typer.echo(json.dumps(told, indent=1))
        return
    console().print(_screen(found, body, answer))


def _screen(found: "Evidence", body: "Figures", answer: "Verdict") -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [
        Text.assemble((found.run, "bold"), "  ", (answer.says, "green" if answer.is_well else "red"))
    ]
    sections = {"what": _what(found.plan), "learnt": _learnt(found, body), "went wrong": _wrong(body, found.incomplete)}
    for title, lines in sections.items():
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=16, style="dim")
        grid.add_column(overflow="fold")
        for name, value in lines:
            grid.add_row(Text(f"  {name}"), Text(value))
        if grid.row_count:
            parts += [Text(f"\n{title}", style="bold cyan"), grid]
    parts += [Text("\nwall time", style="bold cyan"), _ledger(body.ledger)]
    return Group(*parts)


def _what(plan: dict[str, Any]) -> Lines:
    trajectory, layout = plan["trajectory"], plan["layout"]
    many = layout["workers"]
    yield "model", f"{trajectory['model']['base']}, {trajectory['method']}, {trajectory['dtype']}"
    yield "data", ", ".join(source["path"] for source in trajectory["data"]["train"])
    yield "steps", f"{trajectory['steps']['value']:,} of {trajectory['batch_size']} rows"
    yield "layout", f"{many} {layout['device']} worker{'s' if many > 1 else ''}, ZeRO {layout['stage']}"


def _learnt(found: "Evidence", body: "Figures") -> Lines:
    from shoal.display import size

    yield "step", f"{body.step:,} of {body.steps:,}; newest checkpoint: {found.checkpoint or 'none'}"
    losses = body.losses
    if losses.first is not None:
        yield "training loss", f"{losses.first:.4f} -> {losses.last:.4f}, smallest {losses.smallest:.4f}"
    if losses.held_out:
        shown = losses.held_out[:1] + losses.held_out[1:][-SHOWN_EVALUATIONS:]
        yield "held-out loss", ", ".join(f"{loss:.4f} (step {step})" for step, loss in shown)
    speed = body.throughput
    if speed.tokens_per_s and speed.step_s and speed.data_share is not None:
        wait = f"{speed.data_share:.1%} of it waiting for data"
        yield "speed", f"{speed.tokens_per_s:,.0f} tokens/s, {speed.step_s:.2f} s a step, {wait}"
    saves = body.saves
    if saves.count:
        rate = f", uploaded at {saves.upload_mb_per_s:,.0f} MB/s" if saves.upload_mb_per_s else ""
        stall = f", {saves.stall_s:.2f} s of training each" if saves.stall_s is not None else ""
        yield "checkpoints", f"{saves.count} of {size(saves.bytes or 0)}{stall}{rate}"


def _wrong(body: "Figures", incomplete: tuple[str, ...]) -> Lines:
    faults = list(body.faults.items())
    for number, (what, many) in enumerate(faults[:SHOWN_FAULTS]):
        yield "store" if not number else "", f"{many:,} x {what}"
    if faults[SHOWN_FAULTS:]:
        yield "", f"{sum(many for _, many in faults[SHOWN_FAULTS:]):,} others"
    for number, failure in enumerate(body.failures):
        yield "failures" if not number else "", str(failure.get("message") or failure["cause"])
    if body.ledger.repeated_steps:
        yield "repeated", f"{body.ledger.repeated_steps:,} steps"
    for number, line in enumerate(incomplete):
        yield "folder" if not number else "", line


def _ledger(ledger: "Ledger") -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    from shoal.record.ledger import PARTS

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=16, style="dim")
    for side in ("right", "right", "left", "left"):
        grid.add_column(justify=side)
    for part, seconds in ledger.seconds.items():
        if seconds:
            share = ledger.share(part)
            grid.add_row(
                Text(f"  {part}"), _seconds(seconds), f"{share:.1%}", "█" * round(BAR * share), Text(PARTS[part], "dim")
            )
    goodput = "" if ledger.goodput is None else f"{ledger.goodput:.1%}"
    tries = f"{ledger.attempts} attempt{'' if ledger.attempts == 1 else 's'}"
    grid.add_row(Text("  all", "bold"), _seconds(ledger.total), "", "", Text(f"goodput {goodput}, {tries}", "bold"))
    return grid


def _seconds(seconds: float) -> str:
    from shoal.display import duration

    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
