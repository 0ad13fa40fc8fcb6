"""The flow from a job to a result, with a stand-in for training: what is written, what a resume keeps and refuses."""

import json
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from jobs import write_rows

from shoal import launch
from shoal.backends import OnEvent
from shoal.backends.inline import Inline
from shoal.errors import ClusterError, DataError, Problem, SpecError, TrainingError
from shoal.lease import held
from shoal.plan.types import Plan
from shoal.runs import RunFolder, list_runs
from shoal.spec.cluster import ClusterProfile, StorageSpec
from shoal.spec.job import JobSpec
from shoal.storage import Storage
from shoal.train.world import Event, Result


class StandIn(Inline):
    """Prepares for real, and ends as it is told."""

    def __init__(self, state: str = "finished") -> None:
        self.state = state
        self.plans: list[Plan] = []

    def train(self, plan: Plan, on_event: OnEvent, stop: threading.Event) -> Result:
        self.plans.append(plan)
        steps = plan.trajectory.steps.value
        result = Result(
            state=self.state, step=steps, steps=steps, tokens=1, seconds=1.0, base_loss=2.0, loss=1.0,
            train_loss=1.0, export=None, gate=None, answers=[],
        )  # fmt: skip
        if self.state == "finished":
            storage = Storage(plan.storage.s3)
            storage.write(RunFolder(storage, plan.storage.run).result, json.dumps(asdict(result)).encode())
        return result


@pytest.fixture
def profile(tmp_path: Path) -> ClusterProfile:
    return profile_of(tmp_path)


def profile_of(folder: Path, workers: int = 1) -> ClusterProfile:
    places = StorageSpec(runs=str(folder / "runs"), prepared=str(folder / "prepared"), cache=str(folder / "cache"))
    return ClusterProfile(kind="inline" if workers == 1 else "local", workers=workers, storage=places)


@pytest.fixture
def job(tmp_path: Path, tiny_model: Path) -> JobSpec:
    data = write_rows(tmp_path / "rows.jsonl")
    return JobSpec.model_validate(
        {
            "name": "tiny",
            "model": {"base": str(tiny_model)},
            "data": {"train": str(data), "validation": 0.1, "sequence_length": 96},
            "train": {"batch_size": 4},
        }
    )


def run(job: JobSpec, profile: ClusterProfile, backend: StandIn) -> tuple[launch.Outcome, list[Event]]:
    events: list[Event] = []
    outcome = launch.run(job, profile, Storage(), backend, events.append, threading.Event())
    return outcome, events


def resume(beginning: str, profile: ClusterProfile, backend: StandIn) -> launch.Outcome:
    return launch.resume(beginning, profile, Storage(), backend, lambda event: None, threading.Event())


def test_a_run_leaves_its_plan_and_its_job_and_workers_get_exact_counts(job: JobSpec, profile: ClusterProfile) -> None:
    backend = StandIn()
    outcome, events = run(job, profile, backend)
    [given] = backend.plans
    assert not given.trajectory.steps.estimate
    assert not given.trajectory.tokens.estimate
    assert Plan.model_validate_json(Storage().read(outcome.folder.plan)) == given
    assert JobSpec.model_validate(yaml.safe_load(Storage().read(outcome.folder.job))) == job
    assert next(event["phase"] for event in events if event["kind"] == "phase") == "planning"
    assert [event["run"] for event in events if event["kind"] == "run"] == [outcome.folder.id]


def test_what_the_plan_notes_is_told_when_it_runs(job: JobSpec, profile: ClusterProfile) -> None:
    rows = Path(str(job.data.train))
    rows.write_text(rows.read_text().splitlines()[0] + "\n")
    _, events = run(job, profile, StandIn())
    told = [event["message"] for event in events if event["kind"] == "note"]
    assert "train.batch_size: 4 rows, but an epoch has about 1: each step is a whole epoch" in told
    assert "data.validation: 0.1 of 1 samples held out none: nothing is evaluated" in told


def test_what_cannot_be_trained_on_leaves_no_run_behind(job: JobSpec, profile: ClusterProfile) -> None:
    rows = Path(str(job.data.train))
    rows.write_text(rows.read_text() + "no json\n" * 10)
    with pytest.raises(DataError, match="10 of 70 rows"):
        run(job, profile, StandIn())
    assert not Path(profile.storage.runs).exists()


def test_a_stopped_run_goes_on_with_the_same_plan(job: JobSpec, profile: ClusterProfile) -> None:
    backend = StandIn("stopped")
    outcome, _ = run(job, profile, backend)
    again = resume(outcome.folder.id[:10], profile, backend)
    assert again.folder.url == outcome.folder.url
    assert backend.plans[0] == backend.plans[1]


def test_a_finished_run_is_not_resumed(job: JobSpec, profile: ClusterProfile) -> None:
    outcome, _ = run(job, profile, StandIn())
    with pytest.raises(SpecError, match="is finished: there is nothing to resume"):
        resume(outcome.folder.id, profile, StandIn())


def test_a_run_that_somebody_trains_is_not_trained_twice(job: JobSpec, profile: ClusterProfile) -> None:
    outcome, _ = run(job, profile, StandIn("stopped"))
    backend = StandIn()
    with held(outcome.folder, lambda: None), pytest.raises(ClusterError, match="is being trained by process"):
        resume(outcome.folder.id, profile, backend)
    assert backend.plans == []


def test_a_resume_on_more_workers_keeps_the_trajectory_and_makes_a_new_layout(
    job: JobSpec, profile: ClusterProfile, tmp_path: Path
) -> None:
    backend = StandIn("stopped")
    outcome, _ = run(job, profile, backend)
    resume(outcome.folder.id, profile_of(tmp_path, workers=3), backend)
    then, now = backend.plans
    assert now.trajectory == then.trajectory
    assert (then.layout.workers, now.layout.workers) == (1, 3)
    assert now.layout.accumulation * now.layout.micro_batch_size * 3 >= job.train.batch_size
    assert now.run_id == then.run_id


def test_a_resume_elsewhere_is_refused_when_the_data_changed(
    job: JobSpec, profile: ClusterProfile, tmp_path: Path
) -> None:
    outcome, _ = run(job, profile, StandIn("stopped"))
    write_rows(Path(str(job.data.train)), count=61)
    with pytest.raises(SpecError, match="cannot move to 3 cpu workers"):
        resume(outcome.folder.id, profile_of(tmp_path, workers=3), StandIn())


def submit(job: JobSpec, profile: ClusterProfile, backend: StandIn, run_id: str = "nightly-7") -> launch.Outcome:
    events: list[Event] = []
    return launch.run(job, profile, Storage(), backend, events.append, threading.Event(), run_id)


def test_the_same_command_begins_a_run_goes_on_with_it_and_says_that_it_is_finished(
    job: JobSpec, profile: ClusterProfile
) -> None:
    stopping, finishing, idle = StandIn("stopped"), StandIn(), StandIn()
    first = submit(job, profile, stopping)
    second = submit(job, profile, finishing)
    third = submit(job, profile, idle)
    assert first.folder.id == second.folder.id == third.folder.id == "nightly-7"
    assert stopping.plans == finishing.plans and idle.plans == []
    assert third.result == second.result and third.result.state == "finished"
    assert [one.id for one in list_runs(Storage(), profile.storage.runs)] == ["nightly-7"]


def test_a_run_id_stands_for_one_job(job: JobSpec, profile: ClusterProfile) -> None:
    submit(job, profile, StandIn("stopped"))
    other = job.model_copy(update={"train": job.train.model_copy(update={"batch_size": 8})})
    with pytest.raises(SpecError, match="that run was made from another job") as caught:
        submit(other, profile, StandIn())
    assert [str(problem) for problem in caught.value.problems[1:]] == ["train.batch_size: 8 now, 4 then"]
    with pytest.raises(SpecError, match="'Nightly/7' cannot name a run"):
        submit(job, profile, StandIn(), "Nightly/7")


def test_a_plan_of_another_shoal_is_told(job: JobSpec, profile: ClusterProfile) -> None:
    submit(job, profile, StandIn("stopped"))
    plan = Path(profile.storage.runs) / "nightly-7" / "plan.json"
    body = json.loads(plan.read_text())
    plan.write_text(json.dumps({**body, "shoal": "9.0", "path": body.pop("trajectory")}))
    with pytest.raises(SpecError, match=r"was written by shoal 9\.0, and this is"):
        submit(job, profile, StandIn())


class Dies(StandIn):
    """Its last group failed, and nobody is left to write that down."""

    def train(self, plan: Plan, on_event: OnEvent, stop: threading.Event) -> Result:
        row = {"kind": "failure", "time": "2026-01-01T00:00:00.000+00:00", "cause": "hung", "rank": 1}
        on_event({**row, "message": "worker 1 hangs; starting again", "final": False})
        on_event({**row, "message": "worker 1 hangs", "final": True})
        raise TrainingError(Problem("training", "worker 1 hangs, more often than max_failures allows"))


def test_the_failure_that_ends_a_run_is_written_down(job: JobSpec, profile: ClusterProfile) -> None:
    with pytest.raises(TrainingError):
        submit(job, profile, Dies())
    events = Storage().read(f"{profile.storage.runs}/nightly-7/events.jsonl").decode().splitlines()
    assert [row["message"] for row in map(json.loads, events) if row["kind"] == "failure"] == ["worker 1 hangs"]
