"""A sweep as tables in a terminal: what it would take, and how its trials stand."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shoal.display import duration
from shoal.spec.cluster import ClusterProfile
from shoal.spec.sweep import Dimension, SweepSpec
from shoal.tune.board import Board, Standing
from shoal.tune.forecast import Forecast
from shoal.tune.live import COLOURS, short
from shoal.tune.space import brief, cells, columns

WIDE = 120
"""Columns of a terminal that has room for the reasons beside the table."""
MOST_VALUES = 12
"""Of a field of the space that are written out."""
SHOWN_WHY = 120
"""Characters of the reason that a trial ended."""


def forecast_table(told: Forecast, spec: SweepSpec, profile: ClusterProfile) -> RenderableType:
    """A forecast, one line a matter."""
    parts: list[RenderableType] = [Text("space", style="bold cyan")]
    parts += [_grid((field, dimension_words(one)) for field, one in spec.dimensions.items())]
    parts += [Text("\nsweep", style="bold cyan"), _grid(_rows(told, spec, profile))]
    if told.notes:
        parts += [Text("\nnotes", style="bold yellow")]
        parts += [Padding(Text(note), (0, 0, 0, 2)) for note in told.notes]
    return Group(*parts)


def _grid(rows: Iterator[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", min_width=14)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(f"  {name}"), Text(value))
    return grid


def dimension_words(one: Dimension) -> str:
    """`loguniform 1e-05 to 0.001`, `8, 16 or 64`."""
    if one.values is not None:
        shown = [brief(value) for value in one.values]
        if len(shown) > MOST_VALUES:
            return f"{', '.join(shown[:MOST_VALUES])} and {len(shown) - MOST_VALUES:,} more"
        return " or ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
    low, high = one.numbers[:2]
    by = f" by {one.numbers[2]:g}" if len(one.numbers) > 2 else ""
    return f"{one.kind} {low:g} to {high:g}{by}"


def _rows(told: Forecast, spec: SweepSpec, profile: ClusterProfile) -> Iterator[tuple[str, str]]:
    about = " (estimate)"
    yield "trials", f"{told.trials}, {spec.search} search; {_stops(spec)}"
    at_once = "as many at once as there is room for" if told.concurrent is None else f"{told.concurrent} at once"
    yield "workers", f"{told.workers} each, {at_once}"
    yield (
        "looked at",
        f"{told.planned} point{'s' * (told.planned > 1)} of the space{', all there are' if told.whole else ''}: each has a plan",
    )
    yield "metric", f"{spec.metric}, the {'least' if spec.mode == 'min' else 'largest'} is best"
    yield "data", f"prepared {'once for all trials' if told.preparations == 1 else f'{told.preparations} times'}"
    yield "steps", f"{told.steps} a trial, {told.all_steps} in all{about * told.steps_estimate}"
    yield "tokens", f"{told.tokens} a trial, {told.all_tokens} in all{about * told.tokens_estimate}"
    if told.hours is None:
        yield "hours", "not known: no finished run here has this model and layout to tell the speed from"
    else:
        speed = f"{told.tokens_per_s:,.0f} tokens/s in {told.measured_on}"
        yield "hours", f"{_time(told.hours)} of training in all, by {speed}; starting and exporting come on top"
    if profile.price_per_worker_hour is None:
        yield "cost", "not known: the profile has no price_per_worker_hour"
    elif told.cost is None:
        yield "cost", f"not known, as the hours are not; {profile.price_per_worker_hour:g} per worker-hour"
    else:
        yield "cost", f"{told.cost:,.2f} at {profile.price_per_worker_hour:g} per worker-hour"
    spent = spec.budget.model_dump(exclude_none=True)
    if spent:
        limits = " or ".join(f"{value:,} {name}" if name != "cost" else f"{value:g}" for name, value in spent.items())
        yield "budget", f"ends at {limits} over all trials"


def _stops(spec: SweepSpec) -> str:
    words = {
        "none": "every trial runs to its end",
        "asha": f"asha lets one of {spec.asha.reduction_factor:g} go on at each rung",
        "median": "what is worse than the median is stopped",
        "pbt": "the worst take over the weights of the best",
    }
    return words[spec.scheduler]


def _time(hours: float) -> str:
    return duration(hours * 3600)


def board_table(found: Board, width: int) -> RenderableType:
    """The leaderboard, best first. Why a trial ended stands under the table where there is no room beside it."""
    beside = width >= WIDE
    fields = columns([row.params for row in found.rows])
    shown = Table(box=None, padding=(0, 2, 0, 0))
    shown.add_column("trial", justify="right", no_wrap=True)
    shown.add_column("state", no_wrap=True)
    shown.add_column(short(found.metric), justify="right", no_wrap=True)
    for field in fields:
        shown.add_column(short(field), justify="right", overflow="fold")
    for name in ("step", "tokens", "time"):
        shown.add_column(name, justify="right", no_wrap=True)
    if beside:
        shown.add_column("why", overflow="fold")
    for row in found.ranked:
        score = found.score(row)
        params = cells(row.params)
        told = ["" if score is None else f"{score:.4f}", *(params.get(field, "") for field in fields)]
        told += [f"{row.step:,}", f"{row.tokens:,}", "" if row.seconds is None else clock(row.seconds)]
        told += [why(row)] if beside else []
        style = "bold" if row is found.winner else ""
        state = Text(row.state, style=COLOURS.get(row.state, ""))
        shown.add_row(Text(str(row.number), style=style), state, *(Text(cell, style=style) for cell in told))
    counts = ", ".join(f"{found.count(state)} {state}" for state in (*COLOURS, "unfinished") if found.count(state))
    head = Text.assemble((found.sweep, "bold"), f"  {found.begun}: {counts or 'none began'}")
    head.append(f"; by {found.metric}, best first", style="dim")
    reasons = (
        [] if beside else [Text(f"trial {row.number}: {why(row)}", style="dim") for row in found.ranked if why(row)]
    )
    failed = [Text(f"failed: {found.failed}", style=COLOURS["failed"])] if found.failed else []
    return Group(head, *failed, *([shown, *reasons] if found.rows else []))


def clock(seconds: float) -> str:
    """`1:32`, `2:10:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def why(row: Standing) -> str:
    """Why a trial is where it is, in a line's length."""
    words = " ".join(row.why.split())
    if row.origin:
        words = f"from {row.origin}{'; ' if words else ''}{words}"
    if row.retries:
        words = f"tried again {row.retries}x with a smaller micro-batch{': ' if words else ''}{words}"
    return words if len(words) <= SHOWN_WHY else f"{words[: SHOWN_WHY - 3]}..."
