"""The pure parts of a sweep that runs: what a trial's events amount to, budgets, spaces and schedules in Tune's terms."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plans import small_plan
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, PopulationBasedTraining
from sweeps import sweep_plan

from shoal.backends.inline import Inline
from shoal.plan.layout import halved
from shoal.plan.types import Parent
from shoal.runs import TRIAL_ID, checked_id
from shoal.spec.cluster import ClusterProfile
from shoal.storage import Storage
from shoal.tune import search
from shoal.tune.board import Point
from shoal.tune.folder import Origin, SweepFolder, Trial, TrialEnd
from shoal.tune.known import look_up, successor
from shoal.tune.pace import Pace
from shoal.tune.recall import Recalling
from shoal.tune.sitting import Sitting
from shoal.tune.slot import ClusterSlot
from shoal.tune.watch import Watch

PACE = Pace(tokens=900, steps=9, reports=9)


def sitting(after: Point | None = None, metric: str = "validation.loss") -> Sitting:
    return Sitting(
        job=sweep_plan().job, profile=ClusterProfile(kind="local"), storage=Storage(), backend=Inline(), run_id="run",
        metric=metric, amend=lambda plan: plan, after=after, tell=lambda event: None,
    )  # fmt: skip


def step(number: int, tokens: int = 100) -> dict[str, Any]:
    return {"kind": "step", "step": number, "steps": 9, "loss": 3.0, "tokens": tokens}


def evaluation(number: int, loss: float = 2.0) -> dict[str, Any]:
    return {"kind": "eval", "step": number, "loss": loss}


def points(found: Sitting) -> list[Point]:
    return [found.points.get() for _ in range(found.points.qsize())]


def test_tokens_are_counted_once_when_steps_come_again() -> None:
    found = sitting()
    for event in (evaluation(0), step(1), step(2), evaluation(2), step(3), step(2), step(3), step(4), evaluation(4)):
        found.hear(event)
    assert points(found) == [Point(2, 200, 2.0), Point(4, 400, 2.0)]
    assert (found.step, found.tokens) == (4, 400)


def test_waiting_for_room_is_no_time_of_the_trial() -> None:
    waited = [40.0]
    found = replace(sitting(), waited_s=lambda: waited[0])
    found.began -= 100.0
    waited[0] += 70.0
    assert 30.0 <= found.seconds < 70.0


def test_what_was_told_before_is_not_told_again() -> None:
    found = sitting(after=Point(4, 400, 2.0))
    for event in (step(3), step(4), evaluation(4), step(5), evaluation(5, 1.5)):
        found.hear(event)
    assert points(found) == [Point(5, 500, 1.5)]


def test_steps_between_the_last_point_and_the_checkpoint_are_counted() -> None:
    found = sitting(after=Point(4, 400, 2.0))
    for event in (step(7), step(8), evaluation(8)):
        found.hear(event)
    assert points(found) == [Point(8, 800, 2.0)]


def test_the_training_loss_is_told_at_logged_steps(tmp_path: Path) -> None:
    found = sitting(metric="train.loss")
    found.hear({"kind": "run", "plan": small_plan(tmp_path, logging_steps=3)})
    for number in range(1, 10):
        found.hear(step(number))
    assert [point.step for point in points(found)] == [3, 6, 9]


@pytest.mark.parametrize(("micro", "rows", "expected"), [(8, 16, (4, 4)), (3, 6, (2, 3)), (2, 5, (1, 5))])
def test_half_the_micro_batch_has_the_same_rows_in_more_passes(
    tmp_path: Path, micro: int, rows: int, expected: tuple[int, int]
) -> None:
    placed = small_plan(tmp_path).layout.model_copy(update={"micro_batch_size": micro})
    now = halved(placed, rows)
    assert now is not None and (now.micro_batch_size, now.accumulation) == expected
    assert now.micro_batch_size * now.accumulation - now.idle_rows == rows
    assert now.deepspeed["gradient_accumulation_steps"] == now.accumulation
    assert halved(now.model_copy(update={"micro_batch_size": 1}), rows) is None


def test_a_trials_id_names_its_sweep_and_may_be_longer_than_one_that_is_given() -> None:
    sweep = "a" * 63
    match = TRIAL_ID.fullmatch(checked_id(f"{sweep}-0012"))
    assert match and (match["sweep"], int(match["number"])) == (sweep, 12)


def test_a_parent_is_part_of_what_is_learnt(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    digests = {plan.trajectory_digest}
    for parent in (Parent(run="a", step=4), Parent(run="a", step=8), Parent(run="b", step=4)):
        trajectory = plan.trajectory.model_copy(update={"parent": parent})
        digests.add(plan.model_copy(update={"trajectory": trajectory}).trajectory_digest)
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("budget", "over"),
    [
        ({"tokens": 301}, False),
        ({"tokens": 300}, True),
        ({"steps": 30}, True),
        ({"hours": 2.1}, False),
        ({"hours": 2.0}, True),
        ({"cost": 8.1}, False),
        ({"cost": 8.0}, True),
        ({}, False),
    ],
)
def test_a_budget_is_of_all_trials_together(tmp_path: Path, budget: dict[str, Any], over: bool) -> None:
    folder = SweepFolder.of(Storage(), str(tmp_path), "sweep")
    spec = sweep_plan(budget=budget).spec
    watch = Watch(spec, folder, None, search.search(spec, [], 2), 4.0, 60.0, lambda event: None, threading.Event())
    for number in (1, 2, 3):
        watch._spend({"trial": number, "step": 10, "tokens": 100, "seconds": 2400})
    assert watch._over_budget() == over


def test_a_trial_waits_for_room_for_as_long_as_others_train() -> None:
    slot = ClusterSlot(ClusterProfile(kind="ray", wait_s=30))
    assert slot.is_too_long(30) and not slot.is_too_long(29)
    slot.still_s = lambda: 29.0
    assert not slot.is_too_long(1000)
    slot.stop.set()
    assert slot.is_too_long(1)


def test_pbt_keeps_inside_the_space() -> None:
    space = {
        "optimizer.learning_rate": {"loguniform": [1e-4, 1e-2]},
        "optimizer.warmup_steps": {"randint": [0, 10]},
        "optimizer.lr_scheduler_type": ["cosine", "linear"],
        "optimizer.weight_decay": {"quniform": [0.0, 0.4, 0.1]},
    }
    spec = sweep_plan(space, scheduler="pbt").spec
    given = {"optimizer.learning_rate": 1.2e-2, "optimizer.warmup_steps": 11, "optimizer.lr_scheduler_type": "linear"}
    inside = {**given, "optimizer.learning_rate": 1e-2, "optimizer.warmup_steps": 9, "optimizer.weight_decay": 0.2}
    assert search.within(spec, {**given, "optimizer.weight_decay": 0.24}) == inside


def test_schedulers_count_in_tokens() -> None:
    asha = search.scheduler(sweep_plan(scheduler="asha").spec, PACE)
    assert isinstance(asha, Recalling) and isinstance(asha.own, ASHAScheduler) and asha.own._time_attr == "tokens"
    assert [rung for rung, _ in asha.own._brackets[0]._rungs] == [900, 300, 100]
    median = search.scheduler(sweep_plan(scheduler="median").spec, PACE)
    assert isinstance(median, Recalling) and isinstance(median.own, MedianStoppingRule)
    assert median.own._grace_period == 225
    rates = {"optimizer.learning_rate": {"loguniform": [1e-4, 1e-2]}}
    pbt = search.scheduler(sweep_plan(rates, scheduler="pbt").spec, PACE)
    assert isinstance(pbt, PopulationBasedTraining) and pbt._perturbation_interval == 225
    assert isinstance(search.scheduler(sweep_plan(scheduler="none").spec, PACE), FIFOScheduler)


def test_a_grid_is_gone_through_once() -> None:
    space = {"optimizer.learning_rate": [1e-4, 1e-3], "train.seed": [1, 2, 3]}
    assert search.samples(sweep_plan(space, search="grid", trials=None).spec, 6) == 1
    assert search.samples(sweep_plan(space, search="random").spec, 6) == 6


def test_who_stands_at_a_place_is_the_last_that_took_it(tmp_path: Path) -> None:
    folder = SweepFolder.of(Storage(), str(tmp_path), "sweep")
    first = Trial(2, {"a": 1}, folder.run_id(2), "2026-01-01T00:00:00+00:00")
    folder.write_trial(first)
    origin = Origin("sweep-0001", 8, 800)
    new = successor(folder, 5, 2, {"a": 3}, origin)
    assert (new.trial.number, new.trial.place, new.start) == (5, 2, Point(8, 0, 0.0))
    assert successor(folder, 5, 1, {"a": 4}, origin).trial.number == 6
    assert look_up(folder, 2, "validation.loss", population=True).trial == new.trial
    assert look_up(folder, 2, "validation.loss", population=False).trial == first
    folder.write_end(replace(TrialEnd(2, "stopped", "pbt", 1.0, 1.0, 8, 800, 1.0, None, 0)))
    assert look_up(folder, 2, "validation.loss", population=False).end is not None
