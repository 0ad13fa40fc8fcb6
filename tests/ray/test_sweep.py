"""Sweeps on a real Ray. All but the first train a stand-in, whose steps sleep and whose loss follows from the params."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stand_in_trial as stand_in
from jobs import job, profile, write_rows
from ray import cloudpickle

from shoal import __version__, launch
from shoal.backends.inline import Inline
from shoal.backends.ray_local import RayLocal
from shoal.plan.types import Plan
from shoal.spec.cluster import ClusterProfile
from shoal.spec.sweep import SweepSpec
from shoal.storage import Storage
from shoal.train.world import Event
from shoal.tune.board import Board
from shoal.tune.folder import SWEEP_VERSION, SweepFolder, SweepPlan
from shoal.tune.space import apply
from shoal.tune.sweep import resume_sweep, run_sweep

pytestmark = pytest.mark.ray
cloudpickle.register_pickle_by_value(stand_in)

SUPPORT = Path(__file__).parent.parent / "support"
RATE = "optimizer.learning_rate"
RATES = {RATE: {"loguniform": [1e-4, 1e-1]}}
KINDS = [stand_in.WELL, stand_in.DIES, stand_in.TOO_LARGE, stand_in.MUCH_TOO_LARGE, stand_in.BREAKS]


@pytest.fixture(scope="module")
def ray_up() -> Iterator[None]:
    """One Ray for all tests here."""
    backend = RayLocal(ClusterProfile(kind="local", workers=2))
    backend.start()
    yield
    backend.close()


def sweep_plan(
    folder: Path, model: Path, space: dict[str, Any], train: dict[str, Any] | None = None, **sweep: Any
) -> SweepPlan:
    spec = SweepSpec.model_validate({"space": space, "workers": 1, **sweep})
    train = {"num_train_epochs": 40, "max_steps": stand_in.STEPS, "eval_steps": stand_in.EVERY, **(train or {})}
    spoken = job(model, write_rows(folder / "rows.jsonl"), train=train)
    made = "2026-01-01T00:00:00+00:00"
    return SweepPlan(version=SWEEP_VERSION, shoal=__version__, sweep_id="sweep", made=made, spec=spec, job=spoken)


class Heard(list[Event]):
    """All events of a sweep; `at` is called with each."""

    def __init__(self, at: Any = lambda event: None) -> None:
        self.at = at

    def __call__(self, event: Event) -> None:
        self.append(event)
        self.at(event)

    def of(self, kind: str, trial: int | None = None) -> list[Event]:
        return [one for one in self if one["kind"] == kind and trial in (None, one.get("trial"))]


def swept(
    folder: Path, plan: SweepPlan, entry: Any = stand_in.steps_through, at: Any = lambda event: None
) -> tuple[Board, Heard]:
    place = profile(folder, 2, "local")
    backend, heard = RayLocal(place, entry), Heard(at)
    backend.start()
    return run_sweep(plan, place, Storage(), heard, threading.Event(), backend), heard


def resumed(folder: Path, stop: threading.Event | None = None, at: Any = lambda event: None) -> tuple[Board, Heard]:
    place = profile(folder, 2, "local")
    backend, heard = RayLocal(place, stand_in.steps_through), Heard(at)
    backend.start()
    sweep = SweepFolder.of(Storage(), place.storage.runs, "sweep")
    return resume_sweep(sweep, place, Storage(), heard, stop or threading.Event(), backend), heard


def test_asha_stops_the_worse_trials_and_the_best_one_alone_gives_the_same_loss(
    ray_up, tmp_path: Path, tiny_model: Path
) -> None:
    """Real training; two trials at once; rates so far apart that nobody can mistake the order."""
    rates = [3e-2, 1e-5, 2e-5, 1e-2, 3e-5]
    plan = sweep_plan(
        tmp_path, tiny_model, {RATE: {"grid": rates}}, search="grid", scheduler="asha", asha={"reduction_factor": 2}
    )
    board, heard = swept(tmp_path, plan, entry=None)
    states = {row.params[RATE]: row.state for row in board.rows}
    assert list(states) == rates, "numbered as they were suggested"
    assert states[3e-2] == "finished" and states[3e-5] == "stopped"
    assert Counter(states.values()).keys() == {"finished", "stopped"}
    stopped = next(row for row in board.rows if row.params[RATE] == 3e-5)
    assert stopped.why.startswith("asha: ") and stopped.step < stand_in.STEPS
    assert not [one for one in heard.of("phase") if one["phase"] == "preparing" and "trial" in one], "prepared once"
    assert len(list((tmp_path / "prepared").iterdir())) == 1
    groups = {one["trial"]: one["pids"][0] for one in heard.of("note") if "pids" in one}
    assert len(set(groups.values())) == 2 and len(groups) == 5, "two groups of workers did all trials"
    winner = board.winner
    assert winner is not None and winner.metric is not None
    again = launch.run(
        apply(plan.job, winner.params), profile(tmp_path), Storage(), Inline(), lambda event: None, threading.Event()
    )
    assert again.result.loss == pytest.approx(winner.metric, abs=1e-4)


def test_a_trial_that_fails_is_alone_in_it_and_one_too_large_is_tried_with_half_the_micro_batch(
    ray_up, tmp_path: Path, tiny_model: Path
) -> None:
    plan = sweep_plan(
        tmp_path, tiny_model, {"train.seed": {"grid": KINDS}}, {"batch_size": 4, "micro_batch_size": 4}, search="grid"
    )
    board, heard = swept(tmp_path, plan)
    rows = {row.params["train.seed"]: row for row in board.rows}
    assert {kind: row.state for kind, row in rows.items()} == {
        stand_in.WELL: "finished",
        stand_in.DIES: "finished",
        stand_in.TOO_LARGE: "finished",
        stand_in.MUCH_TOO_LARGE: "failed",
        stand_in.BREAKS: "failed",
    }
    [died] = heard.of("failure", rows[stand_in.DIES].number)
    assert died["cause"] == "process died" and not died["final"]
    steps = [one["step"] for one in heard.of("eval", rows[stand_in.DIES].number)]
    assert steps == sorted({*steps}), "it went on from its checkpoint"
    large = rows[stand_in.TOO_LARGE]
    made = Plan.model_validate_json(Path(tmp_path / "runs" / large.run / "plan.json").read_text())
    assert (large.retries, made.layout.micro_batch_size, made.layout.accumulation) == (1, 2, 2)
    assert made.layout.deepspeed["train_micro_batch_size_per_gpu"] == 2
    assert rows[stand_in.MUCH_TOO_LARGE].retries == 1
    assert "memory: 2 rows do not fit" in rows[stand_in.MUCH_TOO_LARGE].why
    assert rows[stand_in.BREAKS].why == "TypeError: a bug"


def test_a_killed_and_a_stopped_sweep_go_on_and_no_trial_is_lost_or_repeated(
    ray_up, tmp_path: Path, tiny_model: Path
) -> None:
    plan = sweep_plan(tmp_path, tiny_model, RATES, trials=6)
    _kill_half_way(tmp_path, plan)
    before = _suggested(tmp_path)
    done = _ends(tmp_path)
    assert done and len(done) < 6

    stop = threading.Event()
    board, heard = resumed(tmp_path, stop, at=lambda event: stop.set() if _new_end(event, done) else None)
    assert 0 < board.count("finished") < 6
    assert board.count("unfinished") >= 1
    assert not heard.of("step", min(done)), "a trial that had ended trains no more"

    board, heard = resumed(tmp_path)
    assert [row.state for row in board.rows] == ["finished"] * 6
    assert {number: _suggested(tmp_path)[number] for number in before} == before
    for row in board.rows:
        assert row.metric == pytest.approx(stand_in.loss(row.params[RATE], stand_in.STEPS))
        steps = [point.step for point in row.curve]
        assert steps == list(range(stand_in.EVERY, stand_in.STEPS + 1, stand_in.EVERY))
    assert all(_ends(tmp_path)[number] == end for number, end in done.items()), "ends are written once"
    _, heard = resumed(tmp_path)
    assert any("finished already" in one.get("message", "") for one in heard)


def test_under_pbt_the_worst_go_on_with_the_weights_of_the_best(ray_up, tmp_path: Path, tiny_model: Path) -> None:
    plan = sweep_plan(
        tmp_path, tiny_model, {RATE: {"loguniform": [1e-5, 1e-1]}}, trials=4, scheduler="pbt",
        pbt={"perturbation_interval": 0.25, "quantile_fraction": 0.5, "resample_probability": 0}, seed=5,
    )  # fmt: skip
    board, _ = swept(tmp_path, plan)
    first = [row for row in board.rows if row.number <= 4]
    later = [row for row in board.rows if row.number > 4]
    assert len(first) == 4 and later, "somebody took over somebody's weights"
    assert sum(row.state == "finished" for row in board.rows) == 4, "as many finish as were suggested"
    for row in later:
        made = Plan.model_validate_json(Path(tmp_path / "runs" / row.run / "plan.json").read_text())
        parent = made.trajectory.parent
        assert parent is not None and parent.step >= stand_in.EVERY
        assert all(point.step > parent.step for point in row.curve)
        assert made.trajectory.optimizer.learning_rate == row.params[RATE]
    replaced = [row for row in board.rows if row.why.startswith("pbt: ")]
    assert len(replaced) == len(later) and {row.state for row in replaced} == {"stopped"}


def test_a_spent_budget_ends_the_sweep(ray_up, tmp_path: Path, tiny_model: Path) -> None:
    budget = int(2.5 * stand_in.STEPS)
    plan = sweep_plan(tmp_path, tiny_model, RATES, trials=20, budget={"steps": budget})
    board, heard = swept(tmp_path, plan)
    assert len(board.rows) < 20
    assert {row.state for row in board.rows} == {"finished", "stopped"}
    assert {row.why for row in board.rows if row.state == "stopped"} == {"budget"}
    assert sum(row.step for row in board.rows) >= budget
    assert any("the budget is spent" in one.get("message", "") for one in heard)
    board, heard = resumed(tmp_path)
    assert not heard.of("step"), "nothing goes on"


def _new_end(event: Event, done: dict[int, Any]) -> bool:
    return event["kind"] == "trial_end" and event["trial"] not in done


def _suggested(folder: Path) -> dict[int, str]:
    found = (folder / "runs" / "sweep" / "trials").glob("*.json")
    return {int(one.name[:4]): one.read_text() for one in found if "end" not in one.name}


def _ends(folder: Path) -> dict[int, str]:
    return {int(one.name[:4]): one.read_text() for one in (folder / "runs" / "sweep" / "trials").glob("*.end.json")}


DRIVER = """
import sys, threading
from pathlib import Path
sys.path += {paths!r}
import stand_in_trial
from ray import cloudpickle
cloudpickle.register_pickle_by_value(stand_in_trial)
from jobs import profile
from shoal.backends.ray_local import RayLocal
from shoal.storage import Storage
from shoal.tune.folder import SweepPlan
from shoal.tune.sweep import run_sweep
folder = Path({folder!r})
place = profile(folder, 2, "local")
backend = RayLocal(place, stand_in_trial.steps_through)
backend.start()
plan = SweepPlan.model_validate_json((folder / "plan.json").read_text())
run_sweep(plan, place, Storage(), lambda event: None, threading.Event(), backend)
"""


def _kill_half_way(folder: Path, plan: SweepPlan) -> None:
    """A driver of its own is killed as soon as a trial has ended and a later one has a checkpoint."""
    (folder / "plan.json").write_text(plan.model_dump_json(exclude_unset=True))
    program = DRIVER.format(paths=[str(SUPPORT)], folder=str(folder))
    driver = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while not (_ends(folder) and _midway(folder)):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(driver.pid, signal.SIGKILL)
    finally:
        driver.kill()
        driver.wait()


def _midway(folder: Path) -> bool:
    """Whether a trial that has not ended has a checkpoint."""
    ended = {f"sweep-{number:04d}" for number in _ends(folder)}
    saved = {one.parents[2].name for one in (folder / "runs").glob("sweep-*/checkpoints/*/manifest.json")}
    return bool(saved - ended)
