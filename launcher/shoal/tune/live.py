"""What a person sees of a sweep that runs: a table of its trials, or plain lines where output is no terminal.

Events of a sweep, beside those of runs:

    {"kind": "sweep", "sweep": id, "folder": url, "metric": name, "mode": "min", "trials": how many at most}
    {"kind": "trial", "trial": number, "run": id, "params": {...}}                begins, or goes on
    {"kind": "trial_end", "trial": number, "state", "why", "metric", "step"}      as in TrialEnd

An event of a trial's own run carries `trial` as well: `step`, `eval`, `phase`, `note`, `failure` and the rest.
"""

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from shoal.display import Display, Lines, Screen
from shoal.train.world import Event
from shoal.tune.space import cells, columns, said

SHOWN_ROWS = 24
"""Rows of the live table; those that ended longest ago make room."""
COLOURS = {"running": "cyan", "finished": "green", "stopped": "yellow", "failed": "red"}


@dataclass
class Row:
    """One trial."""

    number: int
    params: dict[str, Any]
    state: str = "running"
    why: str = ""
    phase: str = "starting"
    step: int = 0
    steps: int = 0
    metric: float | None = None


@dataclass
class Trials:
    """What the events so far amount to."""

    sweep: str = ""
    metric: str = "validation.loss"
    trials: int = 0
    phase: str = "starting"
    rows: dict[int, Row] = field(default_factory=dict)

    def see(self, event: Event) -> None:
        row = self.rows.get(event.get("trial", -1))
        match event["kind"]:
            case "sweep":
                self.sweep, self.metric, self.trials = event["sweep"], event["metric"], event["trials"]
            case "trial":
                self.rows[event["trial"]] = Row(event["trial"], event["params"])
            case "trial_end":
                # One whose own process never came up has no beginning.
                row = self.rows.setdefault(event["trial"], Row(event["trial"], {}))
                row.state, row.why = event["state"], event["why"]
                row.metric = row.metric if event.get("metric") is None else event["metric"]
                row.step = event.get("step", row.step)
            case "step" if row:
                row.step, row.steps, row.phase = event["step"], event["steps"], "training"
                if self.metric == "train.loss" and event.get("loss") is not None:
                    row.metric = event["loss"]
            case "eval" if row and self.metric == "validation.loss":
                row.metric = event["loss"]
            case "phase" if row:
                row.phase = event["phase"]
            case "phase":
                self.phase = event["phase"]
            case _:
                pass

    def count(self, state: str) -> int:
        return sum(row.state == state for row in self.rows.values())

    def record(self, event: Event) -> str | None:
        name = f"trial {event['trial']}: " if "trial" in event else ""
        match event["kind"]:
            case "sweep":
                return f"sweep {event['sweep']} in {event['folder']}"
            case "trial":
                return name + said(event["params"])
            case "trial_end":
                return name + ending(self.rows[event["trial"]], self.metric)
            case "eval" if event["step"]:
                return f"{name}held-out loss after step {event['step']}: {event['loss']:.4f}"
            case "note" if not name:
                return event["message"]
            case "failure":
                return name + event["message"]
            case "phase" if not name:
                return ": ".join(part for part in (event["phase"], event.get("detail", "")) if part)
            case _:
                return None

    def picture(self) -> RenderableType:
        return table(self)


def display_for(console: Console) -> Display:
    return Screen(console, Trials()) if console.is_terminal else Lines(console, Trials())


def ending(row: Row, metric: str) -> str:
    """`stopped at step 8, validation.loss 2.1234: asha`."""
    value = "" if row.metric is None else f", {metric} {row.metric:.4f}"
    why = f": {row.why}" if row.why else ""
    return f"{row.state} at step {row.step}{value}{why}"


def table(trials: Trials) -> RenderableType:
    """The live table: running trials last, under those that ended."""
    rows = sorted(trials.rows.values(), key=lambda row: (row.state == "running", row.number))[-SHOWN_ROWS:]
    fields = columns([row.params for row in rows])
    shown = Table(box=None, padding=(0, 2, 0, 0), title_justify="left")
    shown.add_column("trial", justify="right", no_wrap=True)
    shown.add_column("state", no_wrap=True)
    for name in ("step", short(trials.metric)):
        shown.add_column(name, justify="right", no_wrap=True)
    for name in fields:
        shown.add_column(short(name), justify="right", overflow="fold")
    shown.add_column("why", overflow="fold")
    for row in rows:
        values = cells(row.params)
        params = [values.get(field, "") for field in fields]
        state = Text(row.phase if row.state == "running" else row.state, style=COLOURS.get(row.state, ""))
        step = f"{row.step}/{row.steps}" if row.steps else f"{row.step}"
        value = "" if row.metric is None else f"{row.metric:.4f}"
        shown.add_row(Text(str(row.number)), state, *(Text(cell) for cell in (step, value, *params, row.why)))
    counts = ", ".join(f"{count} {state}" for state in COLOURS if (count := trials.count(state)))
    head = Text.assemble((trials.sweep or "shoal sweep", "bold"), f"  {trials.phase}" if not rows else "")
    begun = min(len(trials.rows), trials.trials)  # under pbt later ones stand at the place of others
    head.append(f"  {begun} of {trials.trials} trials: {counts}" if rows else "", style="dim")
    return Group(head, shown) if rows else head


def short(field: str) -> str:
    """A field's name as a column's: its last part."""
    return field.rpartition(".")[2]
