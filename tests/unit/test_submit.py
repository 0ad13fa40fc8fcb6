"""What a cluster cannot do for a run, what is sent there, and what its driver's log says: all of it pure."""

import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs import job, write_rows

from shoal.backends.inline import Inline
from shoal.cli.relay import STEP_EVERY_S, Relay, outcome_of
from shoal.cli.runs import seen_by_cluster
from shoal.cli.standing import survey
from shoal.errors import ClusterError, ModelError, ShoalError, SpecError
from shoal.launch import run
from shoal.record.ledger import PARTS
from shoal.record.rows import append
from shoal.runs import RunFolder, find_run
from shoal.spec.cluster import ClusterProfile, S3Spec
from shoal.spec.load import load_profile
from shoal.storage import Storage
from shoal.submit.dashboard import Dashboard, Job, Node
from shoal.submit.follow import Lines, event_of, status_of
from shoal.submit.found import find
from shoal.submit.package import Package, package
from shoal.submit.place import Place, asked, place_problems, ray_problems, room_problems
from shoal.submit.submission import JOB, PROFILE, RUN, SWEEP, request
from shoal.tune.folder import find_sweep

OWN = Package("1.2.3", "d", ("ray[train,tune]>=2.60", "torch>=2.10"), "_ray_pkg_0.zip", b"")
THERE = Place(
    python="3.11.7", executable="/opt/python", shoal="1.2.3", digest="d",
    distributions={"ray": "2.60.0", "torch": "2.13.0"}, unset=[], missing=[], unreached=[],
)  # fmt: skip
NODES = [Node("head", {"CPU": 2.0}), Node("big", {"CPU": 8.0, "GPU": 4.0, "accelerator_type:A10G": 1.0})]


def profile(**changes: Any) -> ClusterProfile:
    return ClusterProfile.model_validate({"kind": "ray", "address": "http://head:8265", **changes})


ROOM = [
    ({"workers": 9}, None),
    ({"workers": 10}, None),
    ({"workers": 11}, "workers: 11, and the cluster can never have more than 10 of 1 CPU each (pack): head has 2 CPU; big"),
    ({"workers": {"min": 2, "max": 64}}, None),
    ({"workers": 9, "placement": "strict-pack"}, "workers: 9, and the cluster can never have more than 8 of 1 CPU"),
    ({"workers": 3, "placement": "strict-spread"}, "workers: 3, and the cluster can never have more than 2 of 1 CPU"),
    ({"workers": 4, "resources_per_worker": {"gpu": 1}}, None),
    ({"workers": 5, "resources_per_worker": {"gpu": 1}}, "never have more than 4 of 1 CPU, 1 GPU each"),
    (
        {"resources_per_worker": {"gpu": 1, "accelerator_type": "H100"}},
        "resources_per_worker.accelerator_type: H100, and no node of the cluster has that type: it has A10G; name one",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), ROOM)
def test_workers_that_a_cluster_can_never_have(changes: dict[str, Any], said: str | None) -> None:
    told = [str(problem) for problem in room_problems(NODES, profile(**changes))]
    assert (told == []) if said is None else (len(told) == 1 and said in told[0])


def test_a_cluster_without_gpus() -> None:
    (told,) = room_problems(NODES[:1], profile(resources_per_worker={"gpu": 1}))
    assert str(told) == "resources_per_worker.gpu: 1, and no node of the cluster has a GPU; set 0 to train on cores"


PLACES = [
    (THERE, []),
    (replace(THERE, shoal=None, digest=None), []),
    (replace(THERE, python="3.10.2"), ["address: the cluster has Python 3.10.2, and shoal needs >=3.11"]),
    (
        replace(THERE, shoal=None, distributions={"ray": "2.60.0", "torch": None}),
        [
            "address: the cluster has no shoal, and what shoal 1.2.3 needs is not there: not installed are torch>=2.10; `pip"
        ],
    ),
    (
        replace(THERE, shoal="1.0", distributions={"ray": "2.60.0", "torch": "2.9.1"}),
        ["the cluster has shoal 1.0, and what shoal 1.2.3 needs is not there: torch 2.9.1 where >=2.10 is needed"],
    ),
    (
        replace(THERE, unset=["KEY"], unreached=["store"]),
        ["the variable KEY is not set on the cluster's head", "http://store:9000 does not answer the cluster's head"],
    ),
]


@pytest.mark.parametrize(("place", "said"), PLACES)
def test_a_place_that_a_driver_cannot_work_in(place: Place, said: list[str]) -> None:
    here = profile(storage={"s3": {"endpoint_url": "http://store:9000"}})
    told = [str(problem) for problem in place_problems(place, OWN, here)]
    assert len(told) == len(said)
    assert all(part in one for part, one in zip(said, told, strict=True))


def test_a_ray_that_is_too_old_is_told_with_both_versions() -> None:
    assert list(ray_problems("2.61.0", OWN)) == []
    (told,) = ray_problems("2.40.0", OWN)
    assert str(told).startswith("address: the cluster has Ray 2.40.0, and shoal 1.2.3 needs >=2.60; start the cluster")


def test_what_is_sent_holds_names_and_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "a-value-that-stays-here")
    s3 = {
        "endpoint_url": "http://store:9000",
        "credentials": {"access_key_env": "MY_KEY", "secret_key_env": "MY_SECRET"},
    }
    here = profile(token="env:MY_TOKEN", workers=2, storage={"s3": s3})
    made = request(here, "tiny-1", "s3://shoal/runs/tiny-1", job("s3://a/b", "s3://a/c"), THERE, OWN, "--x")
    entry = f"exec /opt/python -m shoal run env:{JOB} --run-id tiny-1 --on env:{PROFILE} --events --x"
    assert made["entrypoint"] == entry
    assert made["metadata"] == {RUN: "tiny-1", "folder": "s3://shoal/runs/tiny-1"}
    assert set(made["runtime_env"]) == {"env_vars"}, "a Shoal that is there is not sent, nor a working directory"
    there = yaml.safe_load(made["runtime_env"]["env_vars"][PROFILE])
    assert there == {"kind": "ray", "address": "auto", "workers": 2, "storage": {"s3": s3}}
    assert "a-value-that-stays-here" not in json.dumps(made) and "MY_TOKEN" not in json.dumps(made)
    other = request(here, "tiny-1", "f", None, replace(THERE, digest="another"), OWN)
    assert other["runtime_env"]["py_modules"] == ["gcs://_ray_pkg_0.zip"]
    assert other["entrypoint"].startswith("exec /opt/python -m shoal resume tiny-1 --on ")
    swept = job("s3://a/b", "s3://a/c", sweep={"space": {"optimizer.learning_rate": [1e-4, 1e-3]}, "search": "grid"})
    sweep = request(here, "tiny-2", "f", swept, THERE, OWN)
    assert sweep["entrypoint"].startswith(f"exec /opt/python -m shoal sweep run env:{JOB} --run-id tiny-2 --on ")
    assert sweep["metadata"] == {RUN: "tiny-2", "folder": "f", SWEEP: "yes"}
    assert asked(here, OWN, "env:HF") == {
        "requirements": ["ray", "torch"], "variables": ["MY_KEY", "MY_SECRET", "HF"], "files": [], "hosts": [["store", 9000]],
    }  # fmt: skip


def test_the_package_is_shoal_and_its_bytes_are_always_the_same(tmp_path: Path) -> None:
    own = package()
    assert package() == own
    assert len(own.data) < 2_000_000
    with zipfile.ZipFile(BytesIO(own.data)) as zipped:
        zipped.extractall(tmp_path)
    program = "import shoal, importlib.metadata as m; from shoal.submit.package import package; print(shoal.__file__, " \
        "m.version('shoal'), package().digest)"  # fmt: skip
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "shoal" / "__init__.py"), own.version, own.digest]


def test_a_log_is_read_again_without_saying_anything_twice() -> None:
    lines = Lines()
    assert list(lines.take("one\ntw")) == ["one"]
    lines.again()
    assert list(lines.take("one\n")) == []
    assert list(lines.take("two\nthree\nfo")) == ["two", "three"]
    assert lines.rest == "fo"


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ('{"kind":"note","time":"t","message":"m"}', {"kind": "note", "time": "t", "message": "m"}),
        ('{"kind":"note"', {"kind": "log", "message": '{"kind":"note"'}),
        ("error: address: nobody is there; go home", {"kind": "error", "message": "error: address: nobody is there; go home"}),
        ("Running entrypoint for job a: exec python", None),
        ("", None),
        ("somebody's words \n", {"kind": "log", "message": "somebody's words"}),
    ],
)  # fmt: skip
def test_what_a_line_of_a_log_says(line: str, event: dict[str, Any] | None) -> None:
    assert event_of(line) == event


def test_events_go_through_a_log_and_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, 0.5, 2.0, 2.5, 3.9, 3.95])
    relay = Relay(lambda: next(now))
    for step in range(1, 7):
        relay.on_event({"kind": "step", "step": step, "steps": 6, "loss": float("inf")})
    book = {"parts": {part: {"seconds": 1.0} for part in PARTS}, "attempts": 1, "steps": 6, "repeated_steps": 0}
    result = dict.fromkeys(
        ["step", "steps", "tokens", "seconds", "base_loss", "loss", "train_loss", "export", "gate"], 1
    )
    relay.on_event({"kind": "outcome", "result": {**result, "state": "finished", "answers": []}, "ledger": book})
    found = [event_of(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["step"] for one in found if one and one["kind"] == "step"] == [1, 3, 6]
    assert found[-1] is not None
    then, ledger = outcome_of(found[-1])
    assert then.state == "finished" and ledger is not None and ledger.goodput == 1 / len(PARTS)


@pytest.mark.parametrize(
    ("status", "exit_code", "told"),
    [("SUCCEEDED", 0, 0), ("FAILED", 130, 130), ("FAILED", -9, 137), ("STOPPED", None, 143), ("FAILED", None, 1)],
)
def test_a_job_s_exit_status_is_the_run_s(status: str, exit_code: int | None, told: int) -> None:
    assert status_of(Job("a", status, "", exit_code, {}, 0.0)) == told


@contextmanager
def serving(status: int, body: str) -> Iterator[str]:
    """Something that answers everything with this."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, "<html>hello</html>", "address: something answers at .*, but it is no Ray dashboard: its answer is no JSON; name"),
        (200, '{"version": 1}', "but it is no Ray dashboard: it says nothing of a Ray version"),
        (404, "nothing here", "but it is no Ray dashboard: it does not know Ray's job API"),
        (500, "Traceback\n  ...\nKeyError: no agent", "address: .* answers 500: KeyError: no agent; its log is"),
        (401, "Unauthorized: Missing authentication token", "token: .* asks for a token, and none was given; name"),
    ],
)  # fmt: skip
def test_something_else_at_the_address(status: int, body: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
    with serving(status, body) as address, pytest.raises(ClusterError, match=said):
        Dashboard(address).version()


def test_a_token_is_looked_up_where_ray_does_and_never_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "very-secret-token")
    with serving(403, "Forbidden: Invalid authentication token") as address:
        with pytest.raises(ClusterError, match=r"token: .* does not accept the one of env:MY_TOKEN; ") as caught:
            Dashboard(address, "env:MY_TOKEN").version()
        assert "very-secret-token" not in str(caught.value)
        kept = tmp_path / "token"
        kept.write_text("another\n")
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(kept))
        with pytest.raises(ClusterError, match=f"does not accept the one of {kept}"):
            Dashboard(address).version()
        with pytest.raises(SpecError, match="token: the environment variable NOT_SET is not set"):
            Dashboard(address, "env:NOT_SET").version()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"address": "head"}, "address"),
        ({"address": "http://head:8265/jobs"}, "address"),
        ({"token": "very-secret-token"}, "token"),
    ],
)
def test_a_profile_that_says_it_wrongly(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump({"kind": "ray", "address": "http://head:8265", **changes}))
    with pytest.raises(SpecError) as caught:
        load_profile(path)
    assert said in str(caught.value) and "very-secret-token" not in str(caught.value)


def test_a_run_that_was_submitted_is_listed_before_it_has_a_plan(tmp_path: Path) -> None:
    folder = RunFolder(Storage(), str(tmp_path / "tiny-1"))
    folder.storage.write(folder.submission, b"{}")
    assert [(one.id, one.state) for one in survey(folder.storage, str(tmp_path))] == [("tiny-1", "submitted")]
    assert find("tin", folder.storage, str(tmp_path), None).in_sight
    folder.storage.write(folder.plan, b"{}")
    assert [(one.id, one.state) for one in survey(folder.storage, str(tmp_path))] == [("tiny-1", "started")]


def test_a_driver_that_gave_up_before_its_plan_is_listed_with_its_reason(tmp_path: Path) -> None:
    folder = RunFolder(Storage(), str(tmp_path / "tiny-1"))
    with pytest.raises(ModelError, match="no such folder"):  # nobody handed this one over: nothing is kept of it
        launch(tmp_path, folder.id)
    assert survey(folder.storage, str(tmp_path)) == []
    folder.storage.write(folder.submission, b'{"id": "tiny-1", "by": "me"}')
    with pytest.raises(SpecError, match="tiny-1: has no plan yet; `shoal logs tiny-1 --follow` shows what its driver"):
        find_run(folder.storage, str(tmp_path), "tiny")
    with pytest.raises(ModelError, match="no such folder"):
        launch(tmp_path, folder.id)
    assert [(one.id, one.state) for one in survey(folder.storage, str(tmp_path))] == [("tiny-1", "failed")]
    assert json.loads(folder.storage.read(folder.submission))["by"] == "me"
    for finding in (find_run, find_sweep):
        said = "tiny-1: its driver gave up before it had a plan: model.base: ./nowhere: no such folder.*--run-id tiny-1"
        with pytest.raises(SpecError, match=said):
            finding(folder.storage, str(tmp_path), "tiny")
    folder.storage.write(folder.plan, b"{}")
    assert find_run(folder.storage, str(tmp_path), "tiny").id == "tiny-1"


def launch(place: Path, run_id: str) -> None:
    """What the driver of a run does whose model is not there."""
    spec = job("./nowhere", write_rows(place / "rows.jsonl"))
    here = ClusterProfile.model_validate({"kind": "inline", "storage": {"runs": str(place)}})
    run(spec, here, Storage(), Inline(), lambda event: None, threading.Event(), run_id)


@pytest.mark.parametrize(
    ("status", "state"), [("FAILED", "failed"), ("STOPPED", "failed"), ("RUNNING", "submitted"), (None, "submitted")]
)
def test_the_cluster_is_asked_about_a_driver_that_said_nothing(status: str | None, state: str, tmp_path: Path) -> None:
    folder = RunFolder(Storage(), str(tmp_path / "tiny-1"))
    folder.storage.write(folder.submission, b"{}")
    row = {"submission_id": "tiny-1", "status": status, "message": "", "metadata": {RUN: "tiny-1"}, "start_time": 0}
    with serving(200, json.dumps([row] if status else [])) as address:
        found = seen_by_cluster(survey(folder.storage, str(tmp_path)), profile(address=address))
    assert [one.state for one in found] == [state]
    away = profile(address="http://127.0.0.1:1")
    assert seen_by_cluster(survey(folder.storage, str(tmp_path)), away)[0].state == "submitted"


def test_the_beginning_of_a_sweeps_id_is_the_sweep_and_not_its_trials(tmp_path: Path) -> None:
    storage, place = Storage(), str(tmp_path)
    for name in ("fish-1/submission.json", "fish-1/sweep.json", "fish-1-0001/plan.json", "fish-1-0002/plan.json"):
        storage.write(f"{place}/{name}", b"{}")
    found = find("fi", storage, place, None)
    assert (found.id, found.is_sweep, found.has_begun, found.is_finished) == ("fish-1", True, True, False)
    assert find("fish-1-0002", storage, place, None).id == "fish-1-0002"
    with pytest.raises(SpecError, match="2 runs begin so"):
        find("fish-1-", storage, place, None)
    for state in ("stopped", "finished"):
        append(found.folder, {"kind": "ended", "time": state, "state": state})
        assert found.is_finished == (state == "finished")


def test_whoever_reaches_neither_the_store_nor_the_cluster_hears_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    away = Storage(S3Spec(endpoint_url="http://127.0.0.1:1", region="us-east-1"))
    with pytest.raises(ShoalError) as caught:
        find("tiny", away, "s3://shoal/runs", Dashboard("http://127.0.0.1:2"))
    assert [port in str(caught.value) for port in ("127.0.0.1:1 cannot be reached", "127.0.0.1:2 does not")] == [
        True,
        True,
    ]


def test_steps_of_many_trials_are_relayed_in_turn(capsys: pytest.CaptureFixture[str]) -> None:
    """Together they are no more than those of one run."""
    now = [0.0]
    relay = Relay(lambda: now[0])
    for second in range(40):
        now[0] = float(second)
        for trial in (1, 2, 3, 4):
            relay.on_event({"kind": "step", "trial": trial, "step": second, "steps": 1000})
    told = [json.loads(one)["trial"] for one in capsys.readouterr().out.splitlines()]
    assert len(told) <= 40 / STEP_EVERY_S + 4 and {told.count(trial) for trial in (1, 2, 3, 4)} == {5}
