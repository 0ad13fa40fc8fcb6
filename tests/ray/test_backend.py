"""The local backend on a real Ray, with stand-ins for training: events, directives, failures, lost workers."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from plans import small_plan
from ray import cloudpickle

from shoal.backends.ray_local import RayLocal
from shoal.errors import ModelError, Problem, TrainingError
from shoal.plan.types import Plan
from shoal.spec.cluster import ClusterProfile
from shoal.train.world import Directive, Event, Report, Result, World

pytestmark = pytest.mark.ray
cloudpickle.register_pickle_by_value(sys.modules[__name__])

PROFILE = ClusterProfile(kind="local", workers=2)


def finished(state: str = "finished", step: int = 0, loss: float | None = None) -> Result:
    return Result(
        state=state,
        step=step,
        steps=10,
        tokens=0,
        seconds=0.0,
        base_loss=None,
        loss=loss,
        train_loss=None,
        export=None,
        gate=None,
        answers=[],
    )


@pytest.fixture(scope="module")
def ray_up() -> Iterator[None]:
    """One Ray for all tests here; each test's own backend finds it up."""
    backend = RayLocal(PROFILE)
    backend.start()
    yield
    backend.close()


def train(plan: Plan, entry, stop: threading.Event | None = None) -> tuple[Result, list[Event]]:
    events: list[Event] = []
    backend = RayLocal(PROFILE, entry)
    backend.start()
    return backend.train(plan, events.append, stop or threading.Event()), events


def sums_ranks(plan: Plan, world: World, report: Report) -> Result:
    import torch
    import torch.distributed as dist

    total = torch.tensor([float(world.rank + 1)])
    dist.all_reduce(total)
    if world.is_main:
        report({"kind": "note", "message": "summed", "threads": torch.get_num_threads()})
        for step in range(1, 4):
            report({"kind": "step", "step": step, "steps": 3, "loss": 1.0 / step})
    return finished(loss=float(total))


def test_workers_form_one_group_and_every_event_arrives_in_order(ray_up, tmp_path: Path) -> None:
    result, events = train(small_plan(tmp_path, workers=2), sums_ranks)
    assert result.loss == 3.0
    assert [event["step"] for event in events if event["kind"] == "step"] == [1, 2, 3]
    pids = next(event["pids"] for event in events if "pids" in event)
    assert sorted(pids) == [0, 1]
    assert os.getpid() not in pids.values()
    assert next(event["threads"] for event in events if event.get("message") == "summed") == 1


def refuses(plan: Plan, world: World, report: Report) -> Result:
    if world.is_main:
        report({"kind": "note", "message": "tried"})
    if world.rank == 1:
        raise ModelError(Problem("model.base", "has no lm_head", "use a causal language model"))
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.zeros(1))
    return finished()


def test_a_users_mistake_comes_out_as_itself_and_is_not_tried_again(ray_up, tmp_path: Path) -> None:
    events: list[Event] = []
    backend = RayLocal(PROFILE, refuses)
    backend.start()
    with pytest.raises(ModelError, match="has no lm_head; use a causal") as caught:
        backend.train(small_plan(tmp_path, workers=2), events.append, threading.Event())
    assert caught.value.problems[0].where == "model.base"
    assert sum(event.get("message") == "tried" for event in events) == 1


def has_a_bug(plan: Plan, world: World, report: Report) -> Result:
    if world.is_main:
        report({"kind": "note", "message": "tried"})
    return {}["missing"]


def test_a_bug_of_ours_is_not_tried_again_and_keeps_its_traceback(ray_up, tmp_path: Path) -> None:
    events: list[Event] = []
    backend = RayLocal(PROFILE, has_a_bug)
    backend.start()
    with pytest.raises(KeyError) as caught:
        backend.train(small_plan(tmp_path, workers=2), events.append, threading.Event())
    assert "has_a_bug" in "".join(caught.value.__notes__)
    assert sum(event.get("message") == "tried" for event in events) == 1


def dies_once(plan: Plan, world: World, report: Report) -> Result:
    import torch
    import torch.distributed as dist

    marker = Path(plan.storage.cache)
    if world.rank == 1 and not marker.exists():
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text("died")
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.zeros(1))
    return finished(step=7)


def test_a_killed_worker_is_replaced_and_announced(ray_up, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result, events = train(small_plan(tmp_path, workers=2), dies_once)
    told = capfd.readouterr()
    assert told.out + told.err == "", "the display alone speaks"
    assert result.step == 7
    groups = [event["pids"] for event in events if "pids" in event]
    assert len(groups) == 2
    assert groups[0] != groups[1]
    assert any("worker 1 died" in event.get("message", "") and "try 1 of 2" in event["message"] for event in events)


def always_dies(plan: Plan, world: World, report: Report) -> Result:
    print("my last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    return finished()


def test_workers_that_keep_dying_end_the_run_with_an_answer(ray_up, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="more often than max_failures allows") as caught:
        train(small_plan(tmp_path, workers=2, max_failures=0), always_dies)
    assert "logs" in str(caught.value)
    assert "last words: my last words" in str(caught.value)


def runs_until_told(plan: Plan, world: World, report: Report) -> Result:
    import torch
    import torch.distributed as dist

    for step in range(1, 10_000):
        wish = Directive.CONTINUE
        if world.is_main:
            wish = report({"kind": "step", "step": step, "steps": 10_000, "loss": 1.0})
        told = torch.tensor([float(wish == Directive.STOP)])
        dist.all_reduce(told)
        if told:
            return finished("stopped", step)
        time.sleep(0.02)
    return finished()


def test_stop_reaches_every_worker_and_the_run_leaves_in_order(ray_up, tmp_path: Path) -> None:
    stop = threading.Event()
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        if event.get("step") == 3:
            stop.set()

    backend = RayLocal(PROFILE, runs_until_told)
    backend.start()
    result = backend.train(small_plan(tmp_path, workers=2), on_event, stop)
    assert result.state == "stopped"
    assert 3 < result.step < 10_000


def doubles(number: int) -> Iterator[int]:
    if number < 0:
        raise ModelError(Problem("number", "is negative"))
    yield from (number, 2 * number)


def test_all_that_comes_of_tasks_comes_out_and_their_answers_as_well(ray_up) -> None:
    backend = RayLocal(PROFILE)
    backend.start()
    assert list(backend.map(doubles, [])) == []
    assert sorted(backend.map(doubles, range(10, 60))) == sorted([*range(10, 60), *range(20, 120, 2)])
    with pytest.raises(ModelError, match="number: is negative"):
        list(backend.map(doubles, [1, -1]))


ASKED_TO_LEAVE = """
import os, signal, time
from shoal.backends.ray_local import RayLocal
from shoal.spec.cluster import ClusterProfile
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))
backend = RayLocal(ClusterProfile(kind="local"))
backend.start()
backend.up.result()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(4)
print(*heard)
backend.close()
"""


def test_a_driver_that_is_asked_to_leave_has_all_the_time_that_it_needs() -> None:
    """Ray's own handler of SIGTERM prints a trace, and aborts the process 3 s later."""
    done = subprocess.run([sys.executable, "-c", ASKED_TO_LEAVE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "SIGTERM", "")


def waits(plan: Plan, world: World, report: Report) -> Result:
    if world.is_main:
        report({"kind": "note", "message": "waiting"})
    time.sleep(600)
    return finished()


def test_a_ray_that_lost_its_own_processes_is_answered_in_one_line(ray_up, tmp_path: Path) -> None:
    # The last test here: this Ray is not whole any more.
    def on_event(event: Event) -> None:
        if event.get("message") == "waiting":
            controllers = [
                one for one in psutil.Process().children(recursive=True) if one.name().startswith("ray::TrainCont")
            ]
            assert controllers
            for controller in controllers:
                controller.kill()

    backend = RayLocal(PROFILE, waits)
    backend.start()
    with pytest.raises(TrainingError, match=r"^ray: .*; `shoal resume` goes on with what was saved; .*logs$"):
        backend.train(small_plan(tmp_path, workers=2), on_event, threading.Event())
