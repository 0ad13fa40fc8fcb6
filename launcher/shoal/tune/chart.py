"""Where a sweep's lines go on paper: pure geometry, in the units of an SVG's viewBox."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.spec.sweep import LOGARITHMIC, WHOLE, Dimension
from shoal.tune.board import Board, Standing
from shoal.tune.space import brief, cut

WIDTH, HEIGHT = 720.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 16.0, 14.0, 40.0
SHOWN_LABELS = 12
"""Labels on an axis of listed values."""
LEAST_SHOWN = 0.02
"""Of the values, this share at the worse end may lie beyond the edge: one diverged trial would flatten all others."""

Placed = tuple[float, str]
"""A label and its place along an axis, 0 to 1."""


@dataclass(frozen=True)
class Scale:
    """Values -> 0 to 1."""

    low: float
    high: float
    log: bool
    names: tuple[Any, ...] | None
    """The values themselves where they are listed, else None."""
    labels: tuple[Placed, ...]

    def at(self, value: Any) -> float:
        """What lies beyond an end is put there."""
        if self.names is not None:
            index = self.names.index(value) if value in self.names else 0
            return index / (len(self.names) - 1) if len(self.names) > 1 else 0.5
        low, high, here = (_log(one) if self.log else one for one in (self.low, self.high, value))
        return min(max((here - low) / (high - low), 0.0), 1.0) if high > low else 0.5


def _log(value: float) -> float:
    return math.log10(max(value, 1e-300))


def numbers(values: Iterable[float], log: bool = False, count: int = 5) -> Scale:
    """A scale over numbers with round labels."""
    found = list(values)
    low, high = min(found), max(found)
    bare = Scale(low, high, log, None, ())
    return Scale(low, high, log, None, tuple((bare.at(tick), f"{tick:.4g}") for tick in ticks(low, high, log, count)))


def ticks(low: float, high: float, log: bool, count: int) -> list[float]:
    """Round numbers from low to high; both ends where there are none."""
    if log and low > 0:
        powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
        return [10.0**power for power in powers] if len(powers) > 1 else [low, high]
    if high <= low:
        return [low]
    raw = (high - low) / count
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    return [round(step * index, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def dimension_scale(one: Dimension, seen: Iterable[Any]) -> Scale:
    """A field's axis: its listed values in their order, or its range, widened to what was seen."""
    if one.values is not None:
        names = (*one.values, *(value for value in seen if value not in one.values))
        bare = Scale(0, 1, False, names, ())
        shown = names if len(names) <= SHOWN_LABELS else (names[0], names[-1])
        return Scale(0, 1, False, names, tuple((bare.at(name), cut(brief(name))) for name in shown))
    low, high = one.numbers[:2]
    found = [low, high - 1 if one.kind in WHOLE else high, *seen]
    return numbers(found, one.kind in LOGARITHMIC and min(found) > 0)


def metric_scale(values: Sequence[float], mode: str) -> Scale:
    """The metric's axis: the worst values may lie beyond its end."""
    ordered = sorted(values, reverse=mode == "max")
    kept = ordered[: max(2, math.ceil(len(ordered) * (1 - LEAST_SHOWN)))]
    return numbers(kept)


def colour(place: int, count: int) -> str:
    """From the best (blue) to the worst (sand)."""
    share = place / max(1, count - 1)
    return f"hsl({200 - 165 * share:.0f} {70 - 15 * share:.0f}% {38 + 22 * share:.0f}%)"


def x(share: float) -> float:
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def y(share: float) -> float:
    """0 is at the bottom."""
    return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


@dataclass(frozen=True)
class Line:
    """One trial on paper."""

    number: int
    points: str
    """Of a polyline."""
    colour: str
    winner: bool
    words: str
    """What is said when one points at it."""


@dataclass(frozen=True)
class Chart:
    lines: tuple[Line, ...]
    bottom: tuple[tuple[float, str], ...]
    """(x, label)."""
    left: tuple[tuple[float, str], ...]
    """(y, label)."""


@dataclass(frozen=True)
class Axis:
    """One upright axis of the parallel coordinates."""

    x: float
    name: str
    labels: tuple[tuple[float, str], ...]


def curves(found: Board, words: Mapping[int, str]) -> Chart | None:
    """The metric over tokens; None without any value."""
    drawn = [row for row in found.ranked if row.curve]
    if not drawn:
        return None
    across = numbers([0, *(point.tokens for row in drawn for point in row.curve)])
    up = metric_scale([point.value for row in drawn for point in row.curve], found.mode)
    lines = [
        _line(found, row, place, len(drawn), words, [(x(across.at(p.tokens)), y(up.at(p.value))) for p in row.curve])
        for place, row in enumerate(drawn)
    ]
    thousands = tuple((x(at), f"{float(label):,.0f}") for at, label in across.labels)
    return Chart(tuple(reversed(lines)), thousands, tuple((y(at), label) for at, label in up.labels))


def parallel(
    found: Board, dimensions: Mapping[str, Dimension], words: Mapping[int, str]
) -> tuple[tuple[Axis, ...], tuple[Line, ...]]:
    """Each trial a line over its params to its value, which is the last axis."""
    drawn = [row for row in found.ranked if found.score(row) is not None]
    if not drawn:
        return (), ()
    scales = scales_of(drawn, dimensions)
    scores = [found.score(row) or 0.0 for row in drawn]
    scales[found.metric] = metric_scale(scores, found.mode)
    at = {name: x(index / (len(scales) - 1)) for index, name in enumerate(scales)}
    axes = [Axis(at[name], name, tuple((y(p), label) for p, label in scale.labels)) for name, scale in scales.items()]
    lines = []
    for place, (row, score) in enumerate(zip(drawn, scores, strict=True)):
        values = {**row.params, found.metric: score}
        points = [(at[name], y(scale.at(values[name]))) for name, scale in scales.items() if name in values]
        lines.append(_line(found, row, place, len(drawn), words, points))
    return tuple(axes), tuple(reversed(lines))


def scales_of(rows: Sequence[Standing], dimensions: Mapping[str, Dimension]) -> dict[str, Scale]:
    """Each field's axis."""
    return {
        field: dimension_scale(one, [row.params[field] for row in rows if field in row.params])
        for field, one in dimensions.items()
    }


def _line(
    found: Board, row: Standing, place: int, count: int, words: Mapping[int, str], points: list[tuple[float, float]]
) -> Line:
    drawn = " ".join(f"{across},{up}" for across, up in points)
    return Line(row.number, drawn, colour(place, count), row is found.winner, words[row.number])
