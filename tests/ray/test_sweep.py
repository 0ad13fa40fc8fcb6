"""Sweeps on a real Ray. All but the first train a stand-in, whose steps sleep and whose loss follows from the params."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import stand_in_trial as stand_in
from jobs import job, profile, write_rows
from ray import cloudpickle
from submitting import MAPPED

from shoal import __version__, launch
from shoal.backends.inline import Inline
from shoal.backends.ray_cluster import RayCluster
from shoal.backends.ray_local import RayLocal
from shoal.errors import ClusterError
from shoal.plan.types import Plan
from shoal.spec.cluster import ClusterProfile, ResourcesSpec, S3Spec
from shoal.spec.sweep import SweepSpec
from shoal.storage import Storage
from shoal.store import connection, folder_of
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


@dataclass(frozen=True)
class Place:
    """Where a test's sweep is; the rows and what is prepared of them are shared by all."""

    folder: Path
    shared: Path
    model: Path

    @property
    def profile(self) -> ClusterProfile:
        place = profile(self.shared, 2, "local")
        return place.model_copy(
            update={"storage": place.storage.model_copy(update={"runs": str(self.folder / "runs")})}
        )

    @property
    def sweep(self) -> SweepFolder:
        return SweepFolder.of(Storage(), self.profile.storage.runs, "sweep")

    def plan(self, space: dict[str, Any], train: dict[str, Any] | None = None, **sweep: Any) -> SweepPlan:
        spec = SweepSpec.model_validate({"space": space, "workers": 1, **sweep})
        train = {"num_train_epochs": 40, "max_steps": stand_in.STEPS, "eval_steps": stand_in.EVERY, **(train or {})}
        made = "2026-01-01T00:00:00+00:00"
        spoken = job(self.model, self.shared / "rows.jsonl", train=train)
        return SweepPlan(version=SWEEP_VERSION, shoal=__version__, sweep_id="sweep", made=made, spec=spec, job=spoken)

    def run(self, plan: SweepPlan, entry: Any = stand_in.steps_through) -> "tuple[Board, Heard]":
        backend, heard = RayLocal(self.profile, entry), Heard()
        backend.start()
        return run_sweep(plan, self.profile, Storage(), heard, threading.Event(), backend), heard

    def resume(self, stop: threading.Event | None = None, at: Any = lambda event: None) -> "tuple[Board, Heard]":
        backend, heard = RayLocal(self.profile, stand_in.steps_through), Heard(at)
        backend.start()
        return resume_sweep(self.sweep, self.profile, Storage(), heard, stop or threading.Event(), backend), heard

    def made(self, run: str) -> Plan:
        return Plan.model_validate_json((self.folder / "runs" / run / "plan.json").read_text())

    def suggested(self) -> dict[int, str]:
        found = (self.folder / "runs" / "sweep" / "trials").glob("*.json")
        return {int(one.name[:4]): one.read_text() for one in found if "end" not in one.name}

    def ends(self) -> dict[int, str]:
        found = (self.folder / "runs" / "sweep" / "trials").glob("*.end.json")
        return {int(one.name[:4]): one.read_text() for one in found}

    def midway(self) -> set[str]:
        """Trials that have a checkpoint and have not ended."""
        ended = {f"sweep-{number:04d}" for number in self.ends()}
        return {
            one.parents[2].name for one in (self.folder / "runs").glob("sweep-*/checkpoints/*/manifest.json")
        } - ended


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    write_rows(folder / "rows.jsonl")
    return folder


@pytest.fixture
def place(ray_up: None, tmp_path: Path, shared: Path, tiny_model: Path) -> Place:
    return Place(tmp_path, shared, tiny_model)


class Heard(list[Event]):
    """All events of a sweep; `at` is called with each."""

    def __init__(self, at: Any = lambda event: None) -> None:
        self.at = at

    def __call__(self, event: Event) -> None:
        self.append(event)
        self.at(event)

    def of(self, kind: str, trial: int | None = None) -> list[Event]:
        return [one for one in self if one["kind"] == kind and trial in (None, one.get("trial"))]


def test_asha_stops_the_worse_trials_and_the_best_one_alone_gives_the_same_loss(place: Place) -> None:
    """Real training; two trials at once; rates so far apart that nobody can mistake the order."""
    rates = [3e-2, 1e-5, 2e-5, 1e-2, 3e-5]
    asha = {"scheduler": "asha", "asha": {"reduction_factor": 2}}
    plan = place.plan({RATE: {"grid": rates}}, {"self_check": True}, search="grid", **asha)
    board, heard = place.run(plan, entry=None)
    states = {row.params[RATE]: row.state for row in board.rows}
    assert list(states) == rates, "numbered as they were suggested"
    assert states[3e-2] == "finished" and states[3e-5] == "stopped"
    assert Counter(states.values()).keys() == {"finished", "stopped"}
    stopped = next(row for row in board.rows if row.params[RATE] == 3e-5)
    assert stopped.why.startswith("asha: ") and stopped.step < stand_in.STEPS
    assert not [one for one in heard.of("phase") if one["phase"] == "preparing" and "trial" in one], "prepared once"
    assert len(list((place.shared / "prepared").iterdir())) == 1
    checked = [one["trial"] for one in heard.of("phase") if one["phase"] == "checking"]
    assert checked and {*checked} <= {1, 2}, "trials that come after the first two take over what those found"
    before = [one["loss"] for one in heard.of("eval") if one["step"] == 0]
    assert len(before) == 5 and len({*before}) == 1
    groups = {one["trial"]: one["pids"][0] for one in heard.of("note") if "pids" in one}
    assert len(set(groups.values())) == 2 and len(groups) == 5, "two groups of workers did all trials"
    winner = board.winner
    assert winner is not None and winner.metric is not None
    alone = place.profile.model_copy(update={"kind": "inline", "workers": 1})
    again = launch.run(
        apply(plan.job, winner.params), alone, Storage(), Inline(), lambda event: None, threading.Event()
    )
    assert again.result.loss == pytest.approx(winner.metric, abs=1e-4)


def test_a_trial_that_fails_is_alone_in_it_and_one_too_large_is_tried_with_half_the_micro_batch(place: Place) -> None:
    train = {"batch_size": 4, "micro_batch_size": 4}
    board, heard = place.run(place.plan({"train.seed": {"grid": KINDS}}, train, search="grid"))
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
    layout = place.made(large.run).layout
    assert (large.retries, layout.micro_batch_size, layout.accumulation) == (1, 2, 2)
    assert layout.deepspeed["train_micro_batch_size_per_gpu"] == 2
    assert rows[stand_in.MUCH_TOO_LARGE].retries == 1
    assert "memory: 2 rows do not fit" in rows[stand_in.MUCH_TOO_LARGE].why
    assert rows[stand_in.BREAKS].why == "TypeError: a bug"


def test_a_killed_and_a_stopped_sweep_go_on_and_no_trial_is_lost_or_repeated(place: Place) -> None:
    _kill_half_way(place, place.plan(RATES, trials=4, max_concurrent=1))
    before, done = place.suggested(), place.ends()
    assert done and len(done) < 4 and place.midway()

    stop = threading.Event()
    board, heard = place.resume(stop, at=lambda event: stop.set() if _new_end(event, done) else None)
    assert 0 < board.count("finished") < 4
    assert not heard.of("step", min(done)), "a trial that had ended trains no more"

    board, _ = place.resume()
    assert [row.state for row in board.rows] == ["finished"] * 4
    assert {number: place.suggested()[number] for number in before} == before
    for row in board.rows:
        assert row.metric == pytest.approx(stand_in.loss(row.params[RATE], stand_in.STEPS))
        steps = [point.step for point in row.curve]
        assert steps == list(range(stand_in.EVERY, stand_in.STEPS + 1, stand_in.EVERY))
    assert all(place.ends()[number] == end for number, end in done.items()), "ends are written once"
    _, heard = place.resume()
    assert any("finished already" in one.get("message", "") for one in heard)


def test_under_pbt_the_worst_go_on_with_the_weights_of_the_best(place: Place) -> None:
    often = stand_in.EVERY * stand_in.TOKENS
    pbt = {"perturbation_interval": often, "quantile_fraction": 0.5, "resample_probability": 0}
    slow = {"seed": stand_in.SLOW}  # else the best are at their end before anybody can take over from them
    board, _ = place.run(place.plan(RATES, slow, trials=3, scheduler="pbt", pbt=pbt, seed=5))
    first = [row for row in board.rows if row.number <= 3]
    later = [row for row in board.rows if row.number > 3]
    assert len(first) == 3 and later, "somebody took over somebody's weights"
    assert sum(row.state == "finished" for row in board.rows) == 3, "as many finish as were suggested"
    for row in later:
        made = place.made(row.run).trajectory
        assert made.parent is not None and stand_in.EVERY <= made.parent.step < stand_in.STEPS
        assert all(point.step > made.parent.step for point in row.curve)
        assert made.optimizer.learning_rate == row.params[RATE]
    replaced = [row for row in board.rows if row.why.startswith("pbt: ")]
    assert len(replaced) == len(later) and {row.state for row in replaced} == {"stopped"}


def test_a_spent_budget_ends_the_sweep(place: Place) -> None:
    budget, slow = stand_in.STEPS // 2, {"seed": stand_in.SLOW}
    board, heard = place.run(place.plan(RATES, slow, trials=20, max_concurrent=1, budget={"steps": budget}))
    assert [(row.state, row.why) for row in board.rows] == [("stopped", "budget")]
    assert sum(row.step for row in board.rows) >= budget
    assert any("the budget is spent" in one.get("message", "") for one in heard)
    _, heard = place.resume()
    assert not heard.of("step"), "nothing goes on"


def test_a_sweep_gives_up_where_no_trial_has_room_and_goes_on_beside_others(place: Place, s3: S3Spec) -> None:
    """On a cluster, where others have the workers, and most of what trials' own processes take."""
    import ray
    from ray.util import placement_group, remove_placement_group

    storage, profile = Storage(s3), _cluster(s3)
    text = place.plan(RATES, trials=2, max_concurrent=1).model_dump_json(exclude_unset=True)
    for here, there in ((place.model, "s3://shoal/tiny/"), (place.shared / "rows.jsonl", "s3://shoal/rows.jsonl")):
        storage.upload(here, there)
        text = text.replace(str(here), there)
    plan = SweepPlan.model_validate_json(text)
    little = profile.model_copy(update={"resources_per_worker": ResourcesSpec(cpu=0.01)})
    backend = RayCluster(little, stand_in.steps_through)  # which has room to look at data that are prepared
    backend.start()
    launch.prepared_plan(plan.job, profile, storage, backend, lambda event: None)
    node = next(name for name in ray.cluster_resources() if name.startswith("node:") and "head" not in name)
    taken = [placement_group([{"CPU": ray.cluster_resources()["CPU"] - 0.1}]), placement_group([{node: 0.9}])]
    assert all(one.wait(30) for one in taken)
    try:
        with pytest.raises(ClusterError, match=r"^trial 1: left: workers: no room for 1 s for 1 worker of 1 CPU each"):
            run_sweep(plan, profile, storage, Heard(), threading.Event(), backend)
        folder = SweepFolder.of(storage, profile.storage.runs, "sweep")
        assert [trial.number for trial, _ in folder.read_trials()] == [1], "no other trial began"
        remove_placement_group(taken.pop(0))
        board = resume_sweep(folder, profile, storage, Heard(), threading.Event(), backend)
        assert [row.state for row in board.rows] == ["finished"] * 2
    finally:
        for one in taken:
            remove_placement_group(one)


def _cluster(s3: S3Spec) -> ClusterProfile:
    """This machine's Ray and store, as if they were somewhere else."""
    file = str(folder_of(s3) / "server.json")
    endpoint = connection(s3).endpoint.replace("127.0.0.1", MAPPED)
    storage = {name: f"s3://shoal/swept/{name}" for name in ("runs", "prepared")}
    away = {"endpoint_url": endpoint, "credentials": {"file": file}}
    return ClusterProfile.model_validate({"kind": "ray", "wait_s": 1, "storage": {**storage, "s3": away}})


def _new_end(event: Event, done: dict[int, Any]) -> bool:
    return event["kind"] == "trial_end" and event["trial"] not in done


DRIVER = """
import sys, threading
sys.path += {paths!r}
import stand_in_trial
from ray import cloudpickle
cloudpickle.register_pickle_by_value(stand_in_trial)
from pathlib import Path
from shoal.backends.ray_local import RayLocal
from shoal.spec.cluster import ClusterProfile
from shoal.storage import Storage
from shoal.tune.folder import SweepPlan
from shoal.tune.sweep import run_sweep
folder = Path({folder!r})
profile = ClusterProfile.model_validate_json((folder / "profile.json").read_text())
plan = SweepPlan.model_validate_json((folder / "plan.json").read_text())
backend = RayLocal(profile, stand_in_trial.steps_through)
backend.start()
run_sweep(plan, profile, Storage(), lambda event: None, threading.Event(), backend)
"""


def _kill_half_way(place: Place, plan: SweepPlan) -> None:
    """A driver of its own is killed as soon as a trial has ended and a later one has a checkpoint."""
    (place.folder / "plan.json").write_text(plan.model_dump_json(exclude_unset=True))
    (place.folder / "profile.json").write_text(place.profile.model_dump_json(exclude_unset=True))
    program = DRIVER.format(paths=[str(SUPPORT)], folder=str(place.folder))
    driver = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while not (place.ends() and place.midway()):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(driver.pid, signal.SIGKILL)
    finally:
        driver.kill()
        driver.wait()
