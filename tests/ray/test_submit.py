"""Runs handed to a cluster that somebody else runs: followed, left, found again, stopped, resumed. With a token, as is due."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from command import Command
from submitting import KEY, SECRET, Head, head, new_token, secret_values

from shoal.record.rows import read
from shoal.runs import RunFolder
from shoal.spec.cluster import S3Spec
from shoal.storage import join

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
LONG = (
    "--set",
    "train.num_train_epochs=100000",
    "--set",
    "train.eval_steps=1000000",
    "--set",
    "checkpoint.every_steps=40",
)
GOING = "going-1"
SHORT = ("--set", "train.max_steps=3")


@pytest.fixture(scope="module")
def cluster(s3: S3Spec, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Head]:
    with head(
        s3, tmp_path_factory.mktemp("cluster"), tiny_model, 4, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=new_token()
    ) as up:
        yield up


@dataclass
class Files:
    """One person's folder."""

    folder: Path
    cluster: Head
    job: str
    on: str

    def shoal(self, *arguments: str) -> Command:
        return self.cluster.shoal(self.folder / f"{arguments[0]}-{time.time_ns()}", *arguments, "--on", self.on)

    def run_folder(self, run_id: str) -> RunFolder:
        return RunFolder(self.cluster.storage, join("s3://shoal/runs", run_id))

    def job_of(self, run_id: str) -> dict[str, Any]:
        """What Ray says of the newest submission."""
        rows = [row for row in self.cluster.ask("/api/jobs/") if row["metadata"].get("shoal_run") == run_id]
        return max(rows, key=lambda row: row["start_time"])


@pytest.fixture(scope="module")
def files(cluster: Head, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    return Files(folder, cluster, cluster.job(folder / "job.yaml"), cluster.profile(folder / "ray.yaml"))


@pytest.fixture(scope="module")
def short(files: Files) -> Command:
    """Two runs at once, whose data are not prepared yet: the first as it was watched."""
    two = files.cluster.profile(files.folder / "two.yaml", workers=2)
    other = ("run", files.job, "--run-id", "short-2", *SHORT, "--detach", "--on", two)
    beside = files.cluster.shoal(files.folder / "beside", *other)
    assert beside.end() == 0, beside.said
    command = files.shoal("run", files.job, "--run-id", "short-1", *SHORT, "--json")
    assert command.end(240) == 0, command.said
    assert files.shoal("logs", "short-2", "--follow").end(240) == 0
    return command


def test_a_run_is_followed_as_if_it_ran_here(files: Files, short: Command) -> None:
    for part in (
        "planning",
        "submitting",
        "is job short-1 on http",
        "worker up (process",
        "step 3/3  loss",
        "export passed",
    ):
        assert part in short.said
    assert "Running entrypoint" not in short.said and '"kind"' not in short.said
    assert short.json["state"] == "finished" and short.json["run"] == "short-1"
    assert json.loads(files.cluster.storage.read(files.run_folder("short-1").result))["loss"] == short.json["loss"]
    job = files.job_of("short-1")
    assert job["status"] == "SUCCEEDED" and job["metadata"]["folder"] == "s3://shoal/runs/short-1"
    assert job["runtime_env"].get("working_dir") is None


SWEEP = "sweep={space: {optimizer.learning_rate: [1e-3, 1e-2]}, search: grid, workers: 1, max_concurrent: 1}"


def test_a_sweep_is_handed_over_watched_stopped_and_goes_on(files: Files) -> None:
    """Its profile has more workers than the cluster, its trials have not."""
    wide = files.cluster.profile(files.folder / "sweep.yaml", workers=8)

    def shoal(*words: str) -> Command:
        return files.cluster.shoal(files.folder / f"sweep-{time.time_ns()}", *words, "--on", wide)

    settings = (SWEEP, "train.num_train_epochs=100", "train.max_steps=60", "train.eval_steps=15")
    sweep = [word for one in settings for word in ("--set", one)]
    begun = shoal("sweep", files.job, "--run-id", "swept-1", *sweep, "--detach")
    assert begun.end() == 0 and "shoal stop swept-1 --on " in begun.said, begun.said
    watching = shoal("logs", "swept", "--follow")
    watching.until("trial 1: optimizer.learning_rate=0.001", 180)
    watching.until("trial 1: held-out loss after step 15")
    stopped = shoal("stop", "swept-1")
    assert stopped.end() == 0, stopped.said
    assert "it has left; go on with  shoal sweep resume swept-1 --on " in stopped.said
    assert watching.end() == 130, watching.said
    assert "asks to stop: the trials that run save first" in watching.said
    assert "shoal sweep resume swept-1 --on " in watching.said, "the leaderboard says how to go on"

    resumed = shoal("sweep", "resume", "swept", "--json")
    assert resumed.end(240) == 0, resumed.said
    assert "swept-1 is job swept-1.2 on " in resumed.said
    assert {row["number"]: (row["state"], row["step"]) for row in resumed.json["rows"]} == dict.fromkeys(
        (1, 2), ("finished", 60)
    )
    again = shoal("sweep", "resume", "swept-1")
    assert again.end() == 2 and "is finished: there is nothing to resume; `shoal sweep best swept-1`" in again.said
    listed = files.shoal("runs", "--json")
    assert listed.end() == 0
    assert [one["trials"] for one in listed.json if one["id"] == "swept-1"] == [2], "once, although it was submitted"


@pytest.fixture(scope="module")
def going(files: Files) -> str:
    """A run that was submitted and left, and goes on for as long as the tests do."""
    command = files.shoal("run", files.job, "--run-id", GOING, "--detach", *LONG)
    assert command.end() == 0, command.said
    assert "and leave      shoal stop going-1 --on " in command.said
    watching = files.shoal("logs", GOING, "--follow")
    watching.until("worker up (process", 180)  # its room is taken
    watching.process.kill()
    watching.end()
    return GOING


def test_no_secret_is_told_anywhere(files: Files, going: str) -> None:
    secrets = secret_values(files.cluster.environment)
    assert len(secrets) == 3
    files.shoal("logs", going).end()
    storage = files.cluster.storage
    told = [json.dumps(files.cluster.ask("/api/jobs/"))]
    told += [
        files.cluster.ask(f"/api/jobs/{row['submission_id']}/logs")["logs"] for row in files.cluster.ask("/api/jobs/")
    ]
    told += [
        storage.read(one.url).decode(errors="replace") for one in storage.list("s3://shoal/runs/**") if one.size < 10**6
    ]
    told += [path.read_text(errors="replace") for path in files.cluster.folder.rglob("*.json")]
    assert any(KEY in text and SECRET in text for text in told), "the names are there"
    assert not [text[:200] for text in told for secret in secrets if secret in text]


def test_a_run_without_room_says_what_is_free_and_gives_up(files: Files, going: str) -> None:
    path = files.folder / "wide.yaml"
    on = files.cluster.profile(path, workers=2, wait_s=3, resources_per_worker={"cpu": 2})

    def shoal(*words: str) -> Command:
        return files.cluster.shoal(files.folder / f"wide-{time.time_ns()}", *words, "--on", on)

    left = shoal("run", files.job, "--run-id", "wide-1", "--detach")
    assert left.end() == 0, left.said
    while files.job_of("wide-1")["status"] in ("PENDING", "RUNNING"):
        time.sleep(0.5)
    listed, report = shoal("runs", "--json"), shoal("report", "wide-1")
    assert listed.end() == 0
    assert [one["state"] for one in listed.json if one["id"] == "wide-1"] == ["failed"]
    assert report.end() == 2
    assert "wide-1: its driver gave up before it had a plan: workers: no room for 3 s for 2 workers" in report.said
    assert "use its job file again, with --run-id wide-1" in report.said
    command = shoal("logs", "wide-1", "--follow")
    assert command.end() == 5, command.said
    assert "waiting 3 s for room" in command.said
    assert "error: workers: no room for 3 s for 2 workers of 2 CPU each (pack): free are " in command.said
    assert "of 4 CPU" in command.said
    assert not files.cluster.storage.list("s3://shoal/runs/wide-1/**"), "nothing is left of what never began"
    assert files.job_of(going)["status"] == "RUNNING"


def test_who_watches_may_go_and_come_back(files: Files, going: str) -> None:
    watching = files.shoal("logs", going, "--follow")
    watching.until("loss", 180)
    watching.process.kill()
    assert watching.end() == -9
    again = files.shoal("logs", going[:6], "--follow")
    again.until("planning")
    again.until("worker up (process")
    again.until("checkpoint of step 40 ", 180)
    again.process.send_signal(signal.SIGTERM)
    assert again.end() == 143, again.said
    assert f"detached: {going} goes on; watch it with  shoal logs {going} --follow" in again.said
    listed = files.shoal("runs")
    assert listed.end() == 0 and "running" in listed.said
    assert files.job_of(going)["status"] == "RUNNING"


def test_ctrl_c_at_a_terminal_asks(files: Files, going: str) -> None:
    """First `c`, then a second Ctrl-C at the question, which detaches."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "shoal", "logs", going, "--follow", "--on", files.on]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=files.cluster.environment, start_new_session=True
    )
    os.close(theirs)
    said = ""

    def until(text: str) -> None:
        nonlocal said
        deadline = time.monotonic() + 120
        while text not in said:
            assert time.monotonic() < deadline, said
            said += os.read(ours, 65536).decode(errors="replace")
        said = said.rpartition(text)[2]

    until("training")
    process.send_signal(signal.SIGINT)
    until("[d/s/c]")
    os.write(ours, b"c\n")
    until("training")
    process.send_signal(signal.SIGINT)
    until("[d/s/c]")
    process.send_signal(signal.SIGINT)
    until("detached")
    assert process.wait(60) == 130
    os.close(ours)
    assert files.job_of(going)["status"] == "RUNNING"


def test_a_run_whose_driver_died_goes_on_and_stops_when_it_is_asked(files: Files, going: str) -> None:
    watching = files.shoal("logs", going, "--follow")
    watching.until("checkpoint of step ", 180)
    _driver(going).kill()
    assert watching.end() == 137, watching.said
    assert f"go on with  shoal resume {going} --on " in watching.said and '{"kind"' not in watching.said
    saved = _saved(files, going)

    resumed = files.shoal("resume", going)
    resumed.until(f"{going} is job {going}.2 on ")
    assert int(resumed.until("  lr ", 180).split("step ")[1].split("/")[0]) > saved
    twice = files.shoal("resume", going)
    assert twice.end() == 5 and f"{going}: runs already on http" in twice.said
    resumed.process.kill()  # the client: the run does not mind
    resumed.end()

    again = files.shoal("logs", going, "--follow", "--json")
    again.until("loss ")
    stopped = files.shoal("stop", going)
    assert stopped.end() == 0, stopped.said
    assert "it was asked to finish its step, save and leave" in stopped.said
    assert f"it has left; go on with  shoal resume {going} --on " in stopped.said
    assert again.end() == 130, again.said
    assert "asks to stop: this step is finished and saved first" in again.said
    assert again.json["state"] == "stopped" and again.json["step"] == _saved(files, going) > saved
    nobody = files.shoal("stop", going)
    assert nobody.end() == 5 and "is not running: nobody is there to stop" in nobody.said


def _saved(files: Files, run_id: str) -> int:
    """The newest complete checkpoint."""
    found = files.cluster.storage.list(f"s3://shoal/runs/{run_id}/checkpoints/*/manifest.json")
    return max(int(one.url.split("/")[-2]) for one in found)


def _driver(run_id: str) -> psutil.Process:
    """The newest process that drives this run on the cluster."""
    found = [
        one
        for one in psutil.process_iter(["cmdline", "create_time"])
        if {run_id, "--events"} <= set(one.info["cmdline"] or [])
    ]
    return max(found, key=lambda one: one.info["create_time"])


def test_ray_job_submit_by_hand_works_too(files: Files, cluster: Head, short: Command) -> None:
    """From a folder with both files, which Ray ships; it needs `ray[default]` where it is typed.

    It has the cluster to itself by now, and the losses of those that did not.
    """
    folder = files.folder / "by-hand"
    folder.mkdir()
    inside = yaml.safe_load(Path(files.on).read_text()) | {"address": "auto"}
    (folder / "ray.yaml").write_text(yaml.safe_dump(inside))
    (folder / "job.yaml").write_text(Path(files.job).read_text())
    program = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", cluster.address]
    program += ["--working-dir", str(folder), "--submission-id", "by-hand", "--"]
    program += [sys.executable, "-m", "shoal", "run", "job.yaml", "--on", "ray.yaml", "--run-id", "by-hand", *SHORT]
    there = {**cluster.environment, "PYTHONPATH": str(Path(sys.prefix) / "dashboard")}
    done = subprocess.run(program, env=there, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 3/3  loss" in done.stdout and "export passed" in done.stdout
    alone = _losses(files, "by-hand")
    assert len(alone) == 3
    for beside in ("short-1", "short-2"):
        assert _losses(files, beside) == pytest.approx(alone, abs=1e-4)


def _losses(files: Files, run_id: str) -> list[float]:
    return [row["loss"] for row in read(files.run_folder(run_id)).metrics if row["kind"] == "step"]


MISTAKES = [
    (
        {"address": "http://127.0.0.1:1"},
        {},
        5,
        "address: http://127.0.0.1:1 does not answer: connection refused; is the head",
    ),
    ({"address": "https://127.0.0.1:{port}"}, {}, 5, "cannot be trusted or speaks no TLS"),
    ({}, {"RAY_AUTH_TOKEN": "0" * 48}, 5, "does not accept the one of RAY_AUTH_TOKEN"),
    ({"token": "env:OTHER"}, {"OTHER": "1" * 48}, 5, "does not accept the one of env:OTHER"),
    ({}, {"RAY_AUTH_TOKEN": ""}, 5, "asks for a token, and none was given"),
    ({"token": "file:nowhere"}, {}, 2, "token: nowhere cannot be read"),
    ({"resources_per_worker": {"gpu": 1}}, {}, 5, "gpu: 1, and no node of the cluster has a GPU"),
    (
        {"resources_per_worker": {"gpu": 1, "accelerator_type": "H100"}},
        {},
        5,
        "H100, and no node of the cluster has that",
    ),
    ({"workers": 5}, {}, 5, "workers: 5, and the cluster can never have more than 4 of 1 CPU each"),
    ({"storage": {"runs": "runs", "prepared": "prepared"}}, {}, 2, "storage.runs: runs is a folder of each node"),
    ({"storage": {"s3": {"server": "embedded"}}}, {}, 2, "embedded listens on this machine alone"),
]


@pytest.mark.parametrize(("changes", "environment", "status", "said"), MISTAKES)
def test_a_mistake_is_told_before_anything_is_submitted(
    files: Files, tmp_path: Path, changes: dict[str, Any], environment: dict[str, str], status: int, said: str
) -> None:
    jobs = len(files.cluster.ask("/api/jobs/"))
    port = files.cluster.address.rpartition(":")[2]
    given = {name: value.format(port=port) if name == "address" else value for name, value in changes.items()}
    on = files.cluster.profile(tmp_path / "wrong.yaml", **given)
    command = Command(
        ["run", files.job, "--on", on], tmp_path, environment={**files.cluster.environment, **environment}
    )
    assert command.end() == status, command.said
    errors = [line for line in command.said.splitlines() if line.startswith("error: ")]
    assert any(said in line for line in errors), command.said
    assert "Traceback" not in command.said
    assert len(files.cluster.ask("/api/jobs/")) == jobs
