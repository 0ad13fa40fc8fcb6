"""What a person sees of a run: one calm live panel, or plain lines where output is no terminal; and the end of it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shoal.plan.types import Plan
from shoal.record.ledger import Ledger
from shoal.train.world import Event, Result

LINE_EVERY_S = 2.0
"""Plain lines for steps come at most so often; the first and the last always do."""
TOLD_FAULTS = frozenset(10**power for power in range(9))
"""Of many faults of the store these are told: the first, the tenth, the hundredth."""
SMALL_SHARE = 0.005
"""A part of the wall time below this is not told at the end of a run; `shoal report` tells all."""
LONG_WAIT_S = 0.1
"""A save that waits for the one before is told of from here on."""
SMOOTHING = 0.2
"""Weight of the newest step in the average that the remaining time is told from."""


@dataclass
class State:
    """What the events so far amount to. Needs no clock but the one it is given."""

    run: str = ""
    phase: str = "starting"
    detail: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    learning_rate: float | None = None
    tokens_per_s: float | None = None
    step_seconds: float | None = None
    held_out: list[tuple[int, float]] = field(default_factory=list)
    """(step, validation loss) in the order they came."""
    faults: int = 0
    """What the store did wrong so far."""

    def see(self, event: Event) -> None:
        match event["kind"]:
            case "run":
                self.run = event["run"]
            case "phase":
                self.phase, self.detail = event["phase"], event.get("detail", "")
            case "step":
                self._step(event)
            case "eval":
                self.held_out.append((event["step"], event["loss"]))
            case "storage":
                self.faults += 1

    def _step(self, event: Event) -> None:
        self.step, self.steps = event["step"], event["steps"]
        self.loss = self.loss if event.get("loss") is None else event["loss"]
        self.learning_rate = event.get("learning_rate", self.learning_rate)
        self.tokens_per_s = event.get("tokens_per_s", self.tokens_per_s)
        seconds = event.get("seconds")
        if seconds is not None:
            before = seconds if self.step_seconds is None else self.step_seconds
            self.step_seconds = before + SMOOTHING * (seconds - before)

    @property
    def eta(self) -> float | None:
        """Seconds of training left, None before the first step."""
        return None if self.step_seconds is None else self.step_seconds * (self.steps - self.step)

    def record(self, event: Event) -> str | None:
        match event["kind"]:
            case "run":
                return f"run {event['run']} in {event['folder']}"
            case "note":
                return event["message"]
            case "eval":
                what = "before the first step" if event["step"] == 0 else f"after step {event['step']}"
                return f"held-out loss {what}: {event['loss']:.4f} (perplexity {event['perplexity']:.2f})"
            case "checkpoint":
                return checkpoint_words(event)
            case "export":
                return f"export {gate_words(event)}"
            case "failure":
                return event["message"]
            case "skipped":
                return f"step {event['step']} is skipped: its {event['what']} is {event['value']} ({event['total']:,} so far)"
            case "storage" if self.faults in TOLD_FAULTS:
                return f"store: {event['what']} ({event['url']}); {self.faults:,} such so far, all are in events.jsonl"
            case _:
                return None

    def picture(self) -> RenderableType:
        return panel(self)


class View(Protocol):
    """What the events so far amount to, and how it looks."""

    def see(self, event: Event) -> None: ...

    def record(self, event: Event) -> str | None:
        """The line that an event leaves on record in every display; None for what only moves the display on."""
        ...

    def picture(self) -> RenderableType: ...


class Display(Protocol):
    """Takes events from any thread; a context manager."""

    def on_event(self, event: Event) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def display_for(console: Console) -> Display:
    return Screen(console, State()) if console.is_terminal else RunLines(console)


class Screen:
    """A picture that stays in its place; what should stay on record scrolls by above it."""

    def __init__(self, console: Console, view: View) -> None:
        self.console, self.view = console, view
        self.live = Live(console=console, get_renderable=view.picture, refresh_per_second=4, transient=True)

    def on_event(self, event: Event) -> None:
        self.view.see(event)
        line = self.view.record(event)
        if line is not None:
            self.console.print(Text(line, style="dim"))

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()


class Lines:
    """One timestamped line for each thing worth a line, never a carriage return."""

    def __init__(self, console: Console, view: View) -> None:
        self.console, self.view = console, view

    def on_event(self, event: Event) -> None:
        self.view.see(event)
        line = self.line(event)
        if line is not None:
            moment = datetime.fromisoformat(event["time"]).astimezone() if "time" in event else datetime.now()
            self.console.print(f"{moment:%H:%M:%S} {line}", markup=False, highlight=False, soft_wrap=True)

    def line(self, event: Event) -> str | None:
        return self.view.record(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class RunLines(Lines):
    """Lines of a run: its phases and steps too, at a pace that can be read."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.state = State()
        super().__init__(console, self.state)
        self.clock = clock
        self.told = -math.inf
        self.phases: set[str] = set()

    def line(self, event: Event) -> str | None:
        # A phase that comes back (training after each evaluation) is worth a line once, or while it lasts.
        if event["kind"] == "phase" and (self.state.phase not in self.phases or self._goes_on()):
            self.phases.add(self.state.phase)
            return ": ".join(part for part in (self.state.phase, self.state.detail) if part)
        if event["kind"] == "step" and (event["step"] == event["steps"] or self._due()):
            return step_line(self.state)
        return super().line(event)

    def _goes_on(self) -> bool:
        """Whether a long phase tells its progress: those around the steps leave lines of their own."""
        return self.state.phase not in ("training", "evaluating", "saving") and self._due()

    def _due(self) -> bool:
        now = self.clock()
        due = now - self.told >= LINE_EVERY_S
        self.told = now if due else self.told
        return due


def checkpoint_words(event: Event) -> str:
    stall = f"training stood still for {event['stall_seconds']:.2f} s"
    if event["waited_seconds"] >= LONG_WAIT_S:
        stall += f", {event['waited_seconds']:.1f} s of it until the one before was uploaded"
    uploaded = f"uploaded in {event['upload_seconds']:.1f} s"
    return f"checkpoint of step {event['step']} ({size(event['bytes'])}, {stall}, {uploaded})"


def step_line(state: State) -> str:
    parts = [f"step {state.step}/{state.steps}"]
    if state.loss is not None:
        parts.append(f"loss {state.loss:.4f}")
    if state.learning_rate is not None:
        parts.append(f"lr {state.learning_rate:.2e}")
    if state.tokens_per_s is not None:
        parts.append(f"{state.tokens_per_s:,.0f} tokens/s")
    if state.eta:
        parts.append(f"{duration(state.eta)} left")
    return "  ".join(parts)


def panel(state: State) -> RenderableType:
    head = Text(state.phase, style="bold cyan")
    if state.detail:
        head.append(f"  {state.detail}", style="dim")
    rows: list[RenderableType] = [head]
    if state.steps:
        bar = ProgressBar(total=state.steps, completed=state.step)
        rows += [Padding(bar, 0), Text(step_line(state))]  # a bar alone does not end its line
    if state.held_out:
        step, loss = state.held_out[-1]
        words = f"held-out loss {loss:.4f} at step {step}"
        if len(state.held_out) > 1:
            words += f", {state.held_out[0][1]:.4f} at step {state.held_out[0][0]}"
        rows.append(Text(words, style="green"))
    return Panel(Group(*rows), title=state.run or "shoal", title_align="left", border_style="dim", padding=(0, 1))


def tell_ending(console: Console, plan: Plan, result: Result, options: str = "", ledger: Ledger | None = None) -> None:
    """The table at the end of a run, and what to do next; `options` are those that the next command needs too."""
    console.print("", ending(plan, result, ledger), "")
    for line in next_commands(plan, result, options):
        console.print(line, soft_wrap=True)  # commands are there to be copied


def ending(plan: Plan, result: Result, ledger: Ledger | None = None) -> RenderableType:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("run", plan.run_id)
    table.add_row("steps", f"{result.step:,} of {result.steps:,}")
    if result.base_loss is not None:
        table.add_row("held-out loss before", with_perplexity(result.base_loss))
    if result.loss is not None and result.state == "finished":
        better = result.base_loss is not None and result.loss < result.base_loss
        table.add_row("held-out loss after", Text(with_perplexity(result.loss), style="green" if better else ""))
    if result.loss is None and result.train_loss is not None:
        table.add_row("training loss", with_perplexity(result.train_loss))
    table.add_row("tokens", f"{result.tokens:,}")
    rate = f", {result.tokens / result.seconds:,.0f} tokens/s" if result.seconds else ""
    table.add_row("time training", duration(result.seconds) + rate)
    if ledger is not None and ledger.goodput is not None:
        table.add_row("wall time", f"{duration(ledger.total)}: {ledger_words(ledger)}")
    if result.skipped:
        table.add_row("steps skipped", f"{result.skipped:,}, their loss or gradient was no number")
    if result.export:
        table.add_row("export", Text(result.export))
    if result.gate:
        table.add_row("export gate", gate_words(result.gate))
    parts: list[RenderableType] = [table]
    parts += [answer(one) for one in result.answers]
    return Group(*parts)


def next_commands(plan: Plan, result: Result, options: str) -> list[Text]:
    if result.state != "finished":
        lines = [("stopped; go on with", f"shoal resume {plan.run_id}")]
    elif plan.trajectory.method == "full" or plan.merge:
        lines = [("talk to it", f"shoal chat {plan.run_id} --base"), ("look at all runs", "shoal runs")]
    else:
        lines = [
            ("talk to it", f"shoal chat {plan.run_id} --base"),
            ("one full model of it", f"shoal export {plan.run_id} --merge"),
        ]
    return [Text.assemble(f"{what:<22}", (command + options, "bold")) for what, command in lines]


def answer(one: dict[str, str]) -> RenderableType:
    """A prompt with its answers before and after."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 2))
    table.add_column(style="dim", min_width=6)
    table.add_column(overflow="fold")
    for name in ("before", "after"):
        table.add_row(name, Text(" ".join(one[name].split())))
    return Group(Text(), Text(one["prompt"], style="bold"), table)


def gate_words(gate: dict[str, Any]) -> str:
    """The gate's figures in a few words: what was compared with what, and how far apart they were."""
    words = "passed" if gate.get("passed") else "failed"
    if "error" in gate:
        return f"{words}: {gate['error']}"
    largest = gate.get("max_relative_difference")
    if largest is not None:
        words += f": logits within {largest:.1e} of the {gate.get('against', 'live model')}"
    if "tolerance" in gate:
        words += f" (allowed {gate['tolerance']:.0e})"
    return words


def ledger_words(ledger: Ledger) -> str:
    """The parts of the wall time that matter, the largest first: `82% computing, 12% starting, ...`."""
    parts = sorted(ledger.seconds, key=ledger.share, reverse=True)
    return ", ".join(f"{ledger.share(part):.0%} {part}" for part in parts if ledger.share(part) >= SMALL_SHARE)


def with_perplexity(loss: float) -> str:
    return f"{loss:.4f} (perplexity {math.exp(min(loss, 700)):.2f})"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def size(count: float) -> str:
    """Bytes as `12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
