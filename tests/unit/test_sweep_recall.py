"""A scheduler that is left and made anew judges as one that never was."""

import random
from dataclasses import dataclass, field

import pytest
from ray.tune.schedulers import TrialScheduler
from sweeps import sweep_plan

from shoal.tune import search
from shoal.tune.board import Point
from shoal.tune.folder import Trial, TrialEnd
from shoal.tune.known import Known
from shoal.tune.pace import Pace

EVERY, STEPS, TOKENS = 2, 18, 100
PACE = Pace(tokens=STEPS * TOKENS, steps=STEPS, reports=STEPS // EVERY)


class Told:
    """A trial as Tune hands it to a scheduler."""

    def __init__(self, number: int) -> None:
        self.trial_id, self.number = f"{random.getrandbits(32):x}", number

    def __str__(self) -> str:
        return f"{self.number:04d}"


@dataclass
class Running:
    """One scheduler over trials whose values are given, each point at its turn."""

    scheduler: str
    values: list[list[float]]
    known: list[Known] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.own = search.scheduler(sweep_plan(scheduler=self.scheduler).spec, PACE, self.known)
        self.trials = [Told(number) for number in range(1, len(self.values) + 1)]
        for trial in self.trials:
            self.own.on_trial_add(None, trial)  # pyright: ignore[reportArgumentType]

    def tell(self, number: int, step: int) -> str:
        value = self.values[number - 1][step // EVERY - 1]
        result = {"step": step, "tokens": step * TOKENS, "metric": value}
        if step == STEPS:  # the last point is told with the trial's end
            self.own.on_trial_complete(None, self.trials[number - 1], result)  # pyright: ignore[reportArgumentType]
            return TrialScheduler.STOP
        return self.own.on_trial_result(None, self.trials[number - 1], result)  # pyright: ignore[reportArgumentType]


def known(number: int, points: list[Point], is_over: bool) -> Known:
    end = TrialEnd(number, "stopped", "", None, None, points[-1].step, 0, 1.0, None, 0) if is_over else None
    return Known(Trial(number, {}, "", ""), end, tuple(points), 1.0, False)


@pytest.mark.parametrize("scheduler", ["asha", "median"])
@pytest.mark.parametrize("seed", range(20))
def test_a_resumed_sweep_judges_as_one_that_was_never_left(scheduler: str, seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randint(2, 9)
    values = [[draw.uniform(1, 9) for _ in range(STEPS // EVERY)] for _ in range(count)]
    untouched, points, over = Running(scheduler, values), {}, set()
    verdicts: list[tuple[int, int, str]] = []
    while len(over) < count:
        number = draw.choice([one for one in range(1, count + 1) if one not in over])
        step = EVERY * (1 + len(points.setdefault(number, [])))
        points[number].append(Point(step, step * TOKENS, values[number - 1][step // EVERY - 1], f"{len(verdicts):06d}"))
        verdicts.append((number, step, untouched.tell(number, step)))
        if verdicts[-1][2] == TrialScheduler.STOP:
            over.add(number)

    cut = draw.randint(1, len(verdicts))
    before, after = verdicts[:cut], verdicts[cut:]
    unheard = draw.random() < 0.5  # the sweep was killed before the last verdict was written down
    last, step, verdict = before[-1]
    if unheard and step < STEPS - EVERY and verdict == TrialScheduler.STOP:  # and its run was ahead of it
        points[last].append(Point(step + EVERY, (step + EVERY) * TOKENS, 5.0, f"{cut - 1:06d}"))
    told = {
        number: known(
            number,
            [one for one in points[number] if int(one.time) < cut],
            any(each[0] == number and each[2] == TrialScheduler.STOP for each in before[: cut - unheard]),
        )
        for number in {one for one, _, _ in before}
    }
    resumed = Running(scheduler, values, list(told.values()))
    for one in draw.sample(sorted(told), len(told)):
        for point in told[one].points:
            said = resumed.tell(one, point.step) if point.step < STEPS else TrialScheduler.STOP
            if told[one].end is not None:
                assert said == TrialScheduler.CONTINUE or point.step == STEPS, "who has ended is not judged again"
            elif (one, point.step) == (last, step) and scheduler == "asha":
                assert said == verdict
    stopped = {one for one, _, verdict in before if verdict == TrialScheduler.STOP}
    assert [(number, step, resumed.tell(number, step)) for number, step, _ in after] == after
    assert not stopped & {number for number, _, _ in after}


def test_who_leaves_without_a_value_does_not_count() -> None:
    """Tune's median rule would fail at the next trial's point."""
    running = Running("median", [[value] * 9 for value in (1.0, 2.0, 3.0, 4.0)])
    for number in (1, 2, 3):
        running.tell(number, 10)
        left = {"step": 11, "tokens": 1100, "left": "the sweep was stopped"}
        running.own.on_trial_complete(None, running.trials[number - 1], left)  # pyright: ignore[reportArgumentType]
    assert running.tell(4, 10) == TrialScheduler.STOP


def test_a_loss_that_is_no_number_is_recalled_as_the_worst() -> None:
    points = [Point(2, 200, float("nan"), "0")]
    running = Running("asha", [[5.0] * 9] * 2, [known(1, points, is_over=True)])
    running.tell(2, 2)
    first = running.own.own._brackets[0]._rungs[-1][1]  # pyright: ignore[reportAttributeAccessIssue]
    assert sorted(first.values()) == [-1e30, -5.0]
