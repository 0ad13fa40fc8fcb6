"""A sweep's leaderboard, from what the sweep and its trials' runs wrote down."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from shoal import lease
from shoal.record import rows
from shoal.record.rows import Record
from shoal.tune.folder import SweepFolder, SweepPlan, Trial, TrialEnd
from shoal.tune.space import trial_count

WORST = {"min": 1e30, "max": -1e30}


@dataclass(frozen=True)
class Point:
    """The metric at one moment of a trial."""

    step: int
    tokens: int
    """Seen until then."""
    value: float
    time: str = ""
    """UTC, ISO 8601; empty before it is written down."""


@dataclass(frozen=True)
class Standing:
    """One trial, as the leaderboard shows it."""

    number: int
    run: str
    params: dict[str, Any]
    state: str
    """finished, stopped (by the scheduler or the budget), failed, running, or unfinished (it can go on)."""
    why: str
    """What stopped it, or why it failed."""
    metric: float | None
    """The newest value."""
    best: float | None
    """The best value after the first step."""
    step: int
    tokens: int
    seconds: float | None
    """None until it ended."""
    start_s: float | None
    retries: int
    curve: tuple[Point, ...]
    origin: str = ""
    """Under pbt, whose weights it began with: `RUN at step 40`."""


@dataclass(frozen=True)
class Board:
    """All trials that began, in the order of their numbers."""

    sweep: str
    folder: str
    metric: str
    mode: str
    trials: int
    """How many there will be at most; under pbt successors come on top."""
    running: bool
    """Somebody drives the sweep now."""
    takes_best: bool
    """A trial exports its best checkpoint, and is judged by its best value, rather than the last."""
    rows: tuple[Standing, ...]
    failed: str = ""
    """What ended the sweep before its trials could end; empty where nothing did."""

    def score(self, row: Standing) -> float | None:
        """What a trial is judged by: the value of what it exports."""
        return row.best if self.takes_best else row.metric

    @property
    def ranked(self) -> list[Standing]:
        """Best first: those that finished before those that did not, those without a value last."""

        def key(row: Standing) -> tuple[bool, float, int]:
            score = self.score(row)
            signed = math.inf if score is None else score if self.mode == "min" else -score
            return row.state != "finished", signed, row.number

        return sorted(self.rows, key=key)

    @property
    def winner(self) -> Standing | None:
        """The best trial that finished; None where none has."""
        return next((row for row in self.ranked if row.state == "finished" and self.score(row) is not None), None)

    def count(self, state: str) -> int:
        return sum(row.state == state for row in self.rows)

    @property
    def begun(self) -> str:
        """`3 of 8 trials`, without those that took the place of others under pbt."""
        later = sum(bool(row.origin) for row in self.rows)
        more = f" and {later} at the place of others" if later else ""
        return f"{len(self.rows) - later} of {self.trials:,} trials{more}"

    def as_json(self) -> dict[str, Any]:
        winner = self.winner
        ranked = [asdict(row) | {"score": self.score(row)} for row in self.ranked]
        own = {name: value for name, value in asdict(self).items() if name != "rows"}
        return own | {"winner": None if winner is None else winner.number, "rows": ranked}


def board(folder: SweepFolder) -> Board:
    """The leaderboard as it stands now. Raises: StorageError."""
    plan = folder.read_plan()
    end = rows.last_end(rows.read(folder.lease).events)
    return Board(
        sweep=folder.id,
        folder=folder.url,
        metric=plan.spec.metric,
        mode=plan.spec.mode,
        trials=trial_count(plan.spec),
        running=lease.is_held(folder.lease),
        takes_best=plan.job.train.load_best_model_at_end,
        rows=tuple(standing(folder, plan, trial, ended) for trial, ended in folder.read_trials()),
        failed=end["message"] if end and end["state"] == "failed" else "",
    )


def standing(folder: SweepFolder, plan: SweepPlan, trial: Trial, end: TrialEnd | None) -> Standing:
    """One trial, its end merged with what its run wrote."""
    run = folder.run(trial.number)
    points = curve(rows.read(run), plan.spec.metric)
    last = points[-1] if points else None
    own = {"number": trial.number, "run": trial.run, "params": trial.params, "curve": tuple(points)}
    own["origin"] = f"{trial.origin.run} at step {trial.origin.step:,}" if trial.origin else ""
    if end is None:
        return Standing(
            **own,
            state="running" if lease.is_held(run) else "unfinished",
            why="",
            metric=last.value if last else None,
            best=best(points, plan.spec.mode),
            step=last.step if last else 0,
            tokens=last.tokens if last else 0,
            seconds=None,
            start_s=None,
            retries=0,
        )
    return Standing(
        **own,
        state=end.state,
        why=end.why,
        metric=_finite(end.metric),
        best=_finite(end.best),
        step=end.step,
        tokens=end.tokens,
        seconds=end.seconds,
        start_s=end.start_s,
        retries=end.retries,
    )


def _finite(value: float | None) -> float | None:
    """A loss that is no number ranks as none."""
    return value if value is not None and math.isfinite(value) else None


def curve(record: Record, metric: str) -> list[Point]:
    """The metric over a run, from its rows: at each evaluation, or at each logged step for train.loss."""
    points, tokens = [], 0
    wanted = "eval" if metric == "validation.loss" else "step"
    for row in sorted(record.metrics, key=lambda one: (one["step"], one["kind"] == "eval")):
        if row["kind"] == "step":
            # A row that speaks for several steps has the tokens of the last one: steps are about alike.
            tokens += row.get("tokens", 0) * row.get("covers", {}).get("steps", 1)
        if row["kind"] == wanted and row.get("loss") is not None:
            points.append(Point(row["step"], tokens, row["loss"], row.get("time", "")))
    return points


def best(points: Iterable[Point], mode: str) -> float | None:
    """The best value after the first step."""
    values = [point.value for point in points if point.step]
    return (min if mode == "min" else max)(values, default=None)


def comparable(value: float, mode: str) -> float:
    """What schedulers and searchers are told: a loss that is no number is worse than any that is."""
    return value if math.isfinite(value) else WORST[mode]
