"""What the store knows of a trial before it begins, or goes on: its record, its end, the points that it came to."""

import json
from dataclasses import dataclass
from typing import Any

from shoal.record import rows
from shoal.record.ledger import ledger
from shoal.record.rows import stamp
from shoal.tune.board import Point, curve
from shoal.tune.folder import Origin, SweepFolder, Trial, TrialEnd
from shoal.tune.space import Params


@dataclass(frozen=True)
class Known:
    trial: Trial
    end: TrialEnd | None
    points: tuple[Point, ...]
    """Of its run, after the first step; tokens are the trial's own."""
    seconds: float
    """Of its sittings so far."""
    is_through: bool
    """Its run has a result."""

    @property
    def start(self) -> Point | None:
        """The last point; before there is one, where a trial with an origin begins."""
        if self.points:
            return self.points[-1]
        origin = self.trial.origin
        return None if origin is None else Point(origin.step, 0, 0.0)


def look_up(folder: SweepFolder, place: int, metric: str, population: bool) -> Known:
    """The trial at the place of a suggestion, which is written down; in a population a later one may stand there."""
    trial = _newest_at(folder, place) if population else Trial.of(_read(folder, folder.trial(place)) or {})
    run = folder.run(trial.number)
    record = rows.read(run)
    end = _end(folder, trial.number)
    points = [point for point in curve(record, metric) if point.step and (end is None or point.step <= end.step)]
    book = ledger(record.events, record.metrics)
    through = folder.storage.exists(run.result)
    return Known(trial, end, tuple(points), book.total - book.seconds["down"], through)


def successor(folder: SweepFolder, first: int, place: int, params: Params, origin: Origin) -> Known:
    """A new trial at a place, written down under the first number from `first` on that is free."""
    taken = [int(one.url.rpartition("/")[2].split(".")[0]) for one in folder.storage.list(folder.trials)]
    number = max([first - 1, *taken]) + 1
    while True:
        trial = Trial(number, params, folder.run_id(number), stamp(), line=place, origin=origin)
        try:
            folder.write_trial(trial)
        except FileExistsError:
            number += 1
            continue
        return Known(trial, end=None, points=(), seconds=0.0, is_through=False)


def _end(folder: SweepFolder, number: int) -> TrialEnd | None:
    body = _read(folder, folder.end(number))
    return None if body is None else TrialEnd(**body)


def _newest_at(folder: SweepFolder, place: int) -> Trial:
    return max((one for one, _ in folder.read_trials() if one.place == place), key=lambda one: one.number)


def _read(folder: SweepFolder, url: str) -> dict[str, Any] | None:
    return json.loads(folder.storage.read(url)) if folder.storage.exists(url) else None
