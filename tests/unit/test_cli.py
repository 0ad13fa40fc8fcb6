"""The verbs as a person meets them: what is printed where, and with which status the command leaves."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from jobs import write_rows
from plans import small_plan

from shoal import cli, launch
from shoal.backends import OnEvent
from shoal.backends.inline import Inline
from shoal.cli import runs as listing
from shoal.cli.interrupts import Interrupts
from shoal.cli.standing import Standing, made
from shoal.errors import (
    ClusterError,
    DataError,
    ExportError,
    ModelError,
    Problem,
    SelfCheckError,
    ShoalError,
    SpecError,
    StorageError,
    TrainingError,
)
from shoal.plan.types import Plan
from shoal.runs import RunFolder
from shoal.spec.load import load_job
from shoal.storage import Storage, join
from shoal.train.world import Result

Shoal = Callable[..., int]
VERBS = ["check", "prepare", "plan", "run", "resume", "runs", "report", "doctor", "chat", "export", "init", "schema"]
STORE_VERBS = ["ls", "put", "get", "rm"]


@pytest.fixture
def shoal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shoal:
    """Runs one command in this process, in an empty folder and an empty home; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SHOAL_PROFILE", raising=False)
    monkeypatch.delenv("SHOAL_DEBUG", raising=False)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["shoal", *arguments])
        return cli._status()

    return run


@pytest.fixture
def here(shoal: Shoal, tmp_path: Path, tiny_model: Path) -> Path:
    """A folder with job.yaml and here.yaml, everything in local folders."""
    rows = write_rows(tmp_path / "rows.jsonl")
    data = f"{{train: {rows}, validation: 0.1, sequence_length: 96}}"
    (tmp_path / "job.yaml").write_text(f"name: tiny\nmodel: {{base: {tiny_model}}}\ndata: {data}\n")
    places = "".join(f"  {name}: {tmp_path / name}\n" for name in ("runs", "prepared", "cache"))
    (tmp_path / "here.yaml").write_text(f"kind: inline\nstorage:\n{places}")
    return tmp_path


def result(plan: Plan, **changes: Any) -> Result:
    steps = plan.trajectory.steps.value
    body: dict[str, Any] = {
        "state": "finished", "step": steps, "steps": steps, "tokens": 100, "seconds": 2.0, "base_loss": 2.0,
        "loss": 1.5, "train_loss": 1.4, "export": join(plan.storage.run, "export/adapter"),
        "gate": {"passed": True}, "answers": [],
    }  # fmt: skip
    return Result(**(body | changes))


def train_as(monkeypatch: pytest.MonkeyPatch, train: Callable[[Plan, OnEvent], Result]) -> None:
    """Every run trains so; preparing stays real."""

    class StandIn(Inline):
        def train(self, plan: Plan, on_event: OnEvent, stop: threading.Event) -> Result:
            ended = train(plan, on_event)
            if ended.state == "finished":
                storage = Storage(plan.storage.s3)
                storage.write(RunFolder(storage, plan.storage.run).result, json.dumps(asdict(ended)).encode())
            return ended

    monkeypatch.setattr(launch, "backend_for", lambda profile: StandIn())


@pytest.mark.parametrize("words", [*[[verb] for verb in VERBS], *[["store", verb] for verb in STORE_VERBS]])
def test_every_verb_teaches_by_an_example(shoal: Shoal, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert shoal(*words, "--help") == 0
    assert f"Example:  shoal {' '.join(words)}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["plan", "job.yaml", "--on", "here.yaml"],
        ["runs", "--on", "here.yaml"],
        ["report", "a-", "--on", "here.yaml"],
        ["doctor", "a-", "--on", "here.yaml"],
    ],
)
def test_help_and_what_only_reads_load_nothing_heavy(here: Path, words: list[str]) -> None:
    leave_run(here / "runs", "a-20260101-000000-aaaa", steps=(5,), finished=True)
    program = (
        "import sys; from shoal import cli; sys.argv = ['shoal', *sys.argv[1:]]; status = cli._status();"
        "print([name for name in ('torch', 'ray', 'transformers', 'pandas', 'peft') if name in sys.modules], status)"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=here, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_the_console_entry_point_leaves_with_the_status(here: Path) -> None:
    command = [sys.executable, "-m", "shoal", "plan", "nowhere.yaml"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == SpecError.exit_status
    assert done.stdout == ""
    assert done.stderr.startswith("error: nowhere.yaml: there is no such job file")


def test_mistakes_of_job_and_profile_are_told_together(
    shoal: Shoal, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "here.yaml").write_text("kind: inlin\n")
    assert shoal("run", "job.yaml", "--on", "here.yaml", "--set", "train.batch_sise=4") == 2
    told = capsys.readouterr()
    assert "train.batch_sise" in told.err
    assert "kind" in told.err
    assert told.err.count("error: ") == 2
    assert told.out == ""


@pytest.mark.parametrize(
    "kind",
    [
        SpecError,
        DataError,
        ModelError,
        StorageError,
        ClusterError,
        SelfCheckError,
        ExportError,
        TrainingError,
        ShoalError,
    ],
)
def test_an_answer_is_told_without_a_stack_trace_and_with_its_own_status(
    shoal: Shoal,
    here: Path,
    kind: type[ShoalError],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(plan: Plan, on_event: OnEvent) -> Result:
        raise kind(Problem("here", "one thing", "change it"), Problem("there", "another"))

    train_as(monkeypatch, fail)
    assert shoal("run", "job.yaml", "--on", "here.yaml") == kind.exit_status
    told = capsys.readouterr().err
    mistakes = "error: here: one thing; change it\nerror: there: another\n"
    assert told.startswith(mistakes)
    # Only a disk, a store or a cluster is mended without touching the job: then the run itself goes on.
    place = kind in (StorageError, ClusterError)
    assert ("go on with  shoal resume tiny-" in told) == place
    assert place or told == mistakes


def test_a_bug_of_ours_says_so_and_keeps_the_traceback(
    shoal: Shoal, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(plan: Plan, on_event: OnEvent) -> Result:
        error = KeyError("missing")
        error.add_note("worker 1 of 2:\nits own traceback")
        raise error

    train_as(monkeypatch, fail)
    assert shoal("run", "job.yaml", "--on", "here.yaml") == 1
    told = capsys.readouterr().err
    assert told.startswith("this is a bug of Shoal: KeyError: 'missing'; the traceback is in ")
    assert len(told.splitlines()) == 1
    [report] = (here / "home/.shoal/cache/bugs").iterdir()
    assert "KeyError" in report.read_text()
    assert "its own traceback" in report.read_text()
    monkeypatch.setenv("SHOAL_DEBUG", "1")
    shoal("run", "job.yaml", "--on", "here.yaml")
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_unknown_verbs_and_options_leave_with_2(shoal: Shoal, capsys: pytest.CaptureFixture[str]) -> None:
    assert shoal("train") == 2
    assert shoal("run", "job.yaml", "--no-such-option") == 2
    assert "No such" in capsys.readouterr().err


def test_run_prints_how_it_ended(
    shoal: Shoal, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_as(monkeypatch, lambda plan, on_event: result(plan))
    assert shoal("run", "job.yaml", "--on", "here.yaml", "--expect-improvement") == 0
    out = capsys.readouterr().out
    assert "held-out loss after   1.5000" in out
    assert "shoal chat tiny-" in out


def test_run_as_json_prints_one_document_and_nothing_else(
    shoal: Shoal, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(plan: Plan, on_event: OnEvent) -> Result:
        on_event({"kind": "note", "message": "for the person"})
        return result(plan)

    train_as(monkeypatch, train)
    assert shoal("run", "job.yaml", "--on", "here.yaml", "--json") == 0
    told = capsys.readouterr()
    body = json.loads(told.out)
    assert body["loss"] == 1.5
    assert body["folder"].endswith(body["run"])
    assert "for the person" in told.err


@pytest.mark.parametrize(("base", "after"), [(2.0, 2.0), (2.0, 2.5), (2.0, None), (None, 1.0), (2.0, float("nan"))])
def test_no_improvement_leaves_with_9_when_one_was_expected(
    shoal: Shoal,
    here: Path,
    base: float | None,
    after: float | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train_as(monkeypatch, lambda plan, on_event: result(plan, base_loss=base, loss=after))
    assert shoal("run", "job.yaml", "--on", "here.yaml") == 0
    assert shoal("run", "job.yaml", "--on", "here.yaml", "--expect-improvement") == 9
    assert "--expect-improvement: " in capsys.readouterr().err


def test_a_stopped_run_leaves_with_130_and_is_resumed(
    shoal: Shoal, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_as(monkeypatch, lambda plan, on_event: result(plan, state="stopped"))
    assert shoal("run", "job.yaml", "--on", "here.yaml") == 130
    assert "shoal resume tiny-" in capsys.readouterr().out
    train_as(monkeypatch, lambda plan, on_event: result(plan))
    assert shoal("resume", "tiny", "--on", "here.yaml") == 0
    assert shoal("resume", "tiny", "--on", "here.yaml") == 2
    assert "is finished" in capsys.readouterr().err


def test_ctrl_c_while_training_by_force_says_how_to_go_on(
    shoal: Shoal, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(plan: Plan, on_event: OnEvent) -> Result:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return result(plan)

    train_as(monkeypatch, train)
    assert shoal("run", "job.yaml", "--on", "here.yaml") == 130
    assert "left at once; go on with  shoal resume tiny-" in capsys.readouterr().err
    [lease] = [one for one in Storage().list(f"{here}/runs/") if "/lease/" in one.url] or [None]
    assert lease is None


def test_one_signal_asks_and_two_leave() -> None:
    heard = threading.Event()
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts(lambda event: heard.set() if event["kind"] == "note" else None) as interrupts:
        interrupts.on_event({"kind": "run", "run": "tiny"})
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.stop.wait(10)
        assert heard.wait(10)
        assert interrupts.status == 143
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.status == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_before_training_one_signal_leaves() -> None:
    with Interrupts(lambda event: None) as interrupts:
        interrupts.on_event({"kind": "phase", "phase": "planning"})
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_plan_and_check_as_json(shoal: Shoal, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shoal("plan", "job.yaml", "--on", "here.yaml", "--json") == 0
    estimated = Plan.model_validate_json(capsys.readouterr().out)
    assert estimated.trajectory.steps.estimate
    assert shoal("check", "job.yaml", "--on", "here.yaml", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 60
    assert shoal("plan", "job.yaml", "--on", "here.yaml", "--json") == 0
    exact = Plan.model_validate_json(capsys.readouterr().out)
    assert exact.trajectory_digest == estimated.trajectory_digest


def test_check_shows_samples_with_what_is_learnt(shoal: Shoal, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shoal("check", "job.yaml", "--on", "here.yaml", "--show", "2") == 0
    out = capsys.readouterr().out
    assert out.count("«") == 2
    assert "rows.jsonl" in out


def test_check_refuses_what_a_run_would_refuse(shoal: Shoal, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = here / "rows.jsonl"
    rows.write_text(rows.read_text() + "no json\n" * 5)
    for _ in range(2):  # the second time the data are prepared already
        assert shoal("check", "job.yaml", "--on", "here.yaml") == DataError.exit_status
        assert "5 of 65 rows" in capsys.readouterr().err


def test_the_profile_is_the_option_the_environment_the_file_here_or_local(
    shoal: Shoal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from shoal.cli.common import profile_name

    assert profile_name(None) == "local"
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster/local.yaml").write_text("kind: local\n")
    assert profile_name(None) == "cluster/local.yaml"
    monkeypatch.setenv("SHOAL_PROFILE", "pool.yaml")
    assert profile_name(None) == "pool.yaml"
    assert profile_name("inline") == "inline"


def test_init_writes_a_job_that_loads_and_never_over_another(
    shoal: Shoal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shoal("init", "My first.yaml", "--base", "org/model", "--train", "s3://b/*.jsonl", "--method", "full") == 0
    job = load_job(tmp_path / "My first.yaml")
    assert (job.name, job.method, job.model.base, job.data.train) == ("my-first", "full", "org/model", "s3://b/*.jsonl")
    assert shoal("init", "My first.yaml", "--base", "a/b", "--train", "c") == 2
    assert "is there already" in capsys.readouterr().err
    assert load_job(tmp_path / "My first.yaml").model.base == "org/model"


def test_init_without_a_terminal_names_all_that_is_missing(shoal: Shoal, capsys: pytest.CaptureFixture[str]) -> None:
    assert shoal("init", "job.yaml") == 2
    told = capsys.readouterr().err
    assert "--base" in told
    assert "--train" in told


def test_schema_is_json(shoal: Shoal, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("job", "cluster"):
        assert shoal("schema", kind) == 0
        assert "properties" in json.loads(capsys.readouterr().out)
    assert shoal("schema", "pod") == 2


def test_store_puts_lists_gets_and_removes(shoal: Shoal, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "folder").mkdir()
    (here / "folder/b.txt").write_text("bb")
    (here / "a.txt").write_text("a")
    on = ("--on", "here.yaml")
    assert shoal("store", "put", "a.txt", "folder", "bucket/", *on) == 0
    capsys.readouterr()
    assert shoal("store", "ls", "bucket", *on) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        [f"{here}/bucket/folder/"],
        ["1", "B", f"{here}/bucket/a.txt"],
    ]
    assert shoal("store", "ls", "bucket/", "-r", "--json", *on) == 0
    assert [one["size"] for one in json.loads(capsys.readouterr().out)["objects"]] == [1, 2]
    assert shoal("store", "get", "bucket/folder/", "back", *on) == 0
    assert (here / "back/b.txt").read_text() == "bb"
    assert shoal("store", "rm", "bucket/folder/", "--yes", *on) == 0
    assert shoal("store", "get", "bucket/folder/b.txt", "again", *on) == StorageError.exit_status
    assert (here / "bucket/a.txt").exists()


def test_store_never_removes_everything(shoal: Shoal, here: Path) -> None:
    assert shoal("store", "rm", "/", "--yes", "--on", "here.yaml") == 2
    assert shoal("store", "rm", "s3://", "--yes", "--on", "here.yaml") == 2


def leave_run(folder: Path, run_id: str, *, steps: tuple[int, ...] = (), finished: bool = False) -> RunFolder:
    """A run folder as a run leaves it."""
    run, storage = RunFolder(Storage(), str(folder / run_id)), Storage()
    plan = small_plan(folder, run_id=run_id)
    storage.write(run.plan, plan.model_dump_json().encode())
    storage.write(run.metrics, b'{"kind": "step", "step": 7, "loss": 2.25}\n')
    for step in steps:
        storage.write(join(run.checkpoint(step), "part-000.safetensors"), b"x" * 1000)
        storage.write(run.manifest(step), b"{}")
    if finished:
        storage.write(run.result, json.dumps(asdict(result(plan))).encode())
        storage.write(join(run.export("adapter"), "export.json"), b"{}")
    return run


def test_runs_tells_how_each_stands(here: Path, shoal: Shoal, capsys: pytest.CaptureFixture[str]) -> None:
    from shoal.lease import held

    leave_run(here / "runs", "a-20260101-000000-aaaa", steps=(5, 10), finished=True)
    leave_run(here / "runs", "b-20260102-000000-bbbb", steps=(5,))
    leave_run(here / "runs", "c-20260103-000000-cccc")
    held_run = leave_run(here / "runs", "d-20260104-000000-dddd", steps=(5,))
    with held(held_run, lambda: None):
        assert shoal("runs", "--on", "here.yaml", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["id"][0], one["state"], one["step"], one["loss"]) for one in found] == [
        ("d", "running", 7, 2.25),
        ("c", "started", None, 2.25),
        ("b", "stopped", 5, 2.25),
        ("a", "finished", 10, 1.5),
    ]
    assert found[3]["checkpoint_bytes"] == 2004
    assert shoal("runs", "--on", "here.yaml") == 0
    assert "b-20260102-000000-bbbb  stopped" in capsys.readouterr().out


def test_logs_as_json_are_one_document(here: Path, shoal: Shoal, capsys: pytest.CaptureFixture[str]) -> None:
    run = leave_run(here / "runs", "tiny-20260101-000000-aaaa", steps=(2,))
    step = {"kind": "step", "step": 2, "loss": 1.5, "lr": 1e-4, "tokens": 9, "seconds": 1.0, "time": "2026-01-01"}
    run.storage.write(run.metrics, (json.dumps(step) + "\n").encode())
    assert shoal("logs", run.id, "--json", "--on", "here.yaml") == 0
    assert [row["step"] for row in json.loads(capsys.readouterr().out)] == [2]


def test_prune_removes_checkpoints_of_finished_runs_only(here: Path, shoal: Shoal) -> None:
    done = leave_run(here / "runs", "a-20260101-000000-aaaa", steps=(5,), finished=True)
    stopped = leave_run(here / "runs", "b-20260102-000000-bbbb", steps=(5,))
    assert shoal("runs", "--on", "here.yaml", "--prune", "--yes") == 0
    storage = Storage()
    assert not storage.exists(done.checkpoints)
    assert storage.exists(done.exports)
    assert storage.exists(stopped.manifest(5))


def test_prune_asks_first(here: Path, shoal: Shoal, monkeypatch: pytest.MonkeyPatch) -> None:
    done = leave_run(here / "runs", "a-20260101-000000-aaaa", steps=(5,), finished=True)
    monkeypatch.setattr("typer.confirm", lambda *words, **options: False)
    assert shoal("runs", "--on", "here.yaml", "--prune") == 1
    assert Storage().exists(done.manifest(5))


def test_prune_of_whole_runs_keeps_the_newest(here: Path, shoal: Shoal) -> None:
    old = leave_run(here / "runs", "a-20260101-000000-aaaa", steps=(5,), finished=True)
    new = leave_run(here / "runs", "b-20260102-000000-bbbb", steps=(5,))
    assert shoal("runs", "--on", "here.yaml", "--prune", "--whole", "--keep", "1", "--yes") == 0
    assert not Storage().exists(f"{old.url}/")
    assert Storage().exists(new.plan)


def test_prune_of_everything_must_be_said(here: Path, shoal: Shoal, capsys: pytest.CaptureFixture[str]) -> None:
    assert shoal("runs", "--on", "here.yaml", "--prune", "--whole", "--yes") == 2
    assert shoal("runs", "--on", "here.yaml", "--keep", "3") == 2
    assert shoal("runs", "--on", "here.yaml", "--prune", "--older-than", "soon") == 2
    assert "write 12h, 7d or 4w" in capsys.readouterr().err


def test_what_prune_chooses() -> None:
    def one(run_id: str, state: str) -> Standing:
        return Standing(run_id, "", state, 1, None, made(run_id), 10, 5)

    found = [
        one("d-20260110-000000-dddd", "running"),
        one("c-20260109-000000-cccc", "finished"),
        one("b-20260102-000000-bbbb", "stopped"),
        one("a-20260101-000000-aaaa", "finished"),
    ]
    now = made("x-20260110-120000-xxxx")

    def ids(*arguments: Any) -> str:
        return "".join(each.id[0] for each in listing.chosen(found, *arguments, now))

    assert ids(False, None, None) == "ca"
    assert ids(False, 2, None) == "a"
    assert ids(True, 0, None) == "cba"
    assert ids(True, None, 7 * 24) == "ba"
    assert ids(True, 3, 7 * 24) == "a"


def test_an_unfinished_run_has_nothing_to_export_or_to_talk_to(
    here: Path, shoal: Shoal, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_run(here / "runs", "b-20260102-000000-bbbb", steps=(5,))
    assert shoal("export", "b-", "--on", "here.yaml") == 2
    assert "shoal resume b-20260102-000000-bbbb" in capsys.readouterr().err
    assert shoal("export", "nothing", "--on", "here.yaml") == 2
