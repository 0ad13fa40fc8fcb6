"""A group that hangs, or is asked to leave, on a real Ray: who is named, what is counted, and that the losses stay."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import job, planned, profile, write_rows
from plans import small_plan
from ray import cloudpickle

from shoal import launch
from shoal.backends.ray_local import RayLocal
from shoal.plan.types import Plan
from shoal.runs import RunFolder
from shoal.spec.cluster import ClusterProfile
from shoal.storage import Storage
from shoal.train import entry
from shoal.train.journal import Journal
from shoal.train.voice import Voice
from shoal.train.world import Directive, Event, Report, Result, World

pytestmark = pytest.mark.ray
cloudpickle.register_pickle_by_value(sys.modules[__name__])

HANG_TIMEOUT_S = 4.0


@pytest.fixture(scope="module")
def ray_up() -> Iterator[None]:
    """One Ray for all tests here; each test's own backend finds it up."""
    backend = RayLocal(ClusterProfile(kind="local", workers=2))
    backend.start()
    yield
    backend.close()


def hangs_twice(plan: Plan, world: World, report: Report) -> Result:
    """Steps in lockstep. The first group is stopped from outside, in the second rank 0 sticks in its own code."""
    import torch
    import torch.distributed as dist

    groups = Path(plan.storage.cache)
    if world.is_main:
        groups.parent.mkdir(parents=True, exist_ok=True)
        with groups.open("a") as file:
            file.write(".")
    dist.barrier()
    group = len(groups.read_text())
    for step in range(1, 200 if group == 1 else 6):
        world.pulse.mark("computing")
        if group == 2 and step == 5 and world.is_main:
            sticks_here()
        with world.pulse.collective():
            dist.all_reduce(torch.zeros(1))
        world.pulse.mark(step=step)
        time.sleep(0.1)
        if world.is_main:
            report({"kind": "step", "step": step, "steps": 5, "loss": 1.0})
    return Result(
        state="finished", step=5, steps=5, tokens=0, seconds=0.0, base_loss=None, loss=None, train_loss=None,
        export=None, gate=None, answers=[],
    )  # fmt: skip


def sticks_here() -> None:
    time.sleep(600)


def test_a_rank_that_hangs_is_named_killed_and_replaced(ray_up, tmp_path: Path) -> None:
    pids: list[dict[int, int]] = []
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        if "pids" in event:
            pids.append(event["pids"])
        if event["kind"] == "step" and event["step"] == 30 and len(pids) == 1:
            os.kill(pids[0][1], signal.SIGSTOP)

    backend = RayLocal(ClusterProfile(kind="local", workers=2), hangs_twice)
    backend.start()
    plan = small_plan(tmp_path, workers=2, hang_timeout_s=HANG_TIMEOUT_S)
    assert backend.train(plan, on_event, threading.Event()).step == 5
    assert len(pids) == 3
    stopped, stuck = [event for event in events if event["kind"] == "failure"]
    assert (stopped["cause"], stopped["rank"], stopped["node"]) == ("hung", 1, os.uname().nodename)
    assert 1 <= stopped["step"] < 200
    assert "its whole process stands, stopped by a signal" in stopped["message"] and "try 1 of 2" in stopped["message"]
    assert (stuck["cause"], stuck["rank"], stuck["step"]) == ("hung", 0, 4)
    assert "hangs on" in stuck["message"] and "computing" in stuck["message"] and "try 2 of 2" in stuck["message"]
    assert "sticks_here" in stuck["stack"]


def steps(run: RunFolder) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in Path(run.metrics).read_text().splitlines()]
    return [row for row in rows if row["kind"] == "step"]


def test_a_worker_that_is_asked_to_leave_saves_and_the_run_goes_on_as_if_nothing_had_been(
    ray_up, tmp_path: Path, tiny_model: Path
) -> None:
    spec = job(
        tiny_model,
        write_rows(tmp_path / "rows.jsonl"),
        train={"num_train_epochs": 20, "max_steps": 16, "eval_steps": 1000},
        checkpoint={"every_steps": 1000, "keep": 3},
    )
    untouched = planned(spec, profile(tmp_path), "untouched-20260101-000000-0000")
    alone = RunFolder(Storage(), untouched.storage.run)
    world = World()
    voice = Voice(lambda event: Directive.CONTINUE, Journal(untouched, alone, Storage()), world.pulse)
    entry.Worker(untouched, world, Storage(), alone, voice).load().run()
    voice.close()

    place = profile(tmp_path, 2, "local").model_copy(update={"max_failures": 0, "max_preemptions": 1})
    pids: list[dict[int, int]] = []

    def on_event(event: Event) -> None:
        if "pids" in event:
            pids.append(event["pids"])
        if event["kind"] == "step" and event["step"] == 3 and len(pids) == 1:
            os.kill(pids[0][1], signal.SIGTERM)

    backend = RayLocal(place)
    backend.start()
    outcome = launch.run(spec, place, Storage(), backend, on_event, threading.Event())
    assert (outcome.result.state, outcome.result.step) == ("finished", 16)
    assert len(pids) == 2

    rows = [json.loads(line) for line in Path(outcome.folder.events).read_text().splitlines()]
    [left] = [row for row in rows if row["kind"] == "failure"]
    assert (left["cause"], left["rank"], left["attempt"]) == ("preempted", 1, 1)
    assert "worker 1 was asked to leave by SIGTERM" in left["message"] and "preemption 1 of 1" in left["message"]
    first = [row["step"] for row in steps(outcome.folder) if row["attempt"] == 1]
    assert first == list(range(1, left["step"] + 1)) and 3 <= left["step"] < 16, "no step is repeated"
    found, expected = ({row["step"]: row["loss"] for row in steps(run)} for run in (outcome.folder, alone))
    assert list(found) == list(expected)
    assert max(abs(found[step] - expected[step]) for step in expected) < 1e-4
